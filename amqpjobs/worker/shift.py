"""A shift: the workers of one process, from their start to their stop.

Who may ask for the stop: a signal, a limit of the process, the end of its supervisor. Only a
second signal hurries, or a word of the supervisor's, and some seconds after its end.
"""

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Protocol

from amqpjobs.clock import Clock
from amqpjobs.events import LimitReached
from amqpjobs.worker.ending import Ending, Limits
from amqpjobs.worker.supervised import CUT_SHORT_AFTER, HURRY, Supervised
from amqpjobs.worker.worker import Worker


class Companion(AbstractAsyncContextManager[object], Protocol):
    """What may stand beside workers, as a beat."""

    def look(self) -> None: ...
    def troubles(self) -> list[str]: ...


class Shift:
    """Runs workers side by side until something asks them to stop."""

    def __init__(
        self,
        workers: Sequence[Worker],
        clock: Clock,
        limits: Limits,
        supervised: Supervised | None = None,
        *,
        beside: Sequence[Companion] = (),
    ) -> None:
        """What stands `beside` the workers is entered after them, and left before them when they have drained."""
        self._workers = workers
        self._clock = clock
        self._ending = Ending(limits, workers, clock, self._reached)
        self._supervised = supervised
        self._beside = beside
        self._asked = asyncio.Event()
        self._is_alone = asyncio.Event()
        self._is_signalled = False
        self._is_ready = False
        self._has_begun = False

    async def run(self) -> int:
        """How many jobs were cut short. Raises what a worker's start raises."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        watching = asyncio.create_task(self._outlive_supervisor())
        if self._supervised is not None:
            self._supervised.listen(self._told)
        try:
            async with AsyncExitStack() as stack:
                if await self._has_entered(stack):
                    await self._work()
                await asyncio.gather(*(worker.drain() for worker in self._workers))
        finally:
            watching.cancel()
            if self._supervised is not None:  # all is settled: a signal that comes now must not look like a crash
                loop.remove_signal_handler(signal.SIGTERM)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return sum(worker.cancelled for worker in self._workers)

    def look(self) -> None:
        """Have all look that are here."""
        for each in (*self._workers, *self._beside):
            each.look()

    def troubles(self) -> list[str]:
        """Why it is not ready, in words; empty: all that are here are."""
        if self._asked.is_set():
            return ["draining"]
        every = (*self._workers, *self._beside)
        return [*([] if self._has_begun else ["starting"]), *(trouble for each in every for trouble in each.troubles())]

    def drain(self) -> None:
        """Ask for a clean stop."""
        if not self._asked.is_set():
            self._asked.set()
            self._tell_workers()

    def hurry(self) -> None:
        """Ask for a stop that cuts short what runs."""
        self.drain()
        self._tell_workers()

    def _tell_workers(self) -> None:
        for worker in self._workers:
            worker.stop()

    def _signalled(self) -> None:
        # A limit may have asked before: the first signal after it is still the first one.
        if self._is_signalled and self._supervised is None:
            self.hurry()
        self._is_signalled = True
        self.drain()

    async def _has_entered(self, stack: AsyncExitStack) -> bool:
        """Enter the workers; False when it was to stop while the broker was still waited for."""
        entering = asyncio.ensure_future(self._enter_all(stack))
        stopping = asyncio.ensure_future(self._asked.wait())
        await asyncio.wait([entering, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if entering.done():
            await entering
            return True
        entering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await entering
        return False

    async def _enter_all(self, stack: AsyncExitStack) -> None:
        for each in (*self._workers, *self._beside):
            await stack.enter_async_context(each)

    async def _work(self) -> None:
        self._has_begun = True
        self._say_ready()
        watching = asyncio.ensure_future(self._ending.watch())
        await self._asked.wait()
        watching.cancel()

    def _say_ready(self) -> None:
        if self._supervised is not None and not self._is_ready:
            self._is_ready = True
            self._supervised.say_ready()

    def _reached(self, limit: LimitReached) -> None:
        if self._asked.is_set():
            return
        self._workers[0].events.emit(limit)
        self._say_ready()  # the first jobs may have ended before all workers had begun
        if limit.limit == "burst" and self._supervised is not None:
            self._supervised.say_done()
        self.drain()

    def _told(self, word: str) -> None:
        """What the supervisor says."""
        if word == HURRY:
            self.hurry()
        else:
            self._is_alone.set()

    async def _outlive_supervisor(self) -> None:
        """Once it is gone: drain, then hurry."""
        await self._is_alone.wait()
        self.drain()
        await self._clock.sleep(CUT_SHORT_AFTER)
        self.hurry()
