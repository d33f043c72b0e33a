"""Put a job aside in memory, to be sent soon: for producers that may not wait.

`Buffer.enqueue` checks a job and returns at once. One task sends what waits, in windows that
keep the order, and repeats, under the same job_id, for as long as the broker is away. It
lives only while something waits.

`enqueue` of the app promises more, and stays what one should use: what waits here is lost
with the process.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import copy_context
from types import TracebackType
from typing import Self, TypeVar

from typing_extensions import Unpack

from amqpjobs.client import Client
from amqpjobs.clock import Seconds, end_task, in_seconds
from amqpjobs.errors import EnqueueError
from amqpjobs.handle import BufferedJob, EnqueueOptions
from amqpjobs.job import Job
from amqpjobs.producer import Producing
from amqpjobs.tank import Tank

_log = logging.getLogger(__name__)

R = TypeVar("R")


class Buffer:
    """Jobs that wait in memory until the broker has confirmed them. Made by `App.buffer`.

    `enqueue` never waits. What it promises is this: jobs are sent in the order they were put,
    and again under the same job_id while the broker is away; and each one that is not confirmed
    in the end is told, by an event `JobDropped` and by the error of the next `flush` or of the
    end of the block.

    What it does not promise: it is memory only. A crash, a kill or a lost machine loses all that
    waits. A job that must not be lost belongs into `App.enqueue`, which returns when it is safe.

    `len(buffer)` is how many jobs wait. One that can never be sent (no queue is bound, the broker
    refuses it, it is too large, a middleware raised) is dropped, and so is one that expired while
    it waited. Middlewares run once for each job, when it is first sent, in the context of its put.
    """

    def __init__(
        self,
        app: Producing,
        client: Callable[[], Awaitable[Client]],
        *,
        limit: int,
        max_bytes: int,
        timeout: Seconds | None,
    ) -> None:
        self._clock = app.clock
        self._client = client
        self._timeout = app.settings.enqueue_timeout if timeout is None else in_seconds(timeout)
        self._tank = Tank(app, limit=limit, max_bytes=max_bytes)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        # Not that of whoever happens to put the first job.
        self._context = copy_context()

    def enqueue(self, job: Job[R], **options: Unpack[EnqueueOptions]) -> BufferedJob[R]:
        """Put a job aside and return at once: it is checked as by `App.check`, and not confirmed.

        Options are those of `App.enqueue` but `deadline`; `delay` and `expires` count from now.
        Raises BufferFullError, and what `App.check` raises.
        """
        self._check_open()
        handle = self._tank.put(job, options)
        self._begin()
        return handle

    async def flush(self, timeout: Seconds | None = None) -> None:
        """Wait until all that were put so far are confirmed, for `timeout` seconds at most (5 by default).

        Raises FlushError for those that still wait then, and go on waiting, and for those
        dropped since the last flush.
        """
        self._check_open()
        seconds = self._timeout if timeout is None else in_seconds(timeout)
        if problem := self._tank.problem(await self._gone(seconds)):
            raise problem

    def __len__(self) -> int:
        return len(self._tank.backlog)

    @property
    def oldest(self) -> float:
        """For how many seconds the oldest job has waited; 0 when none waits."""
        return self._tank.oldest

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop = None
        may_raise = False
        try:
            await self._gone(self._timeout)
            if self._task is not None:
                await end_task(self._task)
            may_raise = error is None
        finally:
            if self._task is not None:
                self._task.cancel()  # the wait for its end may have been cut short
            if problem := self._tank.give_up():
                if may_raise:
                    raise problem
                _log.error("%s", problem)  # another error is on its way

    def _check_open(self) -> None:
        if self._loop is None:
            raise EnqueueError("The buffer is not open: use it within `async with app.buffer() as buffer`.")
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("A buffer is for one event loop. For threads there is `BlockingClient(app).buffer()`.")

    def _begin(self) -> None:
        backlog = self._tank.backlog
        if (sender := backlog.claim()) is not None:
            work = self._tank.drain(sender, self._client)
            self._task = asyncio.create_task(work, name="amqpjobs buffer", context=self._context)
            self._task.add_done_callback(lambda task: backlog.release(sender))

    async def _gone(self, seconds: float) -> int:
        """Wait until all put so far are gone, or the time is over. The number of the last one."""
        self._begin()
        last, gone = self._tank.backlog.done()
        try:
            with suppress(TimeoutError):
                async with self._clock.timeout(seconds):
                    await asyncio.wrap_future(gone)
        finally:
            self._tank.backlog.forget(gone)
        return last
