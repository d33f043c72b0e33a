"""Schedules in users' tests: years of them, missed ticks, failover, DST and faults, in a time that the test moves."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import pytest

from amqpjobs import App, Beat, Job, JobContext, cron, every
from amqpjobs.beat.plan import Misfire, Overlap
from amqpjobs.beat.schedule import Schedule
from amqpjobs.envelope import Envelope
from amqpjobs.errors import DefinitionError
from amqpjobs.events import BeatDeposed, BeatLeading
from amqpjobs.middleware import EnqueueNext
from amqpjobs.outcome import Completed
from amqpjobs.testing import Harness
from amqpjobs.testing.clock import START
from tests.support.apps import watch
from tests.support.broker import PATIENCE
from tests.support.ticks import instant_of

HOUR = 3600.0


class Report(Job[None], kind="report"):
    of: str = "sales"


class Other(Job[None], kind="other"):
    pass


class Ticking:
    """An app with a schedule, and the ids of the jobs that ran."""

    def __init__(self, schedule: Schedule | None = None, *, misfire: Misfire = "once", limit: int = 100) -> None:
        self.app = App("shop")
        self.ran = list[str]()
        #: How late each was, by the app's clock.
        self.late = set[timedelta]()

        @self.app.handler(Report)
        async def report(job: Report, ctx: JobContext[None]) -> None:
            self.ran.append(ctx.job_id)
            if "@" in ctx.job_id:
                self.late.add(self.app.clock.now() - instant_of(ctx.job_id))

        if schedule is not None:
            self.app.schedule(schedule, job=Report(), misfire=misfire, limit=limit)

    @property
    def instants(self) -> list[datetime]:
        return [instant_of(job_id) for job_id in self.ran]

    @property
    def hours(self) -> list[float]:
        """Of the ticks that ran, since the start."""
        return [(instant - START) / timedelta(hours=1) for instant in self.instants]


@pytest.fixture
async def hourly() -> Ticking:
    return Ticking(every(HOUR))


@pytest.fixture
async def harness(hourly: Ticking) -> AsyncGenerator[Harness[None]]:
    async with Harness(hourly.app) as harness:
        yield harness


# A year


async def test_a_year_of_a_daily_schedule_has_all_its_days_in_order() -> None:
    daily = Ticking(cron("0 9 * * *", timezone="Europe/Berlin"))

    async with Harness(daily.app, beats=True) as harness:
        await harness.advance(days=365)

        assert harness.outcomes(Report) == [Completed()] * 365
        assert harness.assert_enqueued(Report, count=365)[0] == Report(of="sales")
    days = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day) for day in range(365)]
    assert [instant.date() for instant in daily.instants] == [day.date() for day in days]
    # At nine on the wall, whatever that is in UTC.
    assert {instant.hour for instant in daily.instants} == {7, 8}
    assert daily.ran[0] == "report@2026-01-01T08:00:00Z"
    assert daily.late == {timedelta(0)}


async def test_a_job_runs_at_the_time_of_its_tick(hourly: Ticking, harness: Harness[None]) -> None:
    async with harness.beat():
        before = len(hourly.ran)  # a schedule begins with the instant at which it is first seen
        await harness.advance(hours=1, seconds=-1)
        just_before = len(hourly.ran)
        await harness.advance(seconds=1)

    assert (before, just_before) == (1, 1)
    assert hourly.hours == [0, 1]


async def test_what_the_jobs_of_ticks_enqueue_runs_between_them() -> None:
    app, seen = App("shop"), list[tuple[str, timedelta]]()

    @app.schedule(every(HOUR), job=Report())
    @app.handler(Report)
    async def report(job: Report, ctx: JobContext[None]) -> None:
        seen.append(("report", app.clock.now() - START))
        await ctx.enqueue(Other(), delay=60)

    @app.handler(Other)
    async def other(job: Other) -> None:
        seen.append(("other", app.clock.now() - START))

    async with Harness(app, beats=True) as harness:
        await harness.advance(hours=1, minutes=30)

    kinds, times = zip(*seen, strict=True)
    assert kinds == ("report", "other", "report", "other")
    assert [time // timedelta(minutes=1) for time in times] == [0, 1, 60, 61]


async def test_a_year_in_which_little_is_due_takes_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amqpjobs.testing.harness.MOST_STEPS", 100)
    monthly = Ticking(cron("@monthly"))

    async with Harness(monthly.app, beats=True) as harness:
        await harness.advance(days=365)

    assert len(monthly.ran) == 13


async def test_ten_thousand_schedules() -> None:
    many = Ticking()
    for number in range(10_000):
        start = START + timedelta(seconds=number * 8)
        many.app.schedule(every(timedelta(days=1), start=start), job=Report(), name=f"report-{number:04}")

    async with Harness(many.app, works=False) as harness:
        async with harness.beat():
            await harness.advance(hours=1)

        harness.assert_enqueued(Report, count=451)


async def test_ten_thousand_schedules_that_are_due_at_once() -> None:
    many = Ticking()
    for number in range(10_000):
        many.app.schedule(every(timedelta(days=1)), job=Report(), name=f"report-{number:04}")

    async with Harness(many.app, works=False) as harness, harness.beat():
        harness.assert_enqueued(Report, count=10_000)
        stock = harness.broker.stock("amqpjobs.queue.shop")

        assert stock is not None
        assert stock.ready == 10_000


# Who asks for it


async def test_without_a_beat_nothing_is_due_and_a_failed_assertion_says_why(harness: Harness[None]) -> None:
    await harness.advance(days=1)

    assert harness.enqueued(Report) == []
    with pytest.raises(AssertionError, match=r"Nothing was enqueued\. It is scheduled, and no beat ran: use `async"):
        harness.assert_enqueued(Report)
    with pytest.raises(AssertionError, match=r"Nothing was enqueued\.$"):
        harness.assert_enqueued(Other)


async def test_a_schedule_of_a_job_that_others_handle_needs_them_named() -> None:
    app = App[None]("shop")
    app.schedule(every(HOUR), job=Other())

    async with Harness(app, elsewhere=[Other], beats=True) as harness:
        await harness.advance(hours=2)

        harness.assert_enqueued(Other, count=3)


async def test_draining_does_not_wait_for_ticks_to_come(hourly: Ticking, harness: Harness[None]) -> None:
    await harness.app.enqueue(Report(), delay=5400)

    async with harness.beat():
        await harness.drain()

    ticks, enqueued = hourly.ran[:2], hourly.ran[2:]
    assert ticks == ["report@2026-01-01T00:00:00Z", "report@2026-01-01T01:00:00Z"]
    assert len(enqueued) == 1


async def test_a_test_begins_when_it_says() -> None:
    daily, start = Ticking(cron("0 9 * * *")), datetime(2028, 2, 28, 12, tzinfo=UTC)

    async with Harness(daily.app, start=start, beats=True) as harness:
        assert harness.clock.now() == start
        await harness.advance(days=2)

    assert [f"{instant:%m-%d}" for instant in daily.instants] == ["02-29", "03-01"]


async def test_an_app_without_schedules_has_no_beat() -> None:
    async with Harness(Ticking().app) as harness:
        with pytest.raises(DefinitionError, match="App 'shop' has no schedules"):
            await harness.beat().__aenter__()
        with pytest.raises(RuntimeError, match="No beat leads here that could crash"):
            await harness.crash_beat()


# Missed ticks


@pytest.mark.parametrize(
    ("misfire", "limit", "made_up_for"),
    [
        pytest.param("once", 100, [8], id="once"),
        pytest.param("skip", 100, [], id="skip"),
        pytest.param("all", 100, [3, 4, 5, 6, 7, 8], id="all"),
        pytest.param("all", 4, [5, 6, 7, 8], id="all, but no more than four"),
    ],
)
@pytest.mark.parametrize("fault", ["none", "restart", "cut"])
async def test_of_missed_ticks_the_policy_says_which_are_made_up_for(
    misfire: Misfire, limit: int, made_up_for: list[int], fault: str
) -> None:
    ticking = Ticking(every(HOUR), misfire=misfire, limit=limit)

    async with Harness(ticking.app) as harness:
        async with harness.beat():
            await harness.advance(hours=2)
        await harness.advance(hours=6, minutes=30)
        match fault:
            case "restart":
                await harness.broker.restart()
            case "cut":
                await harness.cut_connection()
            case _:
                pass
        async with harness.beat():
            came_late = ticking.hours[3:]
            await harness.advance(hours=2)

    assert came_late == made_up_for
    assert ticking.hours == [0, 1, 2, *made_up_for, 9, 10]


async def test_a_tick_within_its_grace_is_not_missed() -> None:
    ticking = Ticking(every(HOUR), misfire="skip")

    async with Harness(ticking.app) as harness:
        async with harness.beat():
            pass
        await harness.advance(hours=1, seconds=20)
        async with harness.beat():
            pass

    assert ticking.hours == [0, 1]


async def test_a_changed_schedule_makes_up_for_nothing(hourly: Ticking) -> None:
    other = Ticking(every(HOUR / 2), misfire="all")
    async with Harness(hourly.app) as harness:
        async with harness.beat():
            await harness.advance(hours=1)
        await harness.advance(hours=5, minutes=45)

        # A deployment: the same service, its schedule changed, on the same broker and with the same clock.
        with other.app.overridden(settings=hourly.app.settings, clock=harness.clock, chance=lambda: 0):
            begun = watch(other.app.events, BeatLeading)
            async with Beat(other.app, nap=86_400):
                await begun.until(1)

    assert begun[0].begun == ["report"]
    assert other.ran == []


# Clocks that change


async def test_a_time_that_clocks_skip_is_due_at_the_next_valid_instant() -> None:
    ticking = Ticking(cron("30 2 * * *", timezone="Europe/Berlin"))

    async with Harness(ticking.app, start=datetime(2026, 3, 28, tzinfo=UTC), beats=True) as harness:
        await harness.advance(days=3)

    assert [f"{instant:%d %H:%M}" for instant in ticking.instants] == ["28 01:30", "29 01:00", "30 00:30"]


async def test_a_time_that_clocks_show_twice_counts_once() -> None:
    ticking = Ticking(cron("30 2 * * *", timezone="Europe/Berlin"))

    async with Harness(ticking.app, start=datetime(2026, 10, 24, tzinfo=UTC), beats=True) as harness:
        await harness.advance(days=3)

    assert [f"{instant:%d %H:%M}" for instant in ticking.instants] == ["24 00:30", "25 00:30", "26 01:30"]


# Faults


async def test_of_two_beats_one_publishes_and_when_it_dies_the_other_does(
    hourly: Ticking, harness: Harness[None]
) -> None:
    leading = watch(hourly.app.events, BeatLeading)

    async with harness.beat(), harness.beat():
        for _ in range(10):
            await harness.advance(hours=2)
            await harness.crash_beat()

    assert len(leading) == 11
    assert hourly.hours == list(range(21))


async def test_a_beat_that_is_alone_is_replaced_when_it_dies(hourly: Ticking, harness: Harness[None]) -> None:
    async with harness.beat():
        await harness.advance(hours=1)
        await harness.crash_beat()
        await harness.advance(hours=1)

    assert hourly.hours == [0, 1, 2]


async def test_when_the_leader_stops_another_one_goes_on(hourly: Ticking, harness: Harness[None]) -> None:
    async with AsyncExitStack() as stack:
        async with harness.beat():
            await stack.enter_async_context(harness.beat())
            await harness.advance(hours=1)
        await harness.advance(hours=1)

    assert hourly.hours == [0, 1, 2]


@pytest.mark.parametrize("beats", [1, 2])
async def test_no_tick_is_lost_or_doubled_when_the_broker_restarts(
    hourly: Ticking, harness: Harness[None], beats: int
) -> None:
    deposed = watch(hourly.app.events, BeatDeposed)
    async with AsyncExitStack() as stack:
        for _ in range(beats):
            await stack.enter_async_context(harness.beat())
        for _ in range(5):
            await harness.advance(hours=2)
            await harness.broker.restart()
            await harness.advance(hours=2)
            await harness.cut_connection()

    assert len(deposed) >= 10
    assert hourly.hours == list(range(21))


async def test_no_tick_is_lost_when_its_confirm_is_and_copies_have_one_id(
    hourly: Ticking, harness: Harness[None]
) -> None:
    deposed = watch(hourly.app.events, BeatDeposed)
    async with harness.beat():
        for _ in range(10):
            harness.lose_next_confirm()  # of a tick, unless the beat sends something else before it
            await harness.advance(hours=1)

    assert len(deposed) >= 10
    assert sorted(set(hourly.hours)) == list(range(11))
    assert len(hourly.ran) <= 21


async def test_a_tick_that_fails_is_tried_again_and_the_next_one_waits_for_it() -> None:
    app, ran, refuses = App[None]("shop"), list[str](), True
    app.schedule(every(10), job=Report())

    @app.handler(Report)
    async def report(job: Report, ctx: JobContext[None]) -> None:
        ran.append(ctx.job_id)

    @app.enqueue_middleware
    async def refuse(envelope: Envelope, following: EnqueueNext) -> Envelope:
        if refuses:
            raise ValueError("not now")
        return await following(envelope)

    async with Harness(app, beats=True) as harness:
        await harness.advance(seconds=5)
        before, refuses = list(ran), False
        await harness.advance(seconds=15)

    assert before == []
    assert [instant_of(job_id) - START for job_id in ran] == [timedelta(seconds=n) for n in (0, 10, 20)]


async def test_a_crash_of_the_worker_leaves_the_beat_alone(hourly: Ticking, harness: Harness[None]) -> None:
    async with harness.beat():
        await harness.crash_worker()
        await harness.advance(hours=2)

    assert hourly.hours == [0, 1, 2]


async def test_leaving_the_block_leaves_no_beat_behind(hourly: Ticking) -> None:
    before = asyncio.all_tasks()
    async with asyncio.timeout(PATIENCE), Harness(hourly.app, beats=True) as harness:
        await harness.advance(hours=1)

    assert asyncio.all_tasks() == before


# Overlaps


@pytest.mark.parametrize(
    ("overlap", "minutes"),
    [
        ("allow", [0, 1, 2, 3, 4, 5]),
        ("skip", [0, 2, 4]),
        ("queue", [0, 1, 2, 4]),  # 1 runs from 1:24, 2 from 2:48 to 4:12, and meanwhile 3 gives way to 4
    ],
)
async def test_a_job_longer_than_its_interval_runs_as_its_policy_says(overlap: Overlap, minutes: list[int]) -> None:
    app, ran = App("shop"), list[datetime]()

    @app.schedule(every(60), job=Report(), overlap=overlap)
    @app.handler(Report)
    async def report(job: Report, ctx: JobContext[None]) -> None:
        ran.append(instant_of(ctx.job_id))
        await app.clock.sleep(84)

    async with Harness(app, beats=True) as harness:
        await harness.advance(minutes=5, seconds=30)

    assert [(instant - START) / timedelta(minutes=1) for instant in ran] == minutes
