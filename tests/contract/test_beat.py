"""Beats on a broker: one leads, ticks carry their names, and what was published is remembered."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from amqpjobs import App, Beat, BrokerError, Worker
from amqpjobs.amqp.connection import open_session
from amqpjobs.amqp.register import Register
from amqpjobs.beat.state import state_from
from amqpjobs.events import BeatDeposed, BeatLeading, ConnectionLost, TickFailed, TickPublished
from tests.support.apps import NAMESPACE, Bench, Note, Ran, Seen, record, watch, work_queue
from tests.support.broker import PATIENCE, Broker, eventually
from tests.support.clock import FakeClock
from tests.support.faults import FaultyProxy, Way
from tests.support.ticks import Each, instant_of


class Stage:
    """One service with a schedule, as its workers and any number of beats have it."""

    def __init__(self, bench: Bench, broker: Broker) -> None:
        self._bench = bench
        self.broker = broker
        self.kind = bench.kind()
        self.worker = bench.app()
        self.ran: Seen[Ran] = record(self.worker, self.kind)
        self.name = self.worker.name

    def app(self, seconds: float = 0.2, *, url: str = "") -> App[None]:
        """The app as one beat has it."""
        app = self._bench.app(self.name, settings=self._bench.settings(url=url or self._bench.url))
        # No tick is left out, however long a busy machine takes to have another one lead.
        app.schedule(Each(seconds), job=self.kind(text="tick"), name="tick", grace=600)
        return app

    @asynccontextmanager
    async def working(self) -> AsyncGenerator[Seen[Ran]]:
        async with Worker(self.worker):
            yield self.ran

    async def last(self) -> datetime:
        """How far the schedule is, as the register says."""
        topology = self.worker.topology
        settings = self._bench.settings(connect_timeout=PATIENCE)
        session = await open_session(settings.urls[0], settings, "test")
        try:
            route = topology.to_beat_register(self.name)
            record = await Register(session, topology.beat_register(self.name), route).read()
            return state_from(record)["tick"].last
        finally:
            await session.close()

    async def sweep(self) -> None:
        for queue in self.worker.topology.beat(self.name).queues:
            await self.broker.delete_queue(queue.name)


@pytest.fixture
async def stage(bench: Bench, broker: Broker) -> AsyncGenerator[Stage]:
    stage = Stage(bench, broker)
    yield stage
    await stage.sweep()


def ids(ran: Iterable[Ran]) -> list[str]:
    return [each.envelope.job_id for each in ran]


def gaps(ran: Iterable[Ran]) -> set[float]:
    """The seconds between the instants of ticks that follow each other."""
    # Runs may overtake each other: of a doubtful tick is first asked whether it was started before.
    instants = sorted({instant_of(job_id) for job_id in ids(ran)})
    return {(later - earlier).total_seconds() for earlier, later in pairwise(instants)}


async def test_each_tick_runs_once_and_carries_its_name(stage: Stage) -> None:
    app = stage.app()
    async with stage.working() as ran, Beat(app):
        await ran.until(10)

    assert len(set(ids(ran))) == len(ran)
    assert gaps(ran) == {0.2}
    assert ran[0].text == "tick"
    assert ran[0].envelope.schedule == "tick"
    assert ran[0].envelope.job_id.startswith("tick@20")


async def test_of_three_beats_one_leads_and_when_it_leaves_another_goes_on(stage: Stage) -> None:
    apps = [stage.app() for _ in range(3)]
    leading = [watch(app.events, BeatLeading) for app in apps]
    async with stage.working() as ran, AsyncExitStack() as stack:
        beats = [Beat(app) for app in apps]

        async def one_leads() -> bool:  # who heard nothing for long may just have given up, and another one not begun
            return [beat.is_leading for beat in beats].count(True) == 1

        for beat in beats:
            await stack.enter_async_context(beat)
        await ran.until(5)
        await eventually(one_leads)

        first = next(beat for beat in beats if beat.is_leading)
        await first.__aexit__(None, None, None)
        await ran.until(len(ran) + 5)

        await eventually(one_leads)
        assert sum(map(len, leading)) >= 2
    assert len(set(ids(ran))) == len(ran)
    assert gaps(ran) == {0.2}


async def test_a_leader_whose_connection_is_cut_is_followed_and_no_tick_is_lost(stage: Stage, url: str) -> None:
    async with FaultyProxy(url).running() as proxy:
        app, other = stage.app(url=proxy.url), stage.app()
        leading, deposed = watch(other.events, BeatLeading), watch(app.events, BeatDeposed)
        async with stage.working() as ran, Beat(app):
            await ran.until(5)
            async with Beat(other):
                proxy.cut()
                await leading.until(1)
                await deposed.until(1)
                await ran.until(len(ran) + 10)

    assert gaps(ran) == {0.2}
    assert len(ran) - len(set(ids(ran))) <= 1  # one fault


async def test_a_leader_that_was_cut_off_for_long_publishes_nothing_when_it_is_back(stage: Stage, url: str) -> None:
    async with FaultyProxy(url).running() as proxy:
        app, other = stage.app(url=proxy.url), stage.app()
        leading, lost = watch(other.events, BeatLeading), watch(app.events, ConnectionLost)
        async with stage.working() as ran, Beat(app) as first:
            await ran.until(5)
            async with Beat(other):
                proxy.stall(Way.TO_BROKER)
                proxy.stall(Way.FROM_BROKER)
                await leading.until(1, within=2 * PATIENCE)
                await lost.until(1)
                proxy.resume()  # what the former leader had sent meanwhile may go on now
                before = len(ran)
                await ran.until(before + 15)

                assert not first.is_leading
    assert gaps(ran) == {0.2}
    assert len(ran) - len(set(ids(ran))) <= 1
    # Ticks come in order but for one that was doubled: nothing old came late.
    late = [each for each in ran if each.at - instant_of(each.envelope.job_id).timestamp() > 3 * PATIENCE]
    assert late == []


async def test_a_beat_that_comes_later_goes_on_where_the_last_one_ended(stage: Stage) -> None:
    first, second = stage.app(), stage.app()
    published, begun = watch(first.events, TickPublished), watch(second.events, BeatLeading)
    async with stage.working() as ran:
        async with Beat(first):
            await published.until(5)
        assert await stage.last() == published[-1].instant
        async with Beat(second):
            await ran.until(len(published) + 5)

    assert begun[0].begun == []
    assert gaps(ran) == {0.2}
    assert len(set(ids(ran))) == len(ran)


async def test_a_changed_schedule_is_anchored_anew(stage: Stage) -> None:
    first, second = stage.app(0.2), stage.app(3600)
    published, leading = watch(first.events, TickPublished), watch(second.events, BeatLeading)
    async with stage.working():
        async with Beat(first):
            await published.until(2)
        async with Beat(second):
            (event,) = await leading.until(1)

    assert event.begun == ["tick"]


async def test_a_tick_that_nobody_takes_is_tried_until_somebody_does(stage: Stage) -> None:
    app = stage.app(3600)
    app.schedule(Each(0.2), job=stage.kind(text="other"), queue=stage.name, name="other")
    missing = app.schedules[0].job
    assert isinstance(missing, Note)
    failed, published = watch(app.events, TickFailed), watch(app.events, TickPublished)
    app.clock = FakeClock(datetime(2026, 1, 1, tzinfo=UTC))
    async with Beat(app):
        await failed.until(2)  # both at 00:00, and no queue is there yet
        async with stage.working() as ran:
            clock = app.clock
            assert isinstance(clock, FakeClock)
            for _ in range(100):
                await clock.advance(0.1)
            await published.until(3)
            await ran.until(3)

    assert "tick@2026-01-01T00:00:00Z" in ids(ran)
    assert failed[0].failures == 1


async def test_a_register_that_others_have_written_to_is_told_and_no_beat_leads(stage: Stage) -> None:
    app = stage.app()
    topology = app.topology
    deposed = watch(app.events, BeatDeposed)
    async with Beat(stage.app()):
        pass
    await stage.broker.publish(topology.beats, topology.beat_register(app.name), b"nonsense", kind="value")

    async with Beat(app) as beat:
        (event, *_) = await deposed.until(1)

        assert not beat.is_leading
    assert isinstance(event.error, BrokerError)
    assert f"'{NAMESPACE}.beat.register.v1.{stage.name}' holds what no beat has written" in str(event.error)


async def test_without_a_lease_queue_and_with_declaring_off_a_beat_says_what_is_missing(
    stage: Stage, bench: Bench
) -> None:
    app = bench.app(stage.name, settings=bench.settings(declare=False))
    app.schedule(Each(1), job=stage.kind())
    async with stage.working():
        pass

    with pytest.raises(BrokerError, match=r"beat\.lease\.v1"):
        async with Beat(app):
            pass


async def test_a_day_of_ticks_in_virtual_time_has_all_of_them(stage: Stage) -> None:
    app = stage.app(3600)
    clock = FakeClock(datetime(2026, 1, 1, tzinfo=UTC))
    app.clock = clock
    published = watch(app.events, TickPublished)
    async with stage.working() as ran, Beat(app, nap=timedelta(days=1)):
        for hour in range(24):
            await published.until(hour + 1)
            await clock.advance(3600)
        await ran.until(25)

    expected = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=hour) for hour in range(25)]
    # Runs overtake each other: a tick of the begin of a term is looked up first.
    assert sorted(instant_of(job_id) for job_id in ids(ran)) == expected
    assert await asyncio.wait_for(stage.broker.count(work_queue(stage.worker)), PATIENCE) == 0
