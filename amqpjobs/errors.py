"""What can go wrong, as one tree.

AmqpJobsError
├─ DefinitionError   wrong code, raised at import: DuplicateKindError, HandlerMismatchError
├─ SettingsError     a wrong environment variable, pyproject.toml entry or URL
├─ BrokerError       BrokerUnavailableError, AccessRefusedError, TopologyMismatchError
├─ EnqueueError      UnroutableError, UnconfirmedError, RefusedError, TooLargeError, EnqueueTimeoutError,
│                    EnqueueManyError (some jobs of a batch; holds an EnqueueError for each),
│                    BufferFullError, FlushError (some jobs of a buffer; holds an EnqueueError for each)
├─ ScheduleError     a beat did not do what it was told about a schedule
├─ ExpositionError   the metrics cannot be had as Prometheus' text
├─ ProcessDiedError  the process of a job's handler crashed or was killed
├─ DecodeError       UnreadableError, UnknownKindError, UnknownVersionError, InvalidArgumentsError
└─ ResultError       ResultTimeoutError, JobFailedError, JobCancelledError

Every text says what happened, with what, and what to do. Wishes of a job (`Retry`,
`Snooze`, `Cancel`) are not errors and live in `outcome.py`.
"""

from collections.abc import Mapping, Sequence

#: Ids that a text shows; the error itself has all.
SHOWN_IDS = 10


class AmqpJobsError(Exception):
    """Base of all errors of amqpjobs."""


class DefinitionError(AmqpJobsError):
    """A job class, handler or app is defined wrongly. Raised at import."""


class DuplicateKindError(DefinitionError):
    """Two job classes of one app answer to the same kind or alias."""


class HandlerMismatchError(DefinitionError):
    """A handler's parameters or result do not fit its job class."""


class SettingsError(AmqpJobsError):
    """A setting cannot be used."""


class BrokerError(AmqpJobsError):
    """The broker is away, refuses us, or holds something else than we expect."""


class BrokerUnavailableError(BrokerError):
    """No connection to the broker, or it was lost."""


class AccessRefusedError(BrokerError):
    """The broker refused the login, the vhost or a permission."""


class TopologyMismatchError(BrokerError):
    """A queue or exchange exists with other properties than ours, and they matter.

    With AMQPJOBS_DECLARE=false also: it is missing.
    """


class EnqueueError(AmqpJobsError):
    """A job was not enqueued, or nobody can tell whether it was.

    `job_id` is the id the job has or would have had, where one was already given.
    """

    job_id: str | None = None


class UnroutableError(EnqueueError):
    """No queue is bound for the job. Nothing was enqueued."""


class UnconfirmedError(EnqueueError):
    """The connection was lost before the broker confirmed: the job may or may not be queued.

    Enqueue it again under the same `job_id`; handlers that must not run twice compare ids.
    """


class RefusedError(EnqueueError):
    """The broker refused the message (a full queue, or no permission). Nothing was enqueued."""


class TooLargeError(EnqueueError):
    """Body or headers are larger than we or the broker accept. Nothing was sent."""


class EnqueueTimeoutError(EnqueueError):
    """The deadline passed, also while the broker was away. The job may or may not be queued."""


class EnqueueManyError(EnqueueError):
    """Some jobs of a batch were not enqueued.

    `errors` maps the position of each failed job to its error; `enqueued` maps the
    position of each confirmed job to its id.
    """

    def __init__(self, enqueued: Mapping[int, str], errors: Mapping[int, EnqueueError]) -> None:
        self.enqueued = dict(enqueued)
        self.errors = dict(errors)
        first = self.errors[min(self.errors)]
        super().__init__(
            f"{len(self.errors)} of {len(self.errors) + len(self.enqueued)} jobs were not enqueued; "
            f"the first, at position {min(self.errors)}: {first}"
        )


class BufferFullError(EnqueueError):
    """A buffer holds as much as it may: the job was not taken.

    `waiting` is how many jobs wait, and `seconds` for how long none of them was confirmed.
    """

    def __init__(self, text: str, *, waiting: int, seconds: float) -> None:
        self.waiting = waiting
        self.seconds = seconds
        super().__init__(text)


class FlushError(EnqueueError):
    """Some jobs of a buffer are not confirmed. `errors` has one for each, with its `job_id`.

    First those that were dropped, then those that still wait (after a `flush`) or that were
    given up (at the end of the buffer), each in the order they were put.
    """

    def __init__(self, errors: Sequence[EnqueueError]) -> None:
        self.errors = list(errors)
        ids = [str(each.job_id) for each in self.errors]
        more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
        super().__init__(
            f"{len(ids)} jobs of the buffer are not confirmed: {', '.join(ids[:SHOWN_IDS])}{more}. "
            f"The first: {self.errors[0]}"
        )


class ScheduleError(AmqpJobsError):
    """A beat refused to add, remove, pause, resume or trigger a schedule, or could not."""


class ExpositionError(AmqpJobsError):
    """The metrics cannot be had as Prometheus' text: a package is missing, or a meter provider is set already."""


class ProcessDiedError(AmqpJobsError):
    """The process that ran the handler ended before it had an outcome: a crash or a kill."""


class DecodeError(AmqpJobsError):
    """A message cannot be turned into a job."""


class UnreadableError(DecodeError):
    """Properties or headers are not what the wire format says."""


class UnknownKindError(DecodeError):
    """No handler for the kind."""


class UnknownVersionError(DecodeError):
    """The payload is of a newer version than this code knows."""


class InvalidArgumentsError(DecodeError):
    """The payload does not fit the job class. `problems` lists what is wrong, without the values."""

    def __init__(self, text: str, problems: Sequence[str] = ()) -> None:
        self.problems = list(problems)
        super().__init__(text)


class ResultError(AmqpJobsError):
    """The result of a job cannot be had, as when none was asked for, or an answer came that does not fit.

    `job_id` is the job's; `came` is the body of such an answer.
    """

    job_id: str | None = None
    came: bytes | None = None


class ResultTimeoutError(ResultError):
    """No answer came in time. The job may wait, run, or have ended with its answer lost."""


class JobFailedError(ResultError):
    """The job has ended as a dead letter, `reason` says why.

    `error_type`, `message` and `traceback` are text, as the worker told them of the last error.
    """

    def __init__(self, text: str, *, reason: str, error_type: str, message: str, traceback: str) -> None:
        self.reason = reason
        self.error_type = error_type
        self.message = message
        self.traceback = traceback
        super().__init__(text)
        if traceback:
            self.add_note(f"In the worker:\n{traceback}")


class JobCancelledError(ResultError):
    """The job has ended without a result: `state` is "cancelled" or "expired", `reason` what was said to it."""

    def __init__(self, text: str, *, state: str, reason: str = "") -> None:
        self.state = state
        self.reason = reason
        super().__init__(text)
