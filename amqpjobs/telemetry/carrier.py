"""Trace context in the headers of a job, and what is read from them again.

The context of the enqueue travels under the names of whatever propagator is configured, W3C trace context and
baggage by default. Headers that begin with `amqpjobs.` ride along through retries and requeues as a user's own do.
What arrives may be hostile: only texts are shown to the propagators.
"""

from dataclasses import dataclass

from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import Link, SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from amqpjobs.deadletters.letter import REQUEUES
from amqpjobs.envelope import Envelope
from amqpjobs.telemetry.names import LINK_TYPE, LinkType
from amqpjobs.wire import Headers, HeaderValue

#: The span of the attempt before, as a W3C traceparent.
PREVIOUS = "amqpjobs.previous-traceparent"
#: How many jobs were enqueued together with this one, itself included.
TOGETHER = "amqpjobs.enqueued-together"
#: A baggage header may have 8,192 bytes by its specification; a longer one is not read.
LONGEST_HEADER = 8_192

_W3C = TraceContextTextMapPropagator()


class _Texts(Getter[Headers]):
    """Of a header table only the texts."""

    def get(self, carrier: Headers, key: str) -> list[str] | None:
        value = carrier.get(key)
        return [value] if isinstance(value, str) and len(value) <= LONGEST_HEADER else None

    def keys(self, carrier: Headers) -> list[str]:
        return list(carrier)


_TEXTS = _Texts()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a job comes from, as far as its headers tell."""

    #: With the enqueue's span, if there is one, and with its baggage.
    context: Context
    enqueue: SpanContext
    previous: SpanContext

    @property
    def apart(self) -> Context:
        """The same without the span, for a trace of its own."""
        return trace.set_span_in_context(trace.INVALID_SPAN, self.context)

    @property
    def links(self) -> list[Link]:
        found = {LinkType.ENQUEUE: self.enqueue, LinkType.PREVIOUS: self.previous}
        return [link_to(span, each) for each, span in found.items() if span.is_valid]


def origin_of(envelope: Envelope) -> Origin:
    context = propagate.extract(envelope.headers, Context(), _TEXTS)
    past = envelope.headers.get(PREVIOUS)
    return Origin(
        context=context,
        enqueue=_span_in(context),
        previous=_past(past) if isinstance(past, str) else trace.INVALID_SPAN_CONTEXT,
    )


def link_to(span: SpanContext, what: LinkType) -> Link:
    return Link(span, {LINK_TYPE: what.value})


def own_context(envelope: Envelope) -> SpanContext:
    """The one that its enqueuer has put into the headers himself; invalid where there is none."""
    if not envelope.headers:
        return trace.INVALID_SPAN_CONTEXT
    return _span_in(propagate.extract(envelope.headers, Context(), _TEXTS))


def carried(envelope: Envelope, context: Context | None, *, together: int = 0) -> Envelope:
    """With this context in its headers, if one is given; its attempts are still to come."""
    headers: dict[str, HeaderValue] = {**envelope.headers, **({} if context is None else _injected(context))}
    for name in (PREVIOUS, TOGETHER):  # of another job, whose headers its enqueuer has handed on
        headers.pop(name, None)
    if together:
        headers[TOGETHER] = together
    return envelope.evolve(headers=headers)


def adopted(envelope: Envelope) -> Envelope:
    """With the current context in its headers, whatever was there."""
    return envelope.evolve(headers={**envelope.headers, **_injected(contexts.get_current())})


def remembering(envelope: Envelope, attempt: SpanContext) -> Envelope:
    """With the attempt that has just been, for the next one."""
    headers = dict[str, str]()
    _W3C.inject(headers, trace.set_span_in_context(trace.NonRecordingSpan(attempt), Context()))
    return envelope.evolve(headers={**envelope.headers, PREVIOUS: headers["traceparent"]})


def requeues_of(envelope: Envelope) -> int:
    return _number(envelope.headers, REQUEUES)


def together_of(envelope: Envelope) -> int:
    return _number(envelope.headers, TOGETHER)


def _injected(context: Context) -> dict[str, str]:
    headers = dict[str, str]()
    propagate.inject(headers, context)
    return headers


def _past(traceparent: str) -> SpanContext:
    return _span_in(_W3C.extract({"traceparent": traceparent}, Context()))


def _span_in(context: Context) -> SpanContext:
    return trace.get_current_span(context).get_span_context()


def _number(headers: Headers, name: str) -> int:
    value = headers.get(name)
    return value if isinstance(value, int) else 0
