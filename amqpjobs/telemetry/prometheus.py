"""Our metrics, and those the app itself makes through OpenTelemetry, as the text that Prometheus reads.

The SDK and its exporter come with the extra `prometheus` and are imported when first asked for.
"""

from collections.abc import Callable

from opentelemetry import metrics

from amqpjobs.errors import SettingsError

_made: "Exposition | None" = None


class Exposition:
    """The metrics of this process, for who serves them."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, write: Callable[[], bytes]) -> None:
        self._write = write

    def text(self) -> bytes:
        """All metrics as they are now. Any thread may ask."""
        return self._write()


def exposition() -> Exposition:
    """Measure for Prometheus: sets OpenTelemetry's global meter provider, the first time it is called."""
    global _made
    if _made is None:
        _made = _exposition()
    return _made


def _exposition() -> Exposition:
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from opentelemetry.sdk.metrics import MeterProvider
        from prometheus_client import CollectorRegistry, generate_latest
    except ImportError as error:
        raise SettingsError(
            f'Metrics for Prometheus need a package that is not installed ({error}). pip install "amqpjobs[prometheus]"'
        ) from error
    registry = CollectorRegistry()
    metrics.set_meter_provider(MeterProvider([PrometheusMetricReader(registry=registry)]))
    return Exposition(lambda: generate_latest(registry))
