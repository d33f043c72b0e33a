"""What follows an attempt remembers it, and settling is a span of its own where that is asked for.

A settle middleware runs in the task of its run, so it finds there which attempt that was.
"""

from collections.abc import Generator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode, Tracer

from amqpjobs.envelope import Envelope
from amqpjobs.middleware import SettleNext
from amqpjobs.outcome import Dead, DeadReason, Expired, Outcome, Retrying, Returned, Snoozed
from amqpjobs.telemetry import names
from amqpjobs.telemetry.attempts import Attempts, last_attempt
from amqpjobs.telemetry.carrier import remembering
from amqpjobs.telemetry.outcomes import tell_outcome, word_of
from amqpjobs.telemetry.spans import Observed, identity, operation, taken_from, tell_error
from amqpjobs.wire import Delivery

#: Ends that no handler has a part in.
_WITHOUT_RUN = frozenset(
    {
        DeadReason.INVALID_ARGUMENTS,
        DeadReason.UNREADABLE,
        DeadReason.TOO_LARGE,
        DeadReason.UNKNOWN_KIND,
        DeadReason.UNKNOWN_VERSION,
    }
)


class Settling:
    """A settle middleware."""

    def __init__(self, app: Observed, tracer: Tracer, attempts: Attempts) -> None:
        self._app = app
        self._tracer = tracer
        self._attempts = attempts

    async def __call__(
        self, delivery: Delivery, envelope: Envelope | None, outcome: Outcome, following: SettleNext
    ) -> bool:
        attempt = None if envelope is None else last_attempt(envelope.job_id, envelope.attempt)
        if attempt is None and _never_ran(outcome):
            attempt = self._noted(delivery, envelope, outcome)
        if attempt is not None and envelope is not None and isinstance(outcome, Retrying | Snoozed | Dead):
            envelope = remembering(envelope, attempt)
        if not self._app.settings.trace_settle:
            return await following(delivery, envelope, outcome)
        with self._span(delivery, envelope, outcome, attempt) as span:
            is_settled = await following(delivery, envelope, outcome)
            if not is_settled:
                span.set_status(Status(StatusCode.ERROR, "The channel is gone; the job comes again."))
                span.set_attribute(names.ERROR_TYPE, "channel_closed")
            return is_settled

    def _noted(self, delivery: Delivery, envelope: Envelope | None, outcome: Outcome) -> SpanContext:
        if envelope is not None:
            return self._attempts.without_run(envelope, outcome)
        told = operation("process", "process", self._app.settings)
        told[names.DESTINATION] = self._app.topology.work_queue(delivery.queue)
        span = self._tracer.start_span("process", Context(), SpanKind.CONSUMER, told)
        tell_outcome(span, outcome)
        span.end()
        return span.get_span_context()

    @contextmanager
    def _span(
        self, delivery: Delivery, envelope: Envelope | None, outcome: Outcome, attempt: SpanContext | None
    ) -> Generator[Span]:
        word = "nack" if isinstance(outcome, Returned) else "ack"
        told = operation(word, "settle", self._app.settings)
        told |= {names.JOB_OUTCOME: word_of(outcome), names.DELIVERY_TAG: delivery.tag}
        if envelope is None:
            told[names.DESTINATION] = self._app.topology.work_queue(delivery.queue)
        else:
            told |= taken_from(envelope, self._app.topology) | identity(envelope)
        parent = trace.set_span_in_context(trace.NonRecordingSpan(attempt or trace.INVALID_SPAN_CONTEXT), Context())
        is_ours = envelope is not None and self._app.registry.get(envelope.kind) is not None
        name = f"{word} {told[names.DESTINATION]}" if is_ours else word
        span = self._tracer.start_span(name, parent, SpanKind.CLIENT, told)
        try:
            yield span
        except BaseException as error:
            tell_error(span, error)
            raise
        finally:
            span.end()


def _never_ran(outcome: Outcome) -> bool:
    if isinstance(outcome, Dead):
        return outcome.reason in _WITHOUT_RUN
    return isinstance(outcome, Expired) or (isinstance(outcome, Snoozed) and outcome.unknown)
