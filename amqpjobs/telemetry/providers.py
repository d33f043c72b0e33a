"""Whether anybody has set a provider: OpenTelemetry's API has ones of its own, which do nothing."""

from opentelemetry import metrics, trace


def has_tracer_provider() -> bool:
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider)


def has_meter_provider() -> bool:
    # The API's own are its proxy, which has no public name, and the one that does nothing.
    return not type(metrics.get_meter_provider()).__module__.startswith("opentelemetry.metrics.")
