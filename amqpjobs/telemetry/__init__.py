"""Telemetry through OpenTelemetry's API alone: traces, and their ids in log lines. See `docs/traces.md`.

This room is the only one that knows OpenTelemetry, and it is entered only by an app that connects when somebody
has set a tracer provider. Without one there is no middleware of ours anywhere, so that no job costs more.
"""

from dataclasses import dataclass

from opentelemetry import trace

from amqpjobs.logs import add_to_lines
from amqpjobs.middleware import EnqueueMiddleware, RunMiddleware, SettleMiddleware
from amqpjobs.telemetry.attempts import Attempts, adopting
from amqpjobs.telemetry.log_ids import TraceIds
from amqpjobs.telemetry.sending import Sending
from amqpjobs.telemetry.settling import Settling
from amqpjobs.telemetry.spans import Observed, our_tracer

__all__ = ["Telemetry", "TraceIds", "is_wanted", "telemetry_of"]


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What an app is given to be traced."""

    enqueue: EnqueueMiddleware
    run: RunMiddleware
    settle: SettleMiddleware
    #: In the processes of handlers, in place of `run`.
    run_inside: RunMiddleware


def is_wanted() -> bool:
    """Whether somebody has set a tracer provider by now."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider)


def telemetry_of(app: Observed) -> Telemetry:
    """Spans for what an app enqueues and runs, and from now on their ids in the log lines we write."""
    add_to_lines(TraceIds())
    tracer = our_tracer()
    attempts = Attempts(app, tracer)
    return Telemetry(Sending(app, tracer), attempts, Settling(app, tracer, attempts), adopting)
