"""A leader's term in virtual time: what is published when, after faults, jumps of the clock and pauses."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from amqpjobs import Job
from amqpjobs.beat.plan import Misfire, Scheduled, Tick
from amqpjobs.beat.schedule import Schedule
from amqpjobs.beat.state import State, state_from
from amqpjobs.beat.term import LANES, Term
from amqpjobs.events import (
    ClockWentBack,
    Events,
    ScheduleFailed,
    StateNotKept,
    TickFailed,
    TickPublished,
    TicksSkipped,
)
from tests.support.apps import watch
from tests.support.clock import FakeClock, settle
from tests.support.ticks import Each, instant_of
from tests.unit.beat.test_state import Paper

START = datetime(2026, 1, 1, tzinfo=UTC)


class Report(Job[None], kind="report"):
    day: int = 1


class Jumping(FakeClock):
    """Its time of day can be set; its seconds go on."""

    jumped = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.jumped


class Bench:
    """A term with its surroundings, and what it published: schedule, instant, and when."""

    def __init__(self, *scheduled: Scheduled, paper: Paper | None = None) -> None:
        self.scheduled = scheduled
        self.clock = Jumping(START)
        self.events = Events()
        self.paper = paper or Paper()
        self.published: list[Tick] = []
        self.refuse: Callable[[Tick], bool] = lambda tick: False
        self.gate = asyncio.Event()
        self.gate.set()

    @asynccontextmanager
    async def term(self, *, nap: float = 1.0) -> AsyncGenerator[Term]:
        state = state_from(self.paper) if self.paper.value else State()
        state.take_up(self.scheduled, self.clock.now())
        await state.keep(self.paper)
        term = Term(
            "shop",
            self.scheduled,
            state,
            clock=self.clock,
            events=self.events,
            publish=self._publish,
            keeper=self.paper,
            nap=nap,
        )
        running = asyncio.create_task(term.run())
        await settle()
        yield term
        term.stop()
        self.gate.set()
        await running

    async def _publish(self, scheduled: Scheduled, tick: Tick) -> None:
        await self.gate.wait()
        if self.refuse(tick):
            raise OSError("as asked")
        self.published.append(tick)

    def seconds(self, name: str = "report") -> list[float]:
        """The instants that a schedule has published."""
        return [(tick.instant - START).total_seconds() for tick in self.published if tick.schedule == name]


def each(
    seconds: float, name: str = "report", misfire: Misfire = "once", *, grace: float = 5, limit: int = 100
) -> Scheduled:
    return Scheduled(name=name, schedule=Each(seconds), job=Report(), misfire=misfire, grace=grace, limit=limit)


async def test_each_tick_is_published_once_and_in_time() -> None:
    bench = Bench(each(10), each(25, "other"))
    told = watch(bench.events, TickPublished)

    async with bench.term():
        await bench.clock.advance(60)

    # A schedule begins with the instant at which it is first seen.
    assert bench.seconds() == [0, 10, 20, 30, 40, 50, 60]
    assert bench.seconds("other") == [0, 25, 50]
    assert max(event.late for event in told) < 0.001
    assert [instant_of(event.job_id) for event in told] == [event.instant for event in told]


async def test_a_year_of_a_daily_schedule_has_its_days() -> None:
    bench = Bench(each(86_400))

    async with bench.term(nap=86_400):
        await bench.clock.advance(365 * 86_400)

    assert bench.seconds() == [day * 86_400 for day in range(366)]


async def test_it_is_busy_while_ticks_are_on_their_way_or_being_written_down_and_not_while_it_waits() -> None:
    bench = Bench(each(10))
    bench.gate.clear()

    async with bench.term() as term:
        while_publishing = term.is_busy
        bench.gate.set()
        await settle()
        while_waiting = term.is_busy
        bench.paper.fails = True
        await bench.clock.advance(10)
        until_it_is_written_again = term.is_busy

    assert while_publishing
    assert not while_waiting
    assert not until_it_is_written_again


async def test_the_next_leader_goes_on_where_the_last_one_ended() -> None:
    first = Bench(each(10))
    async with first.term():
        await first.clock.advance(35)
    second = Bench(each(10), paper=first.paper)
    second.clock = first.clock

    async with second.term():
        await second.clock.advance(30)

    assert first.seconds() == [0, 10, 20, 30]
    assert second.seconds() == [40, 50, 60]


@pytest.mark.parametrize(
    ("misfire", "expected"),
    [("skip", [96, 97, 98, 99, 100]), ("once", [100]), ("all", [91, 92, 93, 94, 95, 96, 97, 98, 99, 100])],
)
async def test_ticks_missed_while_nobody_led_are_for_the_policy(misfire: Misfire, expected: list[float]) -> None:
    bench = Bench(each(1, misfire=misfire, grace=4.5, limit=10))
    skipped = watch(bench.events, TicksSkipped)
    async with bench.term():
        await bench.clock.advance(5)
    before = len(bench.published)
    await bench.clock.advance(95.2)

    async with bench.term():
        await bench.clock.advance(0.5)

    assert bench.seconds()[before:] == expected
    assert len(skipped) == 1


async def test_a_tick_that_fails_is_tried_again_until_it_is_there_and_counted() -> None:
    bench = Bench(each(100))
    failed = watch(bench.events, TickFailed)
    bench.refuse = lambda tick: len(failed) < 3

    async with bench.term():
        await bench.clock.advance(10)

    assert bench.seconds() == [0]
    assert [(event.failures, event.pause) for event in failed] == [(1, 0.5), (2, 1), (3, 2)]


async def test_a_tick_that_fails_holds_up_no_other_schedule_and_is_not_overtaken_by_its_own() -> None:
    bench = Bench(each(10), each(10, "other"))
    bench.refuse = lambda tick: tick.schedule == "report" and bench.clock.now() < START + timedelta(seconds=25)

    async with bench.term():
        await bench.clock.advance(40)

    assert bench.seconds("other") == [0, 10, 20, 30, 40]
    assert bench.seconds() == [0, 30, 40]  # 0 after 31.5 s; then 10 and 20 had been missed by more than the grace


async def test_a_tick_that_failed_before_its_beat_died_is_published_by_the_next() -> None:
    bench = Bench(each(100))
    bench.refuse = lambda tick: True
    async with bench.term():
        await bench.clock.advance(10)
    bench.refuse = lambda tick: False

    async with bench.term():
        await bench.clock.advance(1)

    assert bench.seconds() == [0]


async def test_ticks_that_take_long_leave_lanes_to_others_up_to_a_bound() -> None:
    bench = Bench(*(each(10, f"report-{number}") for number in range(LANES + 50)))
    bench.gate.clear()

    async with bench.term():
        await bench.clock.advance(1)
        assert len(asyncio.all_tasks()) < LANES + 20
        bench.gate.set()
        await bench.clock.advance(1)

        assert len(bench.published) == LANES + 50


async def test_what_is_on_its_way_when_a_beat_is_stopped_is_waited_for_and_written_down() -> None:
    bench = Bench(each(10))
    bench.gate.clear()
    async with bench.term():
        await bench.clock.advance(1)

    assert bench.seconds() == [0]
    assert state_from(bench.paper)["report"].last == START


async def test_a_jump_forward_is_noticed_within_a_nap_and_its_ticks_are_for_the_policy() -> None:
    bench = Bench(each(60, misfire="skip"), each(60, "once"))

    async with bench.term():
        await bench.clock.advance(30)
        bench.clock.jumped = timedelta(seconds=600)
        await bench.clock.advance(1.5)

    assert bench.seconds() == [0]
    assert bench.seconds("once") == [0, 600]


async def test_a_jump_back_repeats_nothing_and_goes_on_when_it_is_time_again() -> None:
    bench = Bench(each(60))

    async with bench.term():
        await bench.clock.advance(130)
        bench.clock.jumped = timedelta(seconds=-100)
        await bench.clock.advance(200)

    assert bench.seconds() == [0, 60, 120, 180]


async def test_a_jump_back_by_more_than_an_hour_does_not_silence_a_schedule() -> None:
    bench = Bench(each(60))
    told = watch(bench.events, ClockWentBack)

    async with bench.term():
        await bench.clock.advance(90)
        bench.clock.jumped = timedelta(hours=-2)
        await bench.clock.advance(60)

    assert len(told) == 1
    assert bench.seconds() == [0, 60, -7080]


async def test_a_tick_that_waits_to_be_tried_again_does_not_wait_for_the_clock() -> None:
    bench = Bench(each(600))
    bench.refuse = lambda tick: bench.clock.jumped == timedelta(0)

    async with bench.term():
        await bench.clock.advance(5)
        bench.clock.jumped = timedelta(minutes=-30)
        await bench.clock.advance(5)

    assert bench.seconds() == [0]


async def test_a_state_that_cannot_be_written_holds_up_no_tick_and_is_written_later() -> None:
    bench = Bench(each(10))
    unkept = watch(bench.events, StateNotKept)

    async with bench.term():
        await bench.clock.advance(5)
        bench.paper.fails = True
        await bench.clock.advance(30)
        assert len(unkept) > 1
        bench.paper.fails = False
        await bench.clock.advance(10)

    assert bench.seconds() == [0, 10, 20, 30, 40]
    assert state_from(bench.paper)["report"].last == START + timedelta(seconds=40)


async def test_a_schedule_that_raises_or_stands_still_is_told_and_holds_up_no_other() -> None:
    class Standing:
        def next_after(self, instant: datetime) -> datetime:
            return instant

        def __str__(self) -> str:
            return "standing"

    class Raising(Standing):
        def next_after(self, instant: datetime) -> datetime:
            raise KeyError("as asked")

    def wrong(schedule: Schedule, name: str) -> Scheduled:
        return Scheduled(name=name, schedule=schedule, job=Report())

    bench = Bench(each(10), wrong(Standing(), "standing"), wrong(Raising(), "raising"))
    failed = watch(bench.events, ScheduleFailed)

    async with bench.term():
        await bench.clock.advance(20)

    assert bench.seconds() == [0, 10, 20]
    assert {event.schedule for event in failed} == {"standing", "raising"}
    assert len(failed) < 20


async def test_a_schedule_that_has_ended_is_not_asked_again() -> None:
    class Once:
        asked = 0

        def next_after(self, instant: datetime) -> datetime | None:
            self.asked += 1
            return START if instant < START else None

        def __str__(self) -> str:
            return "once"

    schedule = Once()
    bench = Bench(Scheduled(name="report", schedule=schedule, job=Report()))

    async with bench.term():
        await bench.clock.advance(100)

    assert bench.seconds() == [0]
    assert schedule.asked < 5
