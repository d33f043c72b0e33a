import asyncio
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from amqpjobs.worker.threads import Threads
from tests.support.broker import PATIENCE


async def test_a_call_returns_what_its_function_returns() -> None:
    threads = Threads()

    result = await threads.call(lambda: threading.current_thread().name)
    threads.close()

    assert result == "amqpjobs-1"


async def test_an_error_of_the_function_is_raised() -> None:
    threads = Threads()

    def fail() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await threads.call(fail)
    threads.close()


async def test_calls_at_once_run_in_threads_of_their_own() -> None:
    threads, meeting = Threads(), threading.Barrier(4)

    await asyncio.gather(*(threads.call(lambda: meeting.wait(PATIENCE)) for _ in range(4)))
    threads.close()

    assert not meeting.broken


async def test_threads_do_not_keep_the_interpreter_from_ending() -> None:
    threads = Threads()

    is_daemon = await threads.call(lambda: threading.current_thread().daemon)
    threads.close()

    assert is_daemon


async def test_a_cancelled_wait_leaves_the_thread_to_finish() -> None:
    threads, started, may_end, ended = Threads(), threading.Event(), threading.Event(), threading.Event()

    def slow() -> None:
        started.set()
        may_end.wait(PATIENCE)
        ended.set()

    call = asyncio.create_task(threads.call(slow))
    await asyncio.to_thread(started.wait, PATIENCE)
    call.cancel()
    await asyncio.wait([call])
    still_running = threads.running
    may_end.set()
    has_ended = await asyncio.to_thread(ended.wait, PATIENCE)
    threads.close()

    assert (call.cancelled(), still_running, has_ended) == (True, 1, True)


class Lingering(Future[Any]):
    """Its thread is held up just behind its result."""

    may_go_on = threading.Event()

    def set_result(self, result: Any) -> None:
        super().set_result(result)
        self.may_go_on.wait(PATIENCE)


async def test_a_call_right_after_another_needs_no_thread_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amqpjobs.worker.threads.Future", Lingering)
    threads = Threads()

    first = await threads.call(lambda: threading.current_thread().name)
    call = asyncio.create_task(threads.call(lambda: threading.current_thread().name))
    await asyncio.sleep(0)
    Lingering.may_go_on.set()
    second = await call
    threads.close()

    assert first == second
