"""Our metrics, and those the app itself makes through OpenTelemetry, as the text that Prometheus reads.

The SDK and its exporter come with the extra `prometheus` and are imported when first asked for. The exporter's
registry is one of its own: prometheus_client's global one belongs to the app, and to its libraries.
"""

from collections.abc import Callable
from threading import Lock

from opentelemetry import metrics

from amqpjobs.errors import ExpositionError
from amqpjobs.telemetry.providers import has_meter_provider

#: The form that every Prometheus reads.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_once = Lock()
_made: "Exposition | None" = None


class Exposition:
    """The metrics of this process, for who serves them."""

    content_type = CONTENT_TYPE

    def __init__(self, write: Callable[[], bytes]) -> None:
        self._write = write
        self._lock = Lock()

    def text(self) -> bytes:
        """All metrics as they are now. Any thread may ask; one after the other is answered.

        An app with a thousand kinds has some megabytes of it, which take a second: ask in a thread.
        """
        # Of two at once the exporter may answer one with nothing, and the other with all metrics twice.
        with self._lock:
            return self._write()


def exposition(service: str | None = None) -> Exposition:
    """Measure for Prometheus: sets OpenTelemetry's global meter provider, the first time it is called.

    Call it before anything connects, since that is when an app looks for a provider. `OTEL_SERVICE_NAME` and
    `OTEL_RESOURCE_ATTRIBUTES` are told as labels of `target_info`; `service` is the name where they have none.
    A provider of the SDK that is set already, as `opentelemetry-instrument` does, gets one more reader.
    Raises ExpositionError without the extra `prometheus`, and beside a provider that is not the SDK's.
    """
    global _made
    with _once:
        _made = _made or _exposition(service)
        return _made


def _exposition(service: str | None) -> Exposition:
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from prometheus_client import CollectorRegistry, generate_latest
    except ImportError as error:
        raise ExpositionError(
            f'Metrics for Prometheus need a package that is not installed ({error}). pip install "amqpjobs[prometheus]"'
        ) from error
    registry, provider = CollectorRegistry(), metrics.get_meter_provider()
    if not has_meter_provider():
        resource = Resource.create()
        if service and str(resource.attributes.get(SERVICE_NAME)).startswith("unknown_service"):  # the SDK's own word
            resource = resource.merge(Resource({SERVICE_NAME: service}))
        metrics.set_meter_provider(MeterProvider([PrometheusMetricReader(registry=registry)], resource))
    elif isinstance(provider, MeterProvider):
        provider.add_metric_reader(PrometheusMetricReader(registry=registry))
    else:
        raise ExpositionError(
            f"Metrics for Prometheus need the SDK's meter provider, and {_name_of(provider)} is set already. "
            "Either leave it out, or serve what it measures yourself."
        )
    return Exposition(lambda: generate_latest(registry))


def _name_of(provider: object) -> str:
    return f"{type(provider).__module__}.{type(provider).__qualname__}"
