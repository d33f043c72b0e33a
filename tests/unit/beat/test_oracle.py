"""Cron rules by chance, in ten zones, against a brute search that shares no code with ours.

The short form looks at the days around each change of clocks in twenty years, and at a month without one; the
full one at every minute of ten years, for 200 rules.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from amqpjobs.beat.cron import cron
from amqpjobs.beat.schedule import Schedule
from tests.support.length import is_full
from tests.unit.beat.oracle import ZONES, Rule, find_due, find_jumps, make_rule, utc

RULES_A_ZONE = 20 if is_full() else 4
DAY = timedelta(days=1)


def all_between(schedule: Schedule, start: datetime, end: datetime) -> Iterator[datetime]:
    found = schedule.next_after(start - timedelta(microseconds=1))
    while found is not None and found < end:
        yield found
        found = schedule.next_after(found)


def windows(zone: str) -> Iterator[tuple[datetime, datetime]]:
    if is_full():
        yield utc(2010), utc(2020)
    yield utc(2030, 6), utc(2030, 6, 15)
    for decade in utc(2010), utc(2026):
        for day in find_jumps(zone, decade, decade.replace(year=decade.year + 10)):
            yield day - DAY / 2, day + 2 * DAY


@pytest.mark.parametrize("zone", ZONES)
def test_rules_by_chance_are_due_when_a_search_of_all_minutes_finds_them(zone: str) -> None:
    texts = [make_rule(f"{zone} {number}") for number in range(RULES_A_ZONE)]
    schedules = [cron(text, timezone=zone) for text in texts]

    for start, end in windows(zone):
        expected = find_due([Rule(text) for text in texts], zone, start, end)
        for text, schedule, due in zip(texts, schedules, expected, strict=True):
            assert list(all_between(schedule, start, end)) == due, f"{text} in {zone} from {start} to {end}"


#: Rules that meet the changes of clocks, where those by chance may pass by.
TOUCHY = [
    "30 2 * * *",
    "0 2 * * *",
    "0,15,30,45 1,2,3 * * *",
    "0 0 * * *",
    "30 0 * * *",
    "*/15 2 * * *",
    "0 * * * *",
    "0 */2 * * *",
    "20 */3 * * *",
    "10 0-23 * * *",
    "0-59 2 * * *",
    "5 23 * * *",
    "0 9 30 12 *",
]


@pytest.mark.parametrize("zone", ZONES)
def test_rules_at_the_hours_of_change_are_due_when_a_search_finds_them(zone: str) -> None:
    schedules = [cron(text, timezone=zone) for text in TOUCHY]
    days = [day for decade in (2010, 2026) for day in find_jumps(zone, utc(decade), utc(decade + 10))]

    for day in days if is_full() else [*days[:2], *days[-2:], *(each for each in days if each.year == 2011)]:
        start, end = day - DAY / 2, day + 2 * DAY
        expected = find_due([Rule(text) for text in TOUCHY], zone, start, end)
        for text, schedule, due in zip(TOUCHY, schedules, expected, strict=True):
            assert list(all_between(schedule, start, end)) == due, f"{text} in {zone} from {start} to {end}"


def test_the_search_finds_the_day_that_apia_skipped() -> None:
    jumps = find_jumps("Pacific/Apia", utc(2011), utc(2012))

    assert utc(2011, 12, 30) in jumps


def test_the_search_sees_a_rule_that_is_wrong() -> None:
    day = find_jumps("Europe/Berlin", utc(2026), utc(2027))[0]

    due = find_due([Rule("30 2 * * *")], "Europe/Berlin", day, day + DAY)[0]

    assert due == [utc(2026, 3, 29, 1)]
    assert list(all_between(cron("30 2 * * *"), day, day + DAY)) != due
