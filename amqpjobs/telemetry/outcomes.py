"""How a run ended, as attributes, events and the status of its span.

A failed attempt is an error whether it is tried again or not. Who snoozes, cancels or expires has not failed.
"""

import asyncio

from opentelemetry.trace import Span, Status, StatusCode

from amqpjobs.clock import is_cancelled
from amqpjobs.codec import RemoteError
from amqpjobs.outcome import (
    OVERRAN,
    Cancelled,
    Dead,
    Outcome,
    Overrun,
    Retrying,
    Returned,
    Snoozed,
)
from amqpjobs.telemetry import names
from amqpjobs.telemetry.spans import Attributes, tell_error, text


def tell_outcome(span: Span, outcome: Outcome) -> None:
    """All that a span says of it."""
    if not span.is_recording():
        return
    span.set_attribute(names.JOB_OUTCOME, word_of(outcome))
    match outcome:
        case Retrying(delay, error):
            _tell_failure(span, error)
            span.add_event(names.RETRYING, {names.EVENT_DELAY: delay})
        case Snoozed(delay, reason):
            span.add_event(names.SNOOZED, {names.EVENT_DELAY: delay, **_reason(reason)})
        case Cancelled(reason):
            span.add_event(names.CANCELLED, _reason(reason))
        case Returned():
            span.add_event(names.RETURNED)
        case Dead(reason, error):
            span.set_attribute(names.JOB_DEAD_REASON, reason.value)
            _tell_failure(span, error)
            span.add_event(names.DEAD, {names.EVENT_REASON: reason.value})
        case _:  # its name says all
            pass


def tell_raised(span: Span, error: BaseException) -> None:
    """A run that came to no outcome: it is cut short, or a middleware raised and the retry policy decides."""
    if isinstance(error, asyncio.CancelledError) and is_cancelled():
        tell_outcome(span, Returned())
    else:
        tell_error(span, error)


def word_of(outcome: Outcome) -> str:
    """`completed`, `retrying`, `snoozed`, `cancelled`, `expired`, `returned` or `dead`."""
    return type(outcome).__name__.lower()


def _tell_failure(span: Span, error: BaseException | None) -> None:
    if error is None:
        span.set_status(Status(StatusCode.ERROR))
        return
    if _is_overrun(error):
        span.add_event(names.TIMED_OUT)
    tell_error(span, error)


def _is_overrun(error: BaseException) -> bool:
    if isinstance(error, RemoteError):
        return str(error).startswith(f"TimeoutError: {OVERRAN}")
    return isinstance(error, Overrun)


def _reason(words: object) -> Attributes:
    return {names.EVENT_REASON: text(words)} if words else {}
