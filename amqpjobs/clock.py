"""The time, from one place.

Everything a user can state in seconds goes through a `Clock`, so that a test can move it.
Sockets in `amqp/` are the exception: their deadlines are real ones.
"""

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Protocol

#: What the public edge takes for a span of time: seconds, or a timedelta.
Seconds = float | timedelta


class Deadline(Protocol):
    """A running timeout."""

    def expired(self) -> bool:
        """Whether it was this deadline that ended the block."""
        ...


class Clock(Protocol):
    """Where the code above the sockets takes its time from."""

    def now(self) -> datetime:
        """The time of day, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that only go forward."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait so long."""
        ...

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[Deadline]:
        """A block that raises TimeoutError after so many seconds; None means no limit."""
        ...


class SystemClock:
    """The machine's own time."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[Deadline]:
        return asyncio.timeout(seconds)


def is_cancelled() -> bool:
    """Whether somebody cancels this task; a CancelledError may also come from elsewhere."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def end_task(task: "asyncio.Task[None]") -> None:
    """Cancel a task, and return when it is over.

    More than once: the client library turns a cancellation in the midst of an RPC into another error.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=1)


def in_seconds(span: Seconds) -> float:
    """A span as seconds."""
    return span.total_seconds() if isinstance(span, timedelta) else float(span)
