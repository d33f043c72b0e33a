import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from amqpjobs.errors import BrokerUnavailableError
from amqpjobs.events import Events, JobEnded, LimitReached, MessageDied
from amqpjobs.outcome import Completed, Dead, DeadReason
from amqpjobs.worker.ending import Ending, Limits, resident_memory
from tests.support.clock import FakeClock
from tests.unit.making import envelope


class FakeWorker:
    """Ends jobs, and has some left."""

    def __init__(self, left: int = 0) -> None:
        self.events = Events()
        self.is_consuming = True
        self.has = left
        self.is_broker_away = False

    async def left(self) -> int:
        if self.is_broker_away:
            raise BrokerUnavailableError("It is away.")
        return self.has

    def end_job(self) -> None:
        self.events.emit(JobEnded(envelope(), Completed(None), 0.1))


class Watched:
    """An ending with all around it."""

    def __init__(self, limits: Limits, *workers: FakeWorker) -> None:
        self.clock = FakeClock()
        self.workers = workers
        self.reached: list[LimitReached] = []
        self.ending = Ending(limits, workers, self.clock, self.reached.append)

    @asynccontextmanager
    async def watching(self) -> AsyncGenerator[None]:
        task = asyncio.create_task(self.ending.watch())
        yield
        task.cancel()


def test_the_jobs_of_all_workers_are_counted_and_the_limit_is_told_at_once() -> None:
    first, second = FakeWorker(), FakeWorker()
    watched = Watched(Limits(max_jobs=3), first, second)

    first.end_job()
    second.events.emit(MessageDied("work", None, Dead(DeadReason.UNREADABLE)))
    before = list(watched.reached)
    second.end_job()
    first.end_job()

    assert before == []
    assert watched.reached == [LimitReached("max_jobs", 3)]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    def holds(*sizes: int) -> list[int]:
        """Each measurement takes the next size, and the last one is what it stays at."""
        left = list(sizes)
        monkeypatch.setattr("amqpjobs.worker.ending.resident_memory", lambda: left.pop(0) if len(left) > 1 else left[0])
        return left

    return holds


async def test_memory_counts_when_it_stays_over_the_limit_after_a_job(memory: Callable[..., list[int]]) -> None:
    memory(99, 101, 101)
    watched = Watched(Limits(max_memory=100), FakeWorker())

    async with watched.watching():
        for _ in range(2):
            watched.workers[0].end_job()
            await watched.clock.advance(1)
        before = list(watched.reached)
        await watched.clock.advance(1)

    assert before == []
    assert watched.reached == [LimitReached("max_memory", 101)]


async def test_memory_that_falls_again_is_let_pass(memory: Callable[..., list[int]]) -> None:
    memory(101, 99)
    watched = Watched(Limits(max_memory=100), FakeWorker())

    async with watched.watching():
        watched.workers[0].end_job()
        await watched.clock.advance(60)

    assert watched.reached == []


async def test_memory_is_not_measured_while_nothing_ends(memory: Callable[..., list[int]]) -> None:
    left = memory(101, 102, 103)
    watched = Watched(Limits(max_memory=100), FakeWorker())

    async with watched.watching():
        await watched.clock.advance(60)

    assert left == [101, 102, 103]


def test_the_memory_of_this_process_is_that_of_a_python() -> None:
    assert 5_000_000 < resident_memory() < 5_000_000_000


async def test_a_burst_is_over_when_two_looks_in_a_row_find_nothing() -> None:
    idle, busy = FakeWorker(), FakeWorker(left=1)
    watched = Watched(Limits(is_burst=True), idle, busy)

    async with watched.watching():
        await watched.clock.advance(10)
        busy.has = 0
        await watched.clock.advance(0.5)
        busy.has = 1  # a job came, or was handed back
        await watched.clock.advance(0.5)
        busy.has = 0
        await watched.clock.advance(0.5)
        before = list(watched.reached)
        await watched.clock.advance(0.5)

    assert before == []
    assert watched.reached == [LimitReached("burst", 0)]


async def test_a_burst_is_not_over_while_the_broker_is_away() -> None:
    worker = FakeWorker()
    watched = Watched(Limits(is_burst=True), worker)

    async with watched.watching():
        worker.is_broker_away = True
        await watched.clock.advance(10)
        worker.is_broker_away, worker.is_consuming = False, False
        await watched.clock.advance(10)
        before = list(watched.reached)
        worker.is_consuming = True
        await watched.clock.advance(1)

    assert before == []
    assert watched.reached == [LimitReached("burst", 0)]


async def test_without_limits_nothing_ends_a_process() -> None:
    worker = FakeWorker()
    watched = Watched(Limits(), worker)

    async with watched.watching():
        for _ in range(100):
            worker.end_job()
        await watched.clock.advance(3600)

    assert watched.reached == []
