"""However often one asks for the next instant, the last is where arithmetic says.

10,000 questions a kind, a million in the full form.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from amqpjobs.beat.cron import cron
from amqpjobs.beat.every import every
from amqpjobs.beat.refined import any_of
from amqpjobs.beat.schedule import Schedule, anchor
from tests.support.length import is_full
from tests.unit.beat.oracle import utc

TIMES = 1_000_000 if is_full() else 10_000
START = utc(2026)
BERLIN = ZoneInfo("Europe/Berlin")
MINUTE = timedelta(minutes=1)


def walk(schedule: Schedule, times: int = TIMES) -> Iterator[datetime]:
    last = START
    for _ in range(times):
        found = schedule.next_after(last)
        assert found is not None
        yield found
        last = found


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (every(1), timedelta(seconds=TIMES)),
        (every(0.1), timedelta(seconds=TIMES // 10)),
        (every(1 / 3, start=START), timedelta(microseconds=333_333 * TIMES)),
        (every(7, start=START), timedelta(seconds=7 * TIMES)),
        (anchor(every(11, from_start=True), START), timedelta(seconds=11 * TIMES)),
        (cron("* * * * *"), MINUTE * TIMES),
        (cron("* * * * *", timezone="Australia/Lord_Howe"), MINUTE * TIMES),
        (cron("*/2 * * * * *", seconds="first"), timedelta(seconds=2 * TIMES)),
        (any_of(every(2), every(3)), timedelta(seconds=6 * TIMES // 4)),
        (cron("*/6 * * * *").except_on(cron("0 * * * *")), timedelta(hours=TIMES // 9, minutes=6 * (TIMES % 9))),
        (every(60).between(START, utc(9000)), MINUTE * TIMES),
        (every(3600).except_on(lambda day: day.weekday() > 4), None),
    ],
    ids=str,
)
def test_the_last_of_many_is_where_arithmetic_says(schedule: Schedule, expected: timedelta | None) -> None:
    last = START
    for found in walk(schedule):
        assert found > last
        last = found

    assert last - START == (expected if expected is not None else hours_of_work())


def hours_of_work() -> timedelta:
    """How long so many hours take that are on Monday to Friday; the start is a Thursday at 0:00."""
    weeks, hours = divmod(TIMES, 5 * 24)
    more = timedelta(hours=hours) if hours < 48 else timedelta(hours=hours, days=2)
    return timedelta(weeks=weeks) + more


def test_nine_in_berlin_stays_nine_in_berlin() -> None:
    rule = cron("0 9 * * *", timezone="Europe/Berlin")

    for number, found in enumerate(walk(rule)):
        local = found.astimezone(BERLIN).replace(tzinfo=None)
        assert local == datetime(2026, 1, 1, 9) + timedelta(days=number)  # noqa: DTZ001  (what the wall shows)


def test_jittered_instants_stay_in_their_minutes() -> None:
    moved = list(walk(every(60).jittered(30)))

    first = (moved[0] - START) // MINUTE
    assert [(found - START) // MINUTE for found in moved] == list(range(first, first + TIMES))
    assert all((found - START) % MINUTE < MINUTE / 2 for found in moved)
    assert all(one < other for one, other in pairwise(moved))


def test_a_limit_of_ten_thousand_ends_after_ten_thousand() -> None:
    schedule = every(1).limited(10_000, start=START + timedelta(seconds=1))

    *_, last = walk(schedule, times=10_000)

    assert last == START + timedelta(seconds=10_000)
    assert schedule.next_after(last) is None
