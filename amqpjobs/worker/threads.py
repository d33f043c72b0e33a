"""Run sync handlers in threads.

A thread cannot be stopped from outside. One that overruns keeps its slot until it returns,
and only then counts as timed out, so that no second run of its job overlaps it.
"""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar, cast

T = TypeVar("T")


class Threads:
    """As many daemon threads as were ever needed at once; each waits for the next call.

    Not concurrent.futures' pool: the interpreter joins its threads at exit, and one stuck
    handler would keep a stopped worker from ever ending.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._running = 0
        self._count = 0
        self._lock = threading.Lock()

    @property
    def running(self) -> int:
        """Calls that have not returned."""
        return self._running

    async def call(self, function: Callable[[], T]) -> T:
        """Run it in a thread, within this task's context. Cancelling stops the wait, not the thread."""
        future: Future[tuple[T | None, BaseException | None]] = Future()
        context = contextvars.copy_context()
        self._submit(lambda: context.run(_into, future, function, self._returned))
        result, error = await asyncio.wrap_future(future)
        if error is not None:
            raise error
        return cast("T", result)

    def close(self) -> None:
        """Let idle threads end."""
        for _ in range(self._count):
            self._calls.put(None)

    def _submit(self, call: Callable[[], None]) -> None:
        with self._lock:
            self._running += 1
            if self._running > self._count:
                self._count += 1
                threading.Thread(target=self._serve, name=f"amqpjobs-{self._count}", daemon=True).start()
        self._calls.put(call)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def _returned(self) -> None:
        with self._lock:
            self._running -= 1


def _into(
    future: "Future[tuple[T | None, BaseException | None]]", function: Callable[[], T], returned: Callable[[], None]
) -> None:
    if not future.set_running_or_notify_cancel():
        returned()
        return
    # The error is handed over as a value: a future refuses StopIteration and would never be done.
    try:
        outcome: tuple[T | None, BaseException | None] = function(), None
    except BaseException as error:  # SystemExit of a handler, too
        outcome = None, error
    # Before anybody knows the result: who then calls at once finds this thread free, and starts no further one.
    returned()
    future.set_result(outcome)
