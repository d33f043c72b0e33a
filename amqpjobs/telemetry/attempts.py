"""The span of an attempt, which is current in its handler, and of a batch handler's call.

An attempt is a child of its enqueue, in the same trace, or begins a trace of its own. Either way it links to
the enqueue, and to the attempt before if there was one. By default it is a child, and has a trace of its own
where that trace is over long before, or would have no end: after a delay, for a tick, for one of many jobs
enqueued together, and after a requeue.

Who comes to an end without an attempt, as what has expired or cannot be read, gets a span all the same.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, SpanKind, Tracer

from amqpjobs.context import JobContext
from amqpjobs.envelope import Envelope
from amqpjobs.middleware import RunNext
from amqpjobs.outcome import Outcome
from amqpjobs.registry import Handler
from amqpjobs.telemetry import names
from amqpjobs.telemetry.carrier import adopted, link_to, origin_of, requeues_of, together_of
from amqpjobs.telemetry.names import LinkType
from amqpjobs.telemetry.outcomes import tell_outcome, tell_raised
from amqpjobs.telemetry.spans import Attributes, Observed, identity, operation, taken_from
from amqpjobs.telemetry.traceable import fields_of

#: Of the attempts in one call of a batch handler.
MOST_LINKS = 100


@dataclass(frozen=True, slots=True)
class _Attempt:
    job_id: str
    number: int
    span: SpanContext


#: A task inherits that of the one that started it, so it is asked for by name.
_last: ContextVar[_Attempt | None] = ContextVar("amqpjobs_last_attempt", default=None)


def last_attempt(job_id: object, number: object) -> SpanContext | None:
    """The span of this attempt if it ran in this task, also after its end."""
    last = _last.get()
    return last.span if last is not None and (last.job_id, last.number) == (job_id, number) else None


class Attempts:
    """A run middleware."""

    def __init__(self, app: Observed, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer
        #: Of the attempts that run, by their contexts' `id`.
        self._running: dict[int, Span] = {}

    async def __call__(self, context: JobContext[Any], following: RunNext) -> Outcome:
        envelope = context.envelope
        handler = self._app.registry.get(envelope.kind)
        about: Attributes = {names.JOB_ATTEMPT: context.attempt, names.JOB_MAX_ATTEMPTS: context.max_attempts}
        span, around = self._started(envelope, handler, about)
        _last.set(_Attempt(envelope.job_id, envelope.attempt, span.get_span_context()))
        self._running[id(context)] = span
        token = contexts.attach(around)
        try:
            if handler is not None and handler.run_in == "process":
                context.envelope = adopted(envelope)  # for the child: `adopting` finds it there
            outcome = await following(context)
            tell_outcome(span, outcome)
            return outcome
        except BaseException as error:  # of a middleware; or the worker stops
            tell_raised(span, error)
            raise
        finally:
            contexts.detach(token)
            del self._running[id(context)]
            span.end()

    @contextmanager
    def jointly(self, members: Sequence[JobContext[Any]]) -> Generator[None]:
        """One call of a batch handler: a span of its own, with a link to each attempt in it."""
        first = members[0].envelope
        told = operation("process", "process", self._app.settings) | taken_from(first, self._app.topology)
        told |= {names.JOB_KIND: first.kind, names.MESSAGE_COUNT: len(members)}
        running = [self._running[id(each)] for each in members if id(each) in self._running]
        links = [link_to(each.get_span_context(), LinkType.MEMBER) for each in running[:MOST_LINKS]]
        span = self._tracer.start_span(_name(told), Context(), SpanKind.CONSUMER, told, links)
        token = contexts.attach(trace.set_span_in_context(span, Context()))
        try:
            yield
        except BaseException as error:
            tell_raised(span, error)
            raise
        finally:
            contexts.detach(token)
            span.end()

    def without_run(self, envelope: Envelope, outcome: Outcome) -> SpanContext:
        """The span of a job that came to its end before it ran."""
        handler = self._app.registry.get(envelope.kind)
        span, _ = self._started(envelope, handler, {names.JOB_ATTEMPT: envelope.attempt})
        tell_outcome(span, outcome)
        span.end()
        _last.set(_Attempt(envelope.job_id, envelope.attempt, span.get_span_context()))
        return span.get_span_context()

    def _started(self, envelope: Envelope, handler: Handler | None, about: Attributes) -> tuple[Span, Context]:
        """The span, and the context its handler runs in."""
        origin, settings = origin_of(envelope), self._app.settings
        parent = origin.context if self._is_child(envelope, handler) else origin.apart
        told = operation("process", "process", settings) | taken_from(envelope, self._app.topology)
        told |= identity(envelope) | about | _past(envelope)
        # The kinds of others may be anything: only ours are part of a name.
        name = "process" if handler is None else _name(told)
        span = self._tracer.start_span(name, parent, SpanKind.CONSUMER, told, origin.links)
        if handler is not None and span.is_recording():
            span.set_attributes(fields_of(handler.job, envelope.payload))
        return span, trace.set_span_in_context(span, parent)

    def _is_child(self, envelope: Envelope, handler: Handler | None) -> bool:
        chosen = (handler and handler.trace_relation) or self._app.settings.trace_relation
        return _is_immediate(envelope) if chosen == "auto" else chosen == "child"


async def adopting(context: JobContext[Any], following: RunNext) -> Outcome:
    """A run middleware for the processes of handlers: the worker's span is current there too."""
    token = contexts.attach(origin_of(context.envelope).context)
    try:
        return await following(context)
    finally:
        contexts.detach(token)


def _is_immediate(envelope: Envelope) -> bool:
    if envelope.run_at is not None or envelope.schedule is not None:
        return False
    return together_of(envelope) <= 1 and not requeues_of(envelope)


def _past(envelope: Envelope) -> Attributes:
    requeues = requeues_of(envelope)
    return {names.JOB_REQUEUES: requeues} if requeues else {}


def _name(told: Attributes) -> str:
    return f"process {told[names.DESTINATION]}"
