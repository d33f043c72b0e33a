"""Telemetry through OpenTelemetry's API alone: traces, their ids in log lines, and metrics. See `docs/`.

This room is the only one that knows OpenTelemetry, and it is entered only by an app that connects when somebody
has set a provider. Without one there is no middleware of ours anywhere, so that no job costs more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from opentelemetry import metrics, trace

from amqpjobs.logs import add_to_lines
from amqpjobs.middleware import EnqueueMiddleware, RunMiddleware, SettleMiddleware
from amqpjobs.telemetry.attempts import Attempts, adopting
from amqpjobs.telemetry.log_ids import TraceIds
from amqpjobs.telemetry.measures import Measures
from amqpjobs.telemetry.names import SCHEMA_URL
from amqpjobs.telemetry.providers import has_meter_provider, has_tracer_provider
from amqpjobs.telemetry.sending import Sending
from amqpjobs.telemetry.settling import Settling
from amqpjobs.telemetry.spans import Observed
from amqpjobs.telemetry.vitals import vitals_of

__all__ = ["Telemetry", "TraceIds", "telemetry_of"]


@dataclass(frozen=True, slots=True)
class Telemetry:
    """The middlewares that an app is given to be observed; none when nobody wants that."""

    enqueue: Sequence[EnqueueMiddleware] = ()
    run: Sequence[RunMiddleware] = ()
    settle: Sequence[SettleMiddleware] = ()
    #: In the processes of handlers, in place of `run`.
    inner: Sequence[RunMiddleware] = ()

    def __bool__(self) -> bool:
        return bool(self.enqueue)


def telemetry_of(app: Observed, *, always: bool = False) -> Telemetry:
    """Spans and metrics of what an app enqueues and runs, as far as providers for them are set by now.

    With `always` the trace context is passed on at least. Of who is traced, the ids are in log lines from now on.
    """
    traced = _traces(app) if always or has_tracer_provider() else Telemetry()
    measured = _metrics(app) if has_meter_provider() else Telemetry()
    return Telemetry(
        enqueue=[*traced.enqueue, *measured.enqueue],
        run=[*traced.run, *measured.run],
        settle=[*traced.settle, *measured.settle],
        inner=traced.inner,
    )


def _traces(app: Observed) -> Telemetry:
    add_to_lines(TraceIds())
    tracer = trace.get_tracer("amqpjobs", version("amqpjobs"), schema_url=SCHEMA_URL)
    attempts = Attempts(app, tracer)
    return Telemetry([Sending(app, tracer)], [attempts], [Settling(app, tracer, attempts)], [adopting])


def _metrics(app: Observed) -> Telemetry:
    meter = metrics.get_meter("amqpjobs", version("amqpjobs"), schema_url=SCHEMA_URL)
    vitals_of(metrics.get_meter_provider(), meter).watch(app)
    measures = Measures(app, meter)
    return Telemetry([measures], [measures.run], [measures.settle])
