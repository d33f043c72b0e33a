"""How a run can end, and what a job may wish.

`execution.py` returns an outcome; `settle.py` alone acts on it. Wishes are what a handler
raises to steer its own outcome; they are not errors.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from amqpjobs.clock import Seconds, in_seconds


class DeadReason(StrEnum):
    """Why a job ended in a dead-letter queue. The list is closed."""

    #: Every attempt failed; the error is the last one's.
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    #: The retry policy does not try again after this error.
    NOT_RETRYABLE = "not_retryable"
    #: The payload does not fit the job class.
    INVALID_ARGUMENTS = "invalid_arguments"
    #: The properties or headers are not what the wire format says.
    UNREADABLE = "unreadable"
    #: The body is larger than the worker accepts.
    TOO_LARGE = "too_large"
    #: No worker of the queue knew the kind for the whole window.
    UNKNOWN_KIND = "unknown_kind"
    #: No worker of the queue knew so new a payload version for the whole window.
    UNKNOWN_VERSION = "unknown_version"
    #: What should have followed (a retry, an effect) could not be published, however often tried.
    UNSETTLED = "unsettled"


@dataclass(frozen=True, slots=True)
class Completed:
    """The handler returned."""

    result: object = None


@dataclass(frozen=True, slots=True)
class Retrying:
    """The attempt failed; the next one starts after `delay` seconds."""

    delay: float
    #: Not compared: two exceptions are never equal.
    error: BaseException | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Snoozed:
    """Not now: the same attempt starts again after `delay` seconds.

    `unknown` tells that this worker does not know the kind or version, and waits for one that does.
    """

    delay: float
    reason: str = ""
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The job asked not to be run any more."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Expired:
    """Its time had passed before it started."""


@dataclass(frozen=True, slots=True)
class Returned:
    """Handed back to the queue; no attempt is used."""


@dataclass(frozen=True, slots=True)
class Dead:
    """It goes to the dead-letter queue."""

    reason: DeadReason
    error: BaseException | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Dropped:
    """Not run at all, because another copy of the same tick was started.

    No outcome of a run: neither middlewares nor effects hear of it. `is_over` is whether that other run has ended.
    """

    is_over: bool = False


Outcome = Completed | Retrying | Snoozed | Cancelled | Expired | Returned | Dead


#: What an overrun says first; from another process only its words come.
OVERRAN = "It ran longer than its timeout"


class Overrun(TimeoutError):
    """The attempt took longer than its timeout."""


#: To whoever reads a dead letter it is no more than that.
Overrun.__name__ = Overrun.__qualname__ = "TimeoutError"


class Retry(Exception):
    """Raise to fail this attempt and be tried again, after `delay` seconds or as the policy says."""

    def __init__(self, reason: str = "", *, delay: Seconds | None = None) -> None:
        self.delay = None if delay is None else max(0.0, in_seconds(delay))
        super().__init__(reason or "the job asked to be tried again")


class Snooze(Exception):
    """Raise to be run again after `delay` seconds. It is no failure and uses no attempt."""

    def __init__(self, delay: Seconds, reason: str = "") -> None:
        self.delay = max(0.0, in_seconds(delay))
        self.reason = reason
        super().__init__(reason or f"snoozed for {self.delay:g} s")


class Cancel(Exception):
    """Raise to end the job here: neither a success nor a failure, and no dead letter."""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        super().__init__(reason or "the job cancelled itself")
