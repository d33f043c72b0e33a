"""What a handler can know and do beside its job.

`JobContext` is the handler's second parameter; `current_context()` finds it from code that
has none at hand, also in the handler's thread. A batch handler gets a `BatchContext`, which
holds the `JobContext` of each of its jobs.
"""

import logging
from collections.abc import MutableMapping, Sequence
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any, Generic

from typing_extensions import TypeVar, Unpack

from amqpjobs.clock import Clock
from amqpjobs.envelope import Envelope
from amqpjobs.handle import Enqueue, EnqueueOptions, JobHandle
from amqpjobs.job import Job

R = TypeVar("R")
S_co = TypeVar("S_co", covariant=True, default=Any)

#: Where handlers' own log lines go, unless they name a logger.
_log = logging.getLogger("amqpjobs.job")


class JobLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose lines carry job_id, kind and attempt."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


class JobContext(Generic[S_co]):
    """One attempt of one job, seen from inside its handler."""

    __slots__ = ("_clock", "_deadline", "_end", "_enqueue", "_log", "envelope", "max_attempts", "state")

    def __init__(
        self, envelope: Envelope, state: S_co, max_attempts: int, clock: Clock, end: float | None, enqueue: Enqueue
    ) -> None:
        """`end` is when it is cut off, by the clock's monotonic time."""
        self.envelope = envelope
        #: What the app's lifespan yielded.
        self.state = state
        #: How often it may run in all.
        self.max_attempts = max_attempts
        self._clock = clock
        self._enqueue = enqueue
        self._log: JobLogger | None = None
        self._end = end
        self._deadline: datetime | None = None

    def end_at(self, end: float | None) -> None:
        """Let the clock's monotonic time say when it is cut off."""
        self._end, self._deadline = end, None

    @property
    def deadline(self) -> datetime | None:
        """When this attempt is cut off (aware, UTC), or None."""
        if self._deadline is None and self._end is not None:
            self._deadline = self._clock.now() + timedelta(seconds=self._end - self._clock.monotonic())
        return self._deadline

    @property
    def job_id(self) -> str:
        return self.envelope.job_id

    @property
    def kind(self) -> str:
        return self.envelope.kind

    @property
    def attempt(self) -> int:
        """This run, from 1."""
        return self.envelope.attempt

    @property
    def is_last_attempt(self) -> bool:
        """Whether a failure now is final."""
        return self.attempt >= self.max_attempts

    @property
    def queue(self) -> str:
        """The queue it came from."""
        return self.envelope.queue

    @property
    def log(self) -> JobLogger:
        """A logger whose lines carry the job's fields."""
        if self._log is None:
            self._log = JobLogger(_log, {"job_id": self.job_id, "kind": self.kind, "attempt": self.attempt})
        return self._log

    async def enqueue(self, job: Job[R], **options: Unpack[EnqueueOptions]) -> JobHandle[R]:
        """Enqueue another job, with this one as its parent. See `App.enqueue`."""
        if current_context() is self:
            return await self._enqueue(job, **options)
        token = _current.set(self)  # a batch handler speaks for one of its jobs
        try:
            return await self._enqueue(job, **options)
        finally:
            _current.reset(token)

    def __repr__(self) -> str:
        return f"JobContext({self.kind!r}, job_id={self.job_id!r}, attempt={self.attempt})"


class BatchContext(Generic[S_co]):
    """One run of a batch handler, for several jobs at once."""

    __slots__ = ("_log", "contexts", "deadline", "state")

    def __init__(self, *, contexts: Sequence[JobContext[S_co]], state: S_co, deadline: datetime | None) -> None:
        #: The context of each job, in the order of the jobs; `enqueue` through the one that is to be the parent.
        self.contexts = contexts
        #: What the app's lifespan yielded.
        self.state = state
        #: When this run is cut off (aware, UTC), or None: the smallest timeout of its jobs decides.
        self.deadline = deadline
        self._log: JobLogger | None = None

    @property
    def kind(self) -> str:
        return self.contexts[0].kind

    @property
    def queue(self) -> str:
        """The queue they came from."""
        return self.contexts[0].queue

    @property
    def log(self) -> JobLogger:
        """A logger whose lines carry the kind and the number of jobs; each job has its own in `contexts`."""
        if self._log is None:
            self._log = JobLogger(_log, {"kind": self.kind, "jobs": len(self.contexts)})
        return self._log

    def __repr__(self) -> str:
        return f"BatchContext({self.kind!r}, {len(self.contexts)} jobs)"


_current: ContextVar["JobContext[Any] | None"] = ContextVar("amqpjobs_context", default=None)


def current_context() -> JobContext[Any] | None:
    """The context of the job that runs here; None outside of one, and in a batch handler, which runs several."""
    return _current.get()


def enter_context(context: JobContext[Any]) -> None:
    """Make it the current one for this task and what it starts."""
    _current.set(context)
