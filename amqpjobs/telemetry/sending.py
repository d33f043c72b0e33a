"""The span of an enqueue, and of many jobs enqueued together.

It ends when the job is confirmed. (Of a job in a buffer: when it has passed the middlewares.) Its context
goes with the job. A tick of a beat begins a trace of its own, with a link to its schedule: a span that is
made once for each schedule, before its first tick here.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Tracer

from amqpjobs.envelope import Envelope
from amqpjobs.errors import EnqueueManyError
from amqpjobs.middleware import EnqueueNext
from amqpjobs.telemetry import names
from amqpjobs.telemetry.carrier import carried, link_to, own_context
from amqpjobs.telemetry.names import LinkType
from amqpjobs.telemetry.spans import Attributes, Observed, delay_of, identity, operation, same, sent_to, tell_error

#: Of a batch, links to contexts that its enqueuer has given the jobs himself.
MOST_LINKS = 100


@dataclass(frozen=True, slots=True)
class _Together:
    """An `enqueue_many` under way."""

    context: Context
    job_ids: frozenset[str]


_together: ContextVar[_Together | None] = ContextVar("amqpjobs_enqueued_together", default=None)


class Sending:
    """An enqueue middleware."""

    def __init__(self, app: Observed, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer
        #: The spans of schedules, by name; an app has only so many.
        self._schedules: dict[str, SpanContext] = {}

    async def __call__(self, envelope: Envelope, following: EnqueueNext) -> Envelope:
        together = _together.get()
        if together is not None and envelope.job_id in together.job_ids:
            context = None if own_context(envelope).is_valid else together.context
            return await following(carried(envelope, context, together=len(together.job_ids)))
        given = own_context(envelope)
        with self._span(envelope, given) as (span, context):
            final = await following(carried(envelope, None if given.is_valid else context))
            if span.is_recording() and final.queue != envelope.queue:  # a middleware sent it elsewhere
                span.set_attributes(sent_to(final, self._app.topology))
            return final

    @contextmanager
    def together(self, envelopes: Sequence[Envelope]) -> Generator[None]:
        """One span for all of them; while it lasts, each gets its context."""
        to = same([sent_to(each, self._app.topology) for each in envelopes])
        about = same([{names.JOB_KIND: identity(each)[names.JOB_KIND]} for each in envelopes])
        given = [own_context(each) for each in envelopes]
        links = [link_to(each, LinkType.ENQUEUE) for each in given if each.is_valid][:MOST_LINKS]
        with self._started(to, {**about, names.MESSAGE_COUNT: len(envelopes)}, links, None) as (span, context):
            token = _together.set(_Together(context, frozenset(each.job_id for each in envelopes)))
            try:
                yield
            except EnqueueManyError as error:
                span.set_attribute(names.FAILED_COUNT, len(error.errors))
                raise
            finally:
                _together.reset(token)

    @contextmanager
    def _span(self, envelope: Envelope, given: SpanContext) -> Generator[tuple[Span, Context]]:
        links = [link_to(given, LinkType.ENQUEUE)] if given.is_valid else []
        parent = None
        if envelope.schedule is not None:
            links.append(link_to(self._schedule(envelope.schedule), LinkType.SCHEDULE))
            parent = Context()
        to = sent_to(envelope, self._app.topology)
        with self._started(to, identity(envelope) | delay_of(envelope), links, parent) as started:
            yield started

    @contextmanager
    def _started(
        self, to: Attributes, about: Attributes, links: Sequence[Link], parent: Context | None
    ) -> Generator[tuple[Span, Context]]:
        """A span that is current within, and what is to be carried of it."""
        told = operation("send", "send", self._app.settings) | to | about
        name = f"send {to[names.DESTINATION]}" if names.DESTINATION in to else "send"
        span = self._tracer.start_span(name, parent, SpanKind.PRODUCER, told, links)
        context = trace.set_span_in_context(span, parent)
        token = contexts.attach(context)
        try:
            yield span, context
        except BaseException as error:
            tell_error(span, error)
            raise
        finally:
            contexts.detach(token)
            span.end()

    def _schedule(self, name: str) -> SpanContext:
        if name not in self._schedules:
            span = self._tracer.start_span(f"schedule {name}", Context(), attributes={names.SCHEDULE: name})
            span.end()
            self._schedules[name] = span.get_span_context()
        return self._schedules[name]
