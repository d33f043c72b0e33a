"""A buffer for threads: what `buffer.py` does, in the thread of a `BlockingClient`.

All that waits belongs to the process that put it: after a fork the child's buffer is empty,
and the parent sends its own.
"""

import atexit
import logging
import os
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from typing_extensions import Unpack

from amqpjobs.client import Client
from amqpjobs.clock import Seconds, in_seconds
from amqpjobs.engine import LAST_CALLS, refuse_in_a_loop
from amqpjobs.errors import EnqueueError, FlushError
from amqpjobs.handle import BufferedJob, EnqueueOptions
from amqpjobs.job import Job
from amqpjobs.producer import Producing
from amqpjobs.tank import Tank

_log = logging.getLogger(__name__)

R = TypeVar("R")

#: Begins a call in the client's thread.
Begin = Callable[[Callable[[Client], Coroutine[Any, Any, None]]], "Future[None]"]


class BlockingBuffer:
    """Jobs that wait in memory until the broker has confirmed them. Made by `BlockingClient.buffer`.

    What a `Buffer` promises, and what it does not: memory only, a crash loses what waits. Any
    number of threads may use it. The end of the interpreter flushes it for 5 s at most and logs
    what was not confirmed; a process that is killed does neither. Close it before its client.
    """

    def __init__(self, app: Producing, begin: Begin, *, limit: int, max_bytes: int, timeout: Seconds | None) -> None:
        self._begin_call = begin
        self._timeout = app.settings.enqueue_timeout if timeout is None else in_seconds(timeout)
        self._make_tank: Callable[[], Tank] = partial(Tank, app, limit=limit, max_bytes=max_bytes)
        #: By pid. A dict's own methods are atomic, so no lock is needed that a fork might leave locked.
        self._tanks = {os.getpid(): self._make_tank()}
        #: What sends for a tank, while something waits there.
        self._work: dict[Tank, Future[None]] = {}
        self._is_open = True
        self._context = copy_context()
        _open.add(self)

    def enqueue(self, job: Job[R], **options: Unpack[EnqueueOptions]) -> BufferedJob[R]:
        """Put a job aside and return at once; see `Buffer.enqueue`."""
        if not self._is_open:
            raise EnqueueError("The buffer is closed.")
        tank = self._tank
        handle = tank.put(job, options)
        self._begin(tank)
        return handle

    def flush(self, timeout: Seconds | None = None) -> None:
        """Wait until all that were put so far are confirmed; see `Buffer.flush`."""
        refuse_in_a_loop()
        tank = self._tank
        last = self._gone(tank, self._timeout if timeout is None else in_seconds(timeout))
        if problem := tank.problem(last):
            raise problem

    def close(self, timeout: Seconds | None = None) -> None:
        """Take no more jobs, flush, and drop what is not confirmed then. Any number of times.

        Raises FlushError for those dropped now and since the last flush.
        """
        refuse_in_a_loop()
        if problem := self._end(self._timeout if timeout is None else in_seconds(timeout)):
            raise problem

    def __len__(self) -> int:
        return len(self._tank.backlog)

    @property
    def oldest(self) -> float:
        """For how many seconds the oldest job has waited; 0 when none waits."""
        return self._tank.oldest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.end_and_log(self._timeout)

    def end_and_log(self, timeout: float) -> None:
        """Close, where nobody can be told but by the log: another error is on its way, or the interpreter ends."""
        if problem := self._end(timeout):
            _log.error("%s", problem)

    @property
    def _tank(self) -> Tank:
        pid = os.getpid()
        tank = self._tanks.get(pid)
        if tank is None:
            tank = self._tanks.setdefault(pid, self._make_tank())
            for other in [each for each in list(self._tanks) if each != pid]:
                self._tanks.pop(other, None)
        return tank

    def _end(self, timeout: float) -> FlushError | None:
        self._is_open = False
        tank = self._tank
        try:
            self._gone(tank, timeout)
        except BaseException:
            if problem := tank.give_up():
                _log.error("%s", problem)
            raise
        finally:
            if (work := self._work.pop(tank, None)) is not None:
                work.cancel()
        return tank.give_up()

    def _begin(self, tank: Tank) -> None:
        """When no thread can be had, the next put or flush tries again."""
        sender = tank.backlog.claim()
        if sender is None:
            return

        def release(work: "Future[None]") -> None:
            tank.backlog.release(sender)
            if self._work.get(tank) is work:
                self._work.pop(tank, None)

        try:
            # Not in the context of whoever happens to put the first job.
            work = self._context.copy().run(self._begin_call, lambda client: self._drain(tank, sender, client))
        except BaseException as error:
            tank.backlog.release(sender)
            if not isinstance(error, EnqueueError):
                raise
        else:
            self._work[tank] = work
            work.add_done_callback(release)

    async def _drain(self, tank: Tank, sender: object, client: Client) -> None:
        """A method, so that a buffer that nobody holds is still there for the interpreter's exit."""

        async def same() -> Client:
            return client

        await tank.drain(sender, same)

    def _gone(self, tank: Tank, seconds: float) -> int:
        """Wait until all put so far are gone, or the time is over. The number of the last one."""
        last, gone = tank.backlog.done()
        try:
            self._begin(tank)
            with suppress(TimeoutError):
                gone.result(seconds)
        finally:
            tank.backlog.forget(gone)
        return last


_open = weakref.WeakSet[BlockingBuffer]()


def _end_all() -> None:
    """Before the engines end, as they were registered first."""
    buffers = list(_open)
    for buffer in buffers:
        buffer.end_and_log(LAST_CALLS / len(buffers))


atexit.register(_end_all)
