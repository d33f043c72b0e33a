"""What enqueue takes and gives, in the words of both ends."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Generic, Literal, Protocol, TypedDict, TypeVar, cast

from typing_extensions import Unpack

from amqpjobs.clock import Seconds, in_seconds
from amqpjobs.errors import ResultError
from amqpjobs.job import Job
from amqpjobs.wire import HeaderValue, maker_of

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

#: How many jobs a buffer holds by default, and how many bytes of bodies and headers.
BUFFER_LIMIT = 10_000
BUFFER_BYTES = 64 * 1024 * 1024


#: Seconds that a result is awaited, unless somebody says for how long. Never for ever: an answer can be lost.
RESULT_WITHIN = 30.0


class CallOptions(TypedDict, total=False):
    """What of the options of an enqueue goes with `call`, whose own `timeout` is for the answer."""

    #: Not before so long from now.
    delay: Seconds | None
    #: Not before this time; it must carry a time zone. Not together with `delay`.
    run_at: datetime | None
    #: Not started any more after so long from now; it then ends as expired.
    expires: Seconds | None
    #: Straight to this one queue, past all bindings.
    queue: str | None
    #: 0 to 255, higher first; what the queue makes of it is the broker's (see the README).
    priority: int | None
    #: Headers of your own; they survive every retry.
    headers: Mapping[str, HeaderValue] | None
    #: An id of your own, 1 to 255 bytes of printable text; default a fresh UUIDv7.
    job_id: str | None
    #: How often the job may run.
    max_attempts: int | None
    #: How long the enqueue may take (default: the setting `enqueue_timeout`, 5 s).
    deadline: Seconds | None
    #: When no queue is bound for the kind: raise UnroutableError, or let the job wait in the
    #: parked queue until a worker binds it.
    on_unroutable: Literal["raise", "park"]


class EnqueueOptions(CallOptions, total=False):
    """The producer's side of the options; each wins over the job class and the settings.

    Spans are seconds or timedeltas.
    """

    #: How long each run may take.
    timeout: Seconds | None
    #: Whether the worker shall answer, for `handle.result()`. Without it nothing is sent, and nothing costs.
    reply: bool


class Awaited(Protocol):
    """The answer to a job, which may be still to come."""

    async def result(self, timeout: float) -> object:
        """Raises ResultError and its kin."""
        ...


@dataclass(frozen=True, slots=True)
class JobHandle(Generic[R_co]):
    """A confirmed job: its id, and the type of its result, which `result` waits for."""

    job_id: str
    kind: str
    #: Whether it waits in the parked queue for its kind to be bound.
    is_parked: bool = False
    _result: type[R_co] | None = field(default=None, repr=False, compare=False)
    _answer: Awaited | None = field(default=None, repr=False, compare=False)

    @property
    def has_reply(self) -> bool:
        """Whether the worker was asked to answer."""
        return self._answer is not None

    async def result(self, timeout: Seconds = RESULT_WITHIN) -> R_co:
        """What the handler of a job enqueued with `reply=True` returned, waited for `timeout` seconds at most (30).

        It may be asked again, also after a timeout, for as long as the handle is kept. Where two services run the
        kind, the first answer counts.

        Raises JobFailedError when the job became a dead letter, JobCancelledError when it cancelled itself or
        expired, ResultTimeoutError, and ResultError for an answer that does not fit the job class, and for a job
        that was enqueued without `reply=True`.
        """
        if self._answer is None:
            raise unasked(self.kind, self.job_id)
        return cast("R_co", await self._answer.result(in_seconds(timeout)))


@dataclass(frozen=True, slots=True)
class BlockingHandle(Generic[R_co]):
    """A job confirmed to a `BlockingClient`: its id, and the type of its result, which `result` waits for."""

    job_id: str
    kind: str
    #: Whether it waits in the parked queue for its kind to be bound.
    is_parked: bool = False
    _wait: Callable[[float], R_co] | None = field(default=None, repr=False, compare=False)

    def result(self, timeout: Seconds = RESULT_WITHIN) -> R_co:
        """The same as `JobHandle.result`, in the thread that asks.

        Raises ResultError also when the client was closed meanwhile, and in a process forked since; RuntimeError in a
        thread whose event loop runs.
        """
        if self._wait is None:
            raise unasked(self.kind, self.job_id)
        return self._wait(in_seconds(timeout))


make_handle = maker_of(JobHandle)


@dataclass(frozen=True, slots=True)
class BufferedJob(Generic[R_co]):
    """A job that waits in a buffer, and is not confirmed: its id, and the type of its result."""

    job_id: str
    kind: str
    _result: type[R_co] | None = field(default=None, repr=False, compare=False)


class Enqueue(Protocol):
    """How a job is enqueued, whoever does it."""

    async def __call__(self, job: Job[R], **options: Unpack[EnqueueOptions]) -> JobHandle[R]: ...


def unasked(kind: str, job_id: str) -> ResultError:
    """For who awaits what nobody will tell."""
    error = ResultError(
        f"Nobody answers for job {kind!r} ({job_id}): it was enqueued without a reply. Write "
        "`handle = await app.enqueue(job, reply=True)` and then `await handle.result(timeout=10)`, or both in one: "
        "`await app.call(job, timeout=10)`."
    )
    error.job_id = job_id
    return error


def refuse_reply(options: EnqueueOptions, where: str) -> None:
    """Raises ValueError where nobody would get the handle to await a result with."""
    if options.get("reply"):
        raise ValueError(f"A job {where} has no reply: use `enqueue` or `call` for one whose result is awaited.")


def result_of(job: Job[R]) -> type[R]:
    """The result type of a job object."""
    return _result_type(type(job))


@lru_cache(1024)
def _result_type(job: type[Job[R]]) -> type[R]:
    return job.result_type()
