"""What waits to be sent: in the order it was put, bounded by number and by bytes.

It is the same for tasks and for threads: each step is whole, whoever takes it. It knows no
broker and no clock; `tank.py` sends what waits here.
"""

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextvars import Context
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from amqpjobs.envelope import Envelope
from amqpjobs.errors import EnqueueError


@dataclass(slots=True, eq=False)
class Waiting:
    """A job that waits, and how far it has come."""

    envelope: Envelope
    size: int
    #: On the clock that only goes forward.
    put_at: float
    #: Whether it is to be parked when no queue is bound for it.
    parks: bool = False
    #: In which the middlewares run; None once the job has passed them, or when there are none.
    context: Context | None = None
    #: Whether it was ever sent, so that it may be queued.
    is_tried: bool = False
    is_under_way: bool = False
    number: int = 0

    def is_over(self, now: datetime) -> bool:
        """Whether nobody wants it any more."""
        expires_at = self.envelope.expires_at
        return expires_at is not None and expires_at <= now


class Backlog:
    """Jobs that wait, errors of those that were dropped, and who waits for the end of it."""

    def __init__(self, *, limit: int, max_bytes: int) -> None:
        self._limit = limit
        self._max_bytes = max_bytes
        self._jobs: dict[int, Waiting] = {}
        self._size = 0
        self._last = 0
        self._errors = deque[EnqueueError](maxlen=limit)
        self._watchers: list[tuple[int, Future[None]]] = []
        self._sender: object | None = None
        # Held for a moment only; a signal handler may come in just that moment, and put one more.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job: Waiting) -> bool:
        return job.number in self._jobs

    @property
    def size(self) -> int:
        """Bytes of all that waits."""
        return self._size

    @property
    def oldest(self) -> Waiting | None:
        with self._lock:
            return next(iter(self._jobs.values()), None)

    def put(self, job: Waiting) -> bool:
        """Whether there was room for it."""
        with self._lock:
            if len(self._jobs) >= self._limit or self._size + job.size > self._max_bytes:
                return False
            self._last += 1
            job.number = self._last
            self._jobs[job.number] = job
            self._size += job.size
            return True

    def remove(self, job: Waiting, error: EnqueueError | None = None) -> bool:
        """Let one go, confirmed or with its error. Whether it was still there."""
        with self._lock:
            if self._jobs.pop(job.number, None) is None:
                return False
            self._size -= job.size
            if error is not None:
                self._errors.append(error)
            self._tell_watchers()
            return True

    def window(self, count: int) -> Sequence[Waiting]:
        """The oldest ones."""
        with self._lock:
            return list(islice(self._jobs.values(), count))

    def until(self, number: int | None) -> Sequence[Waiting]:
        """All that were put no later than this one, or simply all."""
        with self._lock:
            return [job for job in self._jobs.values() if number is None or job.number <= number]

    def expired(self, now: datetime) -> Sequence[Waiting]:
        """Those whose time has passed while they waited. One on its way is not looked at."""
        with self._lock:
            return [job for job in self._jobs.values() if not job.is_under_way and job.is_over(now)]

    def take_errors(self) -> list[EnqueueError]:
        """Of those dropped since the last call; the latest `limit` of them."""
        with self._lock:
            errors, self._errors = self._errors, deque[EnqueueError](maxlen=self._limit)
            return list(errors)

    def done(self) -> "tuple[int, Future[None]]":
        """The number of the last one put, and what is done when all up to it are gone."""
        future: Future[None] = Future()
        with self._lock:
            self._watchers.append((self._last, future))
            self._tell_watchers()
            return self._last, future

    def forget(self, future: "Future[None]") -> None:
        """Who waited waits no more."""
        with self._lock:
            self._watchers = [each for each in self._watchers if each[1] is not future]

    # One sender at a time: whoever puts the first job begins it, and it ends with the last one.

    def claim(self) -> object | None:
        """The right to send, when something waits and nobody has it."""
        with self._lock:
            if self._sender is not None or not self._jobs:
                return None
            self._sender = object()
            return self._sender

    def is_done(self, sender: object) -> bool:
        """Whether nothing waits; the right to send has then ended."""
        with self._lock:
            if self._jobs:
                return False
            self.release(sender)
            return True

    def release(self, sender: object) -> None:
        """Whatever became of the sender. Any number of times."""
        with self._lock:
            if self._sender is sender:
                self._sender = None

    def _tell_watchers(self) -> None:
        first = next(iter(self._jobs), None)
        told = [each for each in self._watchers if first is None or each[0] < first]
        self._watchers = [each for each in self._watchers if each not in told]
        for _, future in told:
            if future.set_running_or_notify_cancel():
                future.set_result(None)
