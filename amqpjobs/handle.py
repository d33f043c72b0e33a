"""What enqueue takes and gives, in the words of both ends."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Generic, Literal, Protocol, TypedDict, TypeVar

from typing_extensions import Unpack

from amqpjobs.clock import Seconds
from amqpjobs.job import Job
from amqpjobs.wire import HeaderValue, maker_of

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

#: How many jobs a buffer holds by default, and how many bytes of bodies and headers.
BUFFER_LIMIT = 10_000
BUFFER_BYTES = 64 * 1024 * 1024


class EnqueueOptions(TypedDict, total=False):
    """The producer's side of the options; each wins over the job class and the settings.

    Spans are seconds or timedeltas.
    """

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
    #: How often the job may run, and how long each run may take.
    max_attempts: int | None
    timeout: Seconds | None
    #: How long this call may take (default: the setting `enqueue_timeout`, 5 s).
    deadline: Seconds | None
    #: When no queue is bound for the kind: raise UnroutableError, or let the job wait in the
    #: parked queue until a worker binds it.
    on_unroutable: Literal["raise", "park"]


@dataclass(frozen=True, slots=True)
class JobHandle(Generic[R_co]):
    """A confirmed job: its id, and the type of its result."""

    job_id: str
    kind: str
    #: Whether it waits in the parked queue for its kind to be bound.
    is_parked: bool = False
    _result: type[R_co] | None = field(default=None, repr=False, compare=False)


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


def result_of(job: Job[R]) -> type[R]:
    """The result type of a job object."""
    return _result_type(type(job))


@lru_cache(1024)
def _result_type(job: type[Job[R]]) -> type[R]:
    return job.result_type()
