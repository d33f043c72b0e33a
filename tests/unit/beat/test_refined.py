from datetime import date, datetime, timedelta
from itertools import pairwise, takewhile
from zoneinfo import ZoneInfo

import pytest

from amqpjobs.beat import refined
from amqpjobs.beat.cron import cron
from amqpjobs.beat.every import at, every
from amqpjobs.beat.refined import Jittered, any_of
from amqpjobs.beat.schedule import RESOLUTION, Schedule, anchor, preview, zone_of
from amqpjobs.errors import DefinitionError
from tests.unit.beat.oracle import find_jumps, utc

NEW_YEAR = utc(2026)
BERLIN = "Europe/Berlin"


def is_weekend(day: date) -> bool:
    return day.weekday() > 4


class Holidays:
    def __call__(self, day: date) -> bool:
        return (day.month, day.day) == (12, 24)


def shown(schedule: Schedule, after: datetime, limit: int) -> list[str]:
    return [found.isoformat(sep=" ")[:16] for found in preview(schedule, after, limit)]


def test_any_of_several_is_due_once_when_they_meet() -> None:
    both = any_of(every(120), every(180))

    found = [(each - NEW_YEAR).total_seconds() for each in preview(both, NEW_YEAR, 5)]

    assert found == [120, 180, 240, 360, 480]


def test_any_of_several_lasts_as_long_as_the_last_of_them() -> None:
    both = any_of(at(utc(2026, 1, 2)), at(utc(2026, 1, 3)))

    assert shown(both, NEW_YEAR, 5) == ["2026-01-02 00:00", "2026-01-03 00:00"]


def test_days_are_left_out_in_the_zone_of_the_schedule() -> None:
    midnight = cron("0 0 * * *", timezone=BERLIN).except_on(date(2026, 1, 3))

    # Midnight in Berlin is 23:00 in UTC, on the day before.
    assert shown(midnight, NEW_YEAR, 3) == ["2026-01-01 23:00", "2026-01-03 23:00", "2026-01-04 23:00"]


def test_days_can_be_left_out_in_another_zone() -> None:
    late = every(43200).except_on(date(2026, 1, 2), timezone="Pacific/Auckland")

    assert shown(late, NEW_YEAR, 3) == ["2026-01-02 12:00", "2026-01-03 00:00", "2026-01-03 12:00"]


@pytest.mark.parametrize("zone", ["America/Sao_Paulo", "America/St_Johns", "Pacific/Apia"])
def test_a_day_that_begins_or_ends_with_a_change_of_clocks_is_left_out_whole(zone: str) -> None:
    rule = cron("*/30 * * * *", timezone=zone)
    around = [jump + timedelta(days=more) for jump in find_jumps(zone, utc(2011), utc(2012)) for more in (-1, 0, 1)]
    for start in around:
        day = start.date()

        left = list(preview(rule.except_on(day), start - timedelta(days=1), 100))

        every_one = preview(rule, start - timedelta(days=1), 200)
        expected = [each for each in every_one if each.astimezone(ZoneInfo(zone)).date() != day]
        assert left == expected[:100]


def test_a_calendar_leaves_out_the_days_it_knows() -> None:
    working = cron("0 9 * * *").except_on(is_weekend, Holidays())

    assert shown(working, utc(2026, 12, 23, 12), 3) == ["2026-12-25 09:00", "2026-12-28 09:00", "2026-12-29 09:00"]


def test_instants_of_another_schedule_are_left_out() -> None:
    hourly = cron("0 * * * *").except_on(cron("* 1-22 * * *"))

    assert shown(hourly, NEW_YEAR, 3) == ["2026-01-01 23:00", "2026-01-02 00:00", "2026-01-02 23:00"]


def test_seconds_over_a_long_left_out_day_are_stepped_over_at_once() -> None:
    schedule = every(0.001).except_on(date(2026, 1, 1))

    assert schedule.next_after(NEW_YEAR) == utc(2026, 1, 2)


def test_leaving_out_everything_is_an_error_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refined, "LONGEST_EXCEPTION", 1000)

    with pytest.raises(DefinitionError, match="leaves out 1000 instants on end"):
        every(60).except_on(every(60)).next_after(NEW_YEAR)


def test_what_cannot_be_left_out_is_an_error() -> None:
    with pytest.raises(DefinitionError, match="needs a date"):
        every(60).except_on()
    with pytest.raises(DefinitionError, match="is an instant"):
        every(60).except_on(NEW_YEAR)
    with pytest.raises(DefinitionError, match="no time zone"):
        every(60).except_on(date(2026, 1, 1), timezone="Mars")


def test_a_schedule_has_a_start_that_counts_and_an_end_that_does_not() -> None:
    days = cron("0 0 * * *").between(utc(2026, 1, 3), utc(2026, 1, 5))

    assert shown(days, NEW_YEAR, 9) == ["2026-01-03 00:00", "2026-01-04 00:00"]
    assert days.next_after(utc(2026, 1, 3)) == utc(2026, 1, 4)


def test_a_schedule_may_have_only_a_start_or_only_an_end() -> None:
    daily = cron("0 0 * * *")

    assert shown(daily.between(start=utc(2026, 2, 1)), NEW_YEAR, 1) == ["2026-02-01 00:00"]
    assert len(shown(daily.between(end=utc(2026, 2, 1)), NEW_YEAR, 99)) == 30


def test_a_wrong_start_or_end_is_an_error() -> None:
    with pytest.raises(DefinitionError, match="a start or an end"):
        every(60).between()
    with pytest.raises(DefinitionError, match="not after its start"):
        every(60).between(NEW_YEAR, NEW_YEAR)
    with pytest.raises(DefinitionError, match="no time zone"):
        every(60).between(datetime(2026, 1, 1))  # noqa: DTZ001  (that is the point)


def test_a_limit_counts_instants_from_its_start() -> None:
    thrice = cron("0 9 * * *").limited(3, start=utc(2026, 1, 5))

    assert shown(thrice, NEW_YEAR, 9) == ["2026-01-05 09:00", "2026-01-06 09:00", "2026-01-07 09:00"]
    assert thrice.next_after(utc(2026, 1, 6, 9)) == utc(2026, 1, 7, 9)
    assert thrice.next_after(utc(2026, 1, 7, 9)) is None


def test_a_limit_without_a_start_counts_from_when_it_was_first_seen() -> None:
    thrice = anchor(cron("0 9 * * *").limited(3), utc(2026, 1, 5, 9))

    assert len(shown(thrice, NEW_YEAR, 9)) == 3
    assert thrice.next_after(utc(2026, 1, 7, 9)) is None
    assert anchor(every(60, from_start=True, at_start=True).limited(1), NEW_YEAR).next_after(NEW_YEAR) is None


def test_fewer_instants_than_the_limit_are_all_there_are() -> None:
    assert shown(at(utc(2026, 1, 2)).limited(5, start=NEW_YEAR), NEW_YEAR, 9) == ["2026-01-02 00:00"]


@pytest.mark.parametrize("times", [0, -1, 10_001])
def test_a_limit_that_is_none_is_an_error(times: int) -> None:
    with pytest.raises(DefinitionError, match="1 to 10000 times"):
        every(60).limited(times)


@pytest.mark.parametrize(
    ("schedule", "most"),
    [
        (every(60), 10.0),
        (every(60), 60.0),
        (every(1), 3600.0),
        (every(0.001), 5.0),
        (cron("0 9 * * *", timezone=BERLIN), 7200.0),
        (cron("0,1,2 9 * * *"), 86400.0 * 3),
        (any_of(every(7), every(60)), 5.0),
    ],
    ids=str,
)
def test_jitter_delays_each_instant_and_never_past_the_next(schedule: Schedule, most: float) -> None:
    moved = list(preview(Jittered(schedule, timedelta(seconds=most)), NEW_YEAR + RESOLUTION, 51))

    # The first may belong to an instant before the question.
    due = list(takewhile(lambda each: each <= moved[50], preview(schedule, NEW_YEAR - timedelta(seconds=most), 10_000)))
    bases = [max(each for each in due if each <= found) for found in moved[:50]]
    assert all(base <= found < base + timedelta(seconds=most) for base, found in zip(bases, moved, strict=False))
    assert len(set(bases)) == 50
    assert all(one < other for one, other in pairwise(moved))


def test_from_wherever_one_asks_jitter_gives_the_same_instants() -> None:
    jittered = every(60).jittered(45)
    moved = list(preview(jittered, NEW_YEAR, 100))

    for one, other in pairwise(moved):
        for instant in (one, one + (other - one) / 2, other - RESOLUTION):
            assert jittered.next_after(instant) == other


def test_jitter_spreads_evenly_and_by_name() -> None:
    named = [anchor(cron("0 0 * * *").jittered(3600), NEW_YEAR, f"report-{number}") for number in range(1000)]

    delays = [next(preview(each, utc(2026, 1, 1, 12), 1)) - utc(2026, 1, 2) for each in named]

    assert len(set(delays)) > 990
    assert 1700 < sum(delays, timedelta()).total_seconds() / 1000 < 1900
    assert str(named[0]) == str(named[1])


@pytest.mark.parametrize("seconds", [0, -1])
def test_jitter_that_is_none_is_an_error(seconds: float) -> None:
    with pytest.raises(DefinitionError, match="more than 0 seconds"):
        every(60).jittered(seconds)


def test_refinements_nest_and_an_anchor_reaches_all_of_them() -> None:
    floating = every(60, from_start=True)
    nested = any_of(floating.except_on(floating.limited(2))).between(end=utc(2027)).limited(2).jittered(1)

    found = list(preview(anchor(nested, NEW_YEAR, "nested"), NEW_YEAR, 9))

    assert [round((each - NEW_YEAR).total_seconds()) // 60 for each in found] == [3, 4]


def test_a_refinement_keeps_the_zone() -> None:
    nine = cron("0 9 * * *", timezone=BERLIN)

    refinement = nine.except_on(is_weekend).between(NEW_YEAR).limited(5).jittered(5)

    assert zone_of(refinement) == BERLIN
    assert zone_of(any_of(refinement, nine)) == BERLIN
    assert zone_of(any_of(refinement, every(60))) == "UTC"


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (any_of(every(60), every(90)), "any of (every 60 s; every 90 s)"),
        (
            every(60).except_on(is_weekend, date(2026, 1, 2), date(2026, 1, 1), at(NEW_YEAR)),
            "every 60 s except on 2026-01-01, 2026-01-02, tests.unit.beat.test_refined.is_weekend UTC, "
            "(at 2026-01-01T00:00:00+00:00)",
        ),
        (every(60).except_on(Holidays()), "every 60 s except on tests.unit.beat.test_refined.Holidays UTC"),
        (
            every(60).between(NEW_YEAR, utc(2027)),
            "every 60 s from 2026-01-01T00:00:00+00:00 until 2027-01-01T00:00:00+00:00",
        ),
        (every(60).limited(3), "every 60 s 3 times from first seen"),
        (every(60).limited(3, start=NEW_YEAR), "every 60 s 3 times from 2026-01-01T00:00:00+00:00"),
        (every(60).jittered(timedelta(seconds=2)), "every 60 s jittered by 2 s"),
    ],
    ids=["any", "except", "callable", "between", "limited", "started", "jittered"],
)
def test_a_refined_definition_as_text(schedule: Schedule, text: str) -> None:
    assert str(schedule) == text
    assert str(anchor(schedule, NEW_YEAR, "name")) == text


def test_any_of_nothing_is_an_error() -> None:
    with pytest.raises(DefinitionError, match="at least one"):
        any_of()
