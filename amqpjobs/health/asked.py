"""Ask something of an event loop in another thread, which may not turn."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from amqpjobs.clock import Clock

T = TypeVar("T")

#: Seconds for an answer; less than a probe waits.
ANSWER_WITHIN = 2.0


class Asked(Generic[T]):
    """One question to one loop. It is asked once at a time, however many wait for the answer: so nothing piles up
    in a loop that stands still."""

    def __init__(self, loop: asyncio.AbstractEventLoop, question: Callable[[], T], clock: Clock) -> None:
        self._loop = loop
        self._question = question
        self._clock = clock
        self._asking: asyncio.Future[T] | None = None

    async def answer(self) -> T:
        """From the asking loop. Raises TimeoutError, and what the question raises."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._put(), self._loop))
        async with self._clock.timeout(ANSWER_WITHIN):
            return await asyncio.shield(self._asking)

    async def _put(self) -> T:
        return self._question()
