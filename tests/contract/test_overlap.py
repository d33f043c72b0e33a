"""Beats and workers on a broker: the overlap policies, and the second copy of a tick."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Never

import pytest

from amqpjobs import App, Beat, JobContext, Worker
from amqpjobs.amqp.register import Register
from amqpjobs.beat.plan import Overlap, Tick
from amqpjobs.codec import milliseconds
from amqpjobs.events import (
    BeatDeposed,
    JobEnded,
    RunNotTold,
    RunOver,
    TickDropped,
    TickFound,
    TickPublished,
    TicksOverlapped,
    TickWaiting,
)
from amqpjobs.job import options_of
from amqpjobs.outcome import Completed, Dead, Retrying
from amqpjobs.worker import ticks
from tests.support.apps import Bench, Note, Ran, Seen, record, watch, work_queue
from tests.support.broker import PATIENCE, Broker
from tests.support.clock import FakeClock
from tests.support.faults import FaultyProxy
from tests.support.ticks import Each, instant_of

START = datetime(2026, 1, 1, tzinfo=UTC)
#: Seconds between two ticks, by the beat's clock.
STEP = 10
#: Seconds that a tick may be late here.
GRACE = 5


class Leader:
    """What one beat told."""

    def __init__(self, app: App[None], clock: FakeClock) -> None:
        self.app, self.clock = app, clock
        self.published = watch(app.events, TickPublished)
        self.overlapped = watch(app.events, TicksOverlapped)
        self.waiting = watch(app.events, TickWaiting)
        self.over = watch(app.events, RunOver)
        self.found = watch(app.events, TickFound)

    @property
    def seconds(self) -> list[float]:
        """The instants of the ticks it published."""
        return [(each.instant - START).total_seconds() for each in self.published]


class Stage:
    """A service whose jobs end when they may, and its beats."""

    def __init__(self, bench: Bench, broker: Broker) -> None:
        self._bench = bench
        self._broker = broker
        self.kind = bench.kind()
        self.worker = bench.app()
        self.may_end = asyncio.Semaphore(0)
        #: How often an attempt fails once it may end.
        self.failures = 0
        self.ran: Seen[Ran] = record(self.worker, self.kind, self._behave, max_attempts=2)
        self.ended = watch(self.worker.events, JobEnded)
        self.dropped = watch(self.worker.events, TickDropped)
        self.untold = watch(self.worker.events, RunNotTold)

    async def _behave(self, job: Note, context: JobContext[Any]) -> None:
        await self.may_end.acquire()
        if self.failures:
            self.failures -= 1
            raise ValueError("as asked")

    def beat(self, overlap: Overlap, *, second: float = 0, url: str = "") -> Leader:
        """A beat whose clock stands still."""
        app = self._bench.app(self.worker.name, settings=self._bench.settings(url=url or self._bench.url))
        app.schedule(Each(STEP), job=self.kind(), name="tick", grace=GRACE, overlap=overlap)
        clock = FakeClock(START + timedelta(seconds=second))
        app.clock = clock
        return Leader(app, clock)

    @asynccontextmanager
    async def working(self, *, concurrency: int = 5) -> AsyncGenerator[None]:
        """A worker; what still runs when it is left may end."""
        async with Worker(self.worker, concurrency=concurrency):
            yield
            for _ in range(2 * concurrency):
                self.may_end.release()
        self.may_end = asyncio.Semaphore(0)

    @asynccontextmanager
    async def leading(self, overlap: Overlap, *, second: float = 0) -> AsyncGenerator[Leader]:
        leader = self.beat(overlap, second=second)
        async with Beat(leader.app):
            yield leader

    async def publish(self, copy: str, tick: Tick, *, is_doubtful: bool) -> None:
        """A copy of a tick, as a beat publishes it."""
        doubt = {"amqpjobs-doubt-since": milliseconds(tick.instant)} if is_doubtful else {}
        headers = {"amqpjobs-id": tick.job_id, "amqpjobs-schedule": tick.schedule, "amqpjobs-copy": copy, **doubt}
        kind, name = options_of(self.kind).kind, self.worker.name
        await self._broker.publish("", work_queue(self.worker), kind=kind, headers=headers, app_id=name)

    async def sweep(self) -> None:
        for queue in self.worker.topology.beat(self.worker.name).queues:
            await self._broker.delete_queue(queue.name)


@pytest.fixture
async def stage(bench: Bench, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Stage]:
    # A worker that gets no answer in time runs the tick all the same: not here, where the machine may be slow.
    for bound in ("TELL_WITHIN", "ASK_WITHIN"):
        monkeypatch.setattr(ticks, bound, PATIENCE)
    stage = Stage(bench, broker)
    yield stage
    await stage.sweep()


async def test_allow_publishes_each_tick_while_the_last_job_runs(stage: Stage) -> None:
    async with stage.working(), stage.leading("allow") as leader:
        await leader.published.until(1)
        await leader.clock.advance(STEP)
        await leader.published.until(2)
        await stage.ran.until(2)  # side by side
        for _ in range(2):
            stage.may_end.release()
        await stage.ended.until(2)

    assert leader.seconds == [0, 10]


async def test_skip_leaves_out_ticks_until_the_job_has_ended(stage: Stage) -> None:
    async with stage.working(), stage.leading("skip") as leader:
        await stage.ran.until(1)
        await leader.published.until(1)
        for number in range(3):
            await leader.clock.advance(STEP)
            await leader.overlapped.until(number + 1)
        stage.may_end.release()
        await leader.over.until(1)
        await leader.clock.advance(STEP)
        await leader.published.until(2)
        stage.may_end.release()
        await leader.over.until(2)

    assert leader.seconds == [0, 40]
    assert [instant_of(each.envelope.job_id) for each in stage.ran] == [each.instant for each in leader.published]


async def test_queue_publishes_the_latest_when_the_job_has_ended(stage: Stage) -> None:
    async with stage.working(), stage.leading("queue") as leader:
        await stage.ran.until(1)
        await leader.published.until(1)
        for _ in range(3):
            await leader.clock.advance(STEP)
        await leader.waiting.until(1)
        assert leader.seconds == [0]
        stage.may_end.release()
        await leader.published.until(2)
        await stage.ran.until(2)
        stage.may_end.release()
        await leader.over.until(2)

    assert leader.seconds == [0, 30]


async def test_a_job_that_waits_in_its_queue_is_not_over(stage: Stage) -> None:
    async with stage.working():
        pass
    async with stage.leading("skip") as leader:
        await leader.published.until(1)
        await leader.clock.advance(STEP)
        await leader.overlapped.until(1)
        stage.may_end.release()
        async with stage.working():
            await leader.over.until(1)
        await leader.clock.advance(STEP)
        await leader.published.until(2)

    assert leader.seconds == [0, 20]


async def test_a_job_that_failed_is_over_after_its_last_attempt(stage: Stage) -> None:
    stage.failures = 2
    async with stage.working(), stage.leading("skip") as leader:
        await leader.published.until(1)
        stage.may_end.release()
        await stage.ended.until(1)
        await stage.ran.until(2)
        await leader.clock.advance(STEP)
        await leader.overlapped.until(1)
        assert len(leader.over) == 0
        stage.may_end.release()
        await leader.over.until(1)
        await stage.ended.until(2)

    assert [type(each.outcome) for each in stage.ended] == [Retrying, Dead]


@pytest.mark.parametrize(("overlap", "expected"), [("skip", [40]), ("queue", [30])])
async def test_the_next_leader_waits_for_the_run_that_is_open(
    stage: Stage, overlap: Overlap, expected: list[float]
) -> None:
    async with stage.working():
        async with stage.leading(overlap) as first:
            await first.published.until(1)
            await stage.ran.until(1)
        async with stage.leading(overlap, second=30) as second:
            await (second.overlapped if overlap == "skip" else second.waiting).until(1)
            stage.may_end.release()
            await second.over.until(1)
            if overlap == "skip":
                await second.clock.advance(STEP)
            await second.published.until(1)

    assert (first.seconds, second.seconds) == ([0], expected)


async def test_an_end_that_no_beat_heard_is_found_by_the_next(stage: Stage) -> None:
    async with stage.working():
        async with stage.leading("skip") as first:
            await first.published.until(1)
            await stage.ran.until(1)
        stage.may_end.release()
        await stage.ended.until(1)
        async with stage.leading("skip", second=30) as second:
            await second.published.until(1)

    assert second.seconds == [30]


# The second copy of a tick


async def forced_double(stage: Stage, url: str, monkeypatch: pytest.MonkeyPatch, overlap: Overlap) -> Leader:
    """A beat publishes a tick and loses its connection before it has written that down: the next one does it again."""

    async def hang(*_: object) -> Never:
        await asyncio.Event().wait()
        raise AssertionError

    async with FaultyProxy(url).running() as proxy:
        first = stage.beat(overlap, url=proxy.url)
        deposed = watch(first.app.events, BeatDeposed)
        with monkeypatch.context() as patch:
            patch.setattr(Register, "amend", hang)
            async with Beat(first.app):
                await first.published.until(1)
                await proxy.refuse()
                proxy.cut()
                await deposed.until(1)
    return first


@pytest.mark.parametrize("is_running", [True, False])
async def test_of_a_tick_that_was_published_twice_the_second_copy_is_dropped(
    stage: Stage, url: str, monkeypatch: pytest.MonkeyPatch, is_running: bool
) -> None:
    async with stage.working():
        first = await forced_double(stage, url, monkeypatch, "allow")
        await stage.ran.until(1)
        if not is_running:
            stage.may_end.release()
            await stage.ended.until(1)
        async with stage.leading("allow") as second:
            await second.published.until(1)
            (event,) = await stage.dropped.until(1)
            if is_running:
                stage.may_end.release()
                await stage.ended.until(1)
            await second.clock.advance(STEP)
            await stage.ran.until(2)
            stage.may_end.release()
            await stage.ended.until(2)

    assert first.seconds == [0]
    assert second.seconds == [0, 10]
    assert event.envelope.job_id == first.published[0].job_id
    assert [each.envelope.job_id for each in stage.ran] == [each.job_id for each in second.published]
    assert [each.outcome for each in stage.ended] == [Completed(), Completed()]
    assert len(stage.untold) == 0


async def test_a_tick_that_was_published_twice_and_waits_in_its_queue_runs_once(
    stage: Stage, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage.working():
        pass
    await forced_double(stage, url, monkeypatch, "skip")
    async with stage.leading("skip") as second:
        await second.published.until(1)
        stage.may_end.release()
        async with stage.working(concurrency=1):
            await stage.dropped.until(1)
            await second.over.until(1)

    assert len(stage.ran) == 1


async def test_a_tick_that_runs_is_not_published_again_where_runs_are_followed(
    stage: Stage, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage.working():
        await forced_double(stage, url, monkeypatch, "skip")
        await stage.ran.until(1)
        async with stage.leading("skip") as second:
            await second.found.until(1)
            await second.clock.advance(STEP)
            await second.overlapped.until(1)
            stage.may_end.release()
            await second.over.until(1)
            await second.clock.advance(STEP)
            await second.published.until(1)

    assert second.seconds == [20]
    assert len(stage.dropped) == 0


async def test_a_doubtful_copy_that_is_alone_runs_and_so_do_its_attempts_and_redeliveries(stage: Stage) -> None:
    tick, stage.failures = Tick("tick", START), 1
    async with stage.leading("allow", second=1):  # at a time of no tick: it is there for its stream
        async with Worker(stage.worker, grace=0):
            await stage.publish("one", tick, is_doubtful=True)
            await stage.ran.until(1)
        async with stage.working():  # it was cut short, and comes again
            await stage.ran.until(2)
            stage.may_end.release()
            await stage.ended.until(2)
            await stage.ran.until(3)
            stage.may_end.release()
            await stage.ended.until(3)

    assert [each.attempt for each in stage.ran] == [1, 1, 2]
    assert isinstance(stage.ended[2].outcome, Completed)
    assert len(stage.dropped) == 0


async def test_of_many_copies_that_come_at_once_one_runs(stage: Stage) -> None:
    tick = Tick("tick", START)
    async with stage.leading("allow", second=1), stage.working(concurrency=10):
        async with asyncio.TaskGroup() as group:
            for number in range(10):
                group.create_task(stage.publish(f"copy {number}", tick, is_doubtful=True))
        await stage.dropped.until(9)

    assert len(stage.ran) == 1
    assert len(stage.untold) == 0


async def test_where_no_beat_ever_was_ticks_just_run(stage: Stage) -> None:
    async with stage.working():
        for copy in ("one", "two"):
            await stage.publish(copy, Tick("tick", START), is_doubtful=True)
            stage.may_end.release()
        await stage.ended.until(2)

    assert len(stage.ran) == 2
    assert len(stage.untold) == 0
