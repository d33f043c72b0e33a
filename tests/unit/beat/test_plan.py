"""What is due, and what a misfire policy makes of ticks that were missed: pure, at chosen instants."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from amqpjobs import App, Beat, DefinitionError, Job
from amqpjobs.beat.plan import Due, Misfire, Scheduled, Tick, TickOptions, due, latest
from amqpjobs.settings import load_settings
from tests.support.ticks import Each

START = datetime(2026, 1, 1, tzinfo=UTC)


class Report(Job[None], kind="report"):
    day: int = 1


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def scheduled(misfire: Misfire = "once", *, limit: int = 100, grace: float = 5) -> Scheduled:
    return Scheduled(name="report", schedule=Each(1), job=Report(), misfire=misfire, limit=limit, grace=grace)


def seconds(found: Due) -> list[float]:
    return [(each - START).total_seconds() for each in found.ticks]


def decide(plan: Scheduled, *, last: float, now: float) -> Due:
    return due(plan, plan.schedule, after(last), after(now))


def test_the_id_of_a_tick_is_its_schedule_and_its_instant_in_utc() -> None:
    there = datetime(2026, 1, 1, 9, 30, tzinfo=timezone(timedelta(hours=2)))

    assert Tick("report", there).job_id == "report@2026-01-01T07:30:00Z"
    assert Tick("report", START + timedelta(milliseconds=500)).job_id == "report@2026-01-01T00:00:00.500000Z"


@pytest.mark.parametrize("misfire", ["skip", "once", "all"])
def test_nothing_is_due_before_its_time(misfire: Misfire) -> None:
    assert decide(scheduled(misfire), last=0, now=0.9) == Due()


@pytest.mark.parametrize("misfire", ["skip", "once", "all"])
def test_ticks_within_the_grace_are_published_one_by_one_whatever_the_policy(misfire: Misfire) -> None:
    plan, last, published = scheduled(misfire), 0.0, list[float]()

    while found := seconds(decide(plan, last=last, now=5.9)):
        published += found
        last = found[-1]

    assert published == [1, 2, 3, 4, 5]


def test_skip_leaves_out_what_is_later_than_the_grace_and_nothing_else() -> None:
    found = decide(scheduled("skip"), last=0, now=20)

    assert found.ticks == ()
    assert found.settled is not None
    assert seconds(due(scheduled("skip"), Each(1), found.settled, after(20))) == [15]


def test_once_publishes_the_latest_and_settles_the_others() -> None:
    found = decide(scheduled("once"), last=0, now=20.5)

    assert seconds(found) == [20]
    assert found.settled is not None
    assert after(19) <= found.settled < after(20)


def test_once_with_a_single_missed_tick_leaves_nothing_out() -> None:
    plan = replace(scheduled("once"), schedule=Each(60))

    assert decide(plan, last=0, now=100) == Due([after(60)])


def test_all_publishes_all_up_to_its_limit() -> None:
    assert seconds(decide(scheduled("all"), last=0, now=20)) == list(range(1, 21))

    found = decide(scheduled("all", limit=3), last=0, now=20)

    assert seconds(found) == [18, 19, 20]
    assert found.settled is not None
    assert after(17) <= found.settled < after(18)


def test_the_latest_ticks_of_a_century_are_found_without_walking_it() -> None:
    asked = 0

    class Counted(Each):
        def next_after(self, instant: datetime) -> datetime:
            nonlocal asked
            asked += 1
            return Each(1).next_after(instant)

    found = latest(Counted(1), START - timedelta(days=36_525), START, 5)

    assert found == [after(second) for second in (-4, -3, -2, -1, 0)]
    assert asked < 50


def test_the_latest_of_fewer_ticks_than_asked_for_are_all_of_them() -> None:
    assert latest(Each(3600), START, after(10_000), 5) == [after(3600), after(7200)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"misfire": "never"}, "misfire of schedule 'report' must be one of"),
        ({"limit": 0}, "limit of schedule 'report' must be from 1"),
        ({"grace": -1}, "grace of schedule 'report' must be 0 or more"),
        ({"overlap": "never"}, "overlap of schedule 'report' must be one of"),
        ({"overlap_limit": 0}, "overlap_limit of schedule 'report' must be more than 0 seconds"),
        ({"name": "two words"}, "Schedule 'two words'"),
        ({"queu": "bulk"}, "Did you mean 'queue'"),
        ({"delay": 5}, "has no option 'delay'"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_at_import(options: dict[str, object], words: str) -> None:
    app = App("shop")

    with pytest.raises(DefinitionError, match=words):
        app.schedule(Each(1), job=Report(), **options)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_two_schedules_of_one_kind_need_names() -> None:
    app = App("shop")
    app.schedule(Each(1), job=Report(day=1))

    with pytest.raises(DefinitionError, match="two schedules called 'report'"):
        app.schedule(Each(2), job=Report(day=2))
    app.schedule(Each(2), job=Report(day=2), name="other-report")

    assert [each.name for each in app.schedules] == ["report", "other-report"]


def test_a_schedule_stands_beside_its_handler_and_changes_nothing_of_it() -> None:
    app = App("shop")

    async def report(job: Report) -> None: ...

    assert app.schedule(Each(1), job=Report(), overlap="skip", overlap_limit=timedelta(hours=1))(report) is report
    assert [(each.overlap, each.overlap_limit) for each in app.schedules] == [("skip", 3_600)]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"priority": 256}, "priority must be"), ({"expires": -1}, "expires must be"), ({"headers": {"CC": "x"}}, "CC")],
)
def test_a_beat_refuses_what_could_never_be_enqueued(options: TickOptions, words: str) -> None:
    app = App("shop", settings=load_settings(url="amqp://nobody:nothing@localhost:1/"))
    app.schedule(Each(1), job=Report(), **options)

    with pytest.raises(ValueError, match=words):
        Beat(app)
