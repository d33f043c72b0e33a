"""An app with a handler in processes, for traces: its children may have an SDK, or OpenTelemetry's API alone.

It is imported anew in every child, so what it needs to know comes from the environment.
"""

import json
import logging
import os

from opentelemetry import baggage, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from amqpjobs import App, Job, JobContext
from amqpjobs.settings import load_settings

OPTIONS = "TRACED_APP_OPTIONS"
options: dict[str, str] = json.loads(os.environ[OPTIONS])
name = options["name"]


class Outer(Job[str], kind=f"{name}.outer", timeout=60):
    pass


class Inner(Job[None], kind=f"{name}.inner"):
    pass


def set_up_telemetry(endpoint: str) -> None:
    """As a service would at its top."""
    provider = TracerProvider(resource=Resource({"process.pid": os.getpid()}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint, timeout=60)))
    trace.set_tracer_provider(provider)


if options["endpoint"] and str(os.getpid()) != options["worker"]:
    set_up_telemetry(options["endpoint"])

app = App(name, settings=load_settings(**json.loads(options["settings"])))


@app.handler(Outer, run_in="process")
async def outer(job: Outer, ctx: JobContext[None]) -> str:
    logging.getLogger("shop").warning("in a process", extra={"pid": os.getpid()})
    with trace.get_tracer("shop").start_as_current_span("work"):
        await ctx.enqueue(Inner())
    return f"{trace.get_current_span().get_span_context().span_id} {baggage.get_baggage('tenant')}"


@app.handler(Inner)
async def inner(job: Inner) -> None:
    pass
