"""Who waits for a connection to take an ack, and hears of its end.

The client library keeps ten frames for a connection's writer, and whoever has another one waits
for room. When the connection ends, so does its writer, and they would wait for ever: acks of
jobs that ended together, each with its slot. Publishes are not among them: their confirms fail.
"""

import asyncio
from types import TracebackType

from amqpjobs.errors import BrokerUnavailableError


class Waits:
    """The tasks that wait on one connection: `with waits:` around each wait raises when `end` is called.

    A task waits for one thing at a time, and `end` is called by another one.
    """

    def __init__(self) -> None:
        #: How often somebody else had cancelled each task before.
        self._tasks: dict[asyncio.Task[object], int] = {}
        self._is_over = False

    def end(self) -> None:
        """The connection is no more. Any number of times."""
        if not self._is_over:
            self._is_over = True
            for task in self._tasks:
                task.cancel()

    def __enter__(self) -> None:
        if self._is_over:
            raise _gone()
        task = _current()
        self._tasks[task] = task.cancelling()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task = _current()
        before = self._tasks.pop(task)
        if not self._is_over:
            return
        # As asyncio.timeout does it: our cancellation is taken back, and that of somebody else stays one.
        if task.uncancel() <= before and isinstance(error, asyncio.CancelledError):
            raise _gone() from error


def _current() -> "asyncio.Task[object]":
    task = asyncio.current_task()
    assert task is not None
    return task


def _gone() -> BrokerUnavailableError:
    return BrokerUnavailableError("The connection ended before it was said.")
