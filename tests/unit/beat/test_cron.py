import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amqpjobs.beat.cron import Cron, cron
from amqpjobs.beat.schedule import preview
from amqpjobs.errors import DefinitionError
from tests.unit.beat.oracle import utc


def walls(rule: Cron, start: str, limit: int) -> list[str]:
    """What the wall shows at the next instants after this local time, each once as the rule's zone has it."""
    zone = ZoneInfo(rule.timezone)
    after = datetime.fromisoformat(start).replace(tzinfo=zone)
    return [found.astimezone(zone).isoformat(sep=" ")[:16] for found in preview(rule, after, limit)]


def count_on(rule: Cron, day: str) -> int:
    """How often it is due on a local day."""
    zone = ZoneInfo(rule.timezone)
    start = datetime.fromisoformat(day).replace(tzinfo=zone).astimezone(UTC)
    end = (datetime.fromisoformat(day) + timedelta(days=1)).replace(tzinfo=zone).astimezone(UTC)
    return sum(found < end for found in preview(rule, start - timedelta(microseconds=1), 2000))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 9 * * mon-fri", ["2026-01-01 09:00", "2026-01-02 09:00", "2026-01-05 09:00"]),
        ("0 9 * * MON,Wed", ["2026-01-05 09:00", "2026-01-07 09:00", "2026-01-12 09:00"]),
        ("*/25 * * * *", ["2026-01-01 00:25", "2026-01-01 00:50", "2026-01-01 01:00"]),
        ("5/25 0 * * *", ["2026-01-01 00:05", "2026-01-01 00:30", "2026-01-01 00:55"]),
        ("0 22-1 * * *", ["2026-01-01 01:00", "2026-01-01 22:00", "2026-01-01 23:00"]),
        ("0 8-18/5 * * *", ["2026-01-01 08:00", "2026-01-01 13:00", "2026-01-01 18:00"]),
        ("0 0 * * 7", ["2026-01-04 00:00", "2026-01-11 00:00", "2026-01-18 00:00"]),
        ("0 0 * * sat-sun", ["2026-01-03 00:00", "2026-01-04 00:00", "2026-01-10 00:00"]),
        ("0 0 31 * *", ["2026-01-31 00:00", "2026-03-31 00:00", "2026-05-31 00:00"]),
        ("0 0 29 feb *", ["2028-02-29 00:00", "2032-02-29 00:00", "2036-02-29 00:00"]),
        ("0 0 13 * fri", ["2026-01-02 00:00", "2026-01-09 00:00", "2026-01-13 00:00"]),
        ("0 0 ? * mon", ["2026-01-05 00:00", "2026-01-12 00:00", "2026-01-19 00:00"]),
        ("0 0 L * *", ["2026-01-31 00:00", "2026-02-28 00:00", "2026-03-31 00:00"]),
        ("0 0 15W * *", ["2026-01-15 00:00", "2026-02-16 00:00", "2026-03-16 00:00"]),
        ("0 0 1w 2,8,11 *", ["2026-02-02 00:00", "2026-08-03 00:00", "2026-11-02 00:00"]),
        ("0 0 31w 1,2,5 *", ["2026-01-30 00:00", "2026-02-27 00:00", "2026-05-29 00:00"]),
        ("0 0 * * fri#2", ["2026-01-09 00:00", "2026-02-13 00:00", "2026-03-13 00:00"]),
        ("0 0 * * mon#1,fri#1", ["2026-01-02 00:00", "2026-01-05 00:00", "2026-02-02 00:00"]),
        ("0 0 * * L5", ["2026-01-30 00:00", "2026-02-27 00:00", "2026-03-27 00:00"]),
        ("0 0 * feb mon#5", ["2044-02-29 00:00", "2072-02-29 00:00", "2112-02-29 00:00"]),
        ("  0  0\t1 1 * ", ["2027-01-01 00:00", "2028-01-01 00:00", "2029-01-01 00:00"]),
        ("@hourly", ["2026-01-01 01:00", "2026-01-01 02:00", "2026-01-01 03:00"]),
        ("@daily", ["2026-01-02 00:00", "2026-01-03 00:00", "2026-01-04 00:00"]),
        ("@Midnight", ["2026-01-02 00:00", "2026-01-03 00:00", "2026-01-04 00:00"]),
        ("@weekly", ["2026-01-04 00:00", "2026-01-11 00:00", "2026-01-18 00:00"]),
        ("@monthly", ["2026-02-01 00:00", "2026-03-01 00:00", "2026-04-01 00:00"]),
        ("@yearly", ["2027-01-01 00:00", "2028-01-01 00:00", "2029-01-01 00:00"]),
        ("@annually", ["2027-01-01 00:00", "2028-01-01 00:00", "2029-01-01 00:00"]),
    ],
)
def test_an_expression_means(expression: str, expected: list[str]) -> None:
    assert walls(cron(expression), "2026-01-01", 3) == expected


@pytest.mark.parametrize(
    ("expression", "seconds"), [("*/20 59 23 * * *", "first"), ("59 23 * * * */20", "last")], ids=str
)
def test_seconds_stand_where_it_is_said(expression: str, seconds: Literal["first", "last"]) -> None:
    rule = cron(expression, seconds=seconds)

    found = list(preview(rule, utc(2026, 1, 1), 4))

    assert found == [
        utc(2026, 1, 1, 23, 59),
        utc(2026, 1, 1, 23, 59, 20),
        utc(2026, 1, 1, 23, 59, 40),
        utc(2026, 1, 2, 23, 59),
    ]
    assert str(rule) == "cron */20 59 23 * * * UTC"


def test_seconds_that_are_over_wait_for_the_next_minute_hour_and_day() -> None:
    rule = cron("10,40 5 7 * * *", seconds="first")

    assert rule.next_after(utc(2026, 1, 1, 7, 5, 9)) == utc(2026, 1, 1, 7, 5, 10)
    assert rule.next_after(utc(2026, 1, 1, 7, 5, 10)) == utc(2026, 1, 1, 7, 5, 40)
    assert rule.next_after(utc(2026, 1, 1, 7, 5, 40)) == utc(2026, 1, 2, 7, 5, 10)


def test_an_answer_is_strictly_later_to_the_microsecond() -> None:
    rule = cron("0 9 * * *")
    nine = utc(2026, 1, 1, 9)

    assert rule.next_after(nine - timedelta(microseconds=1)) == nine
    assert rule.next_after(nine) == nine + timedelta(days=1)
    assert rule.next_after(nine + timedelta(microseconds=1)) == nine + timedelta(days=1)


#: Berlin, 29 March 2026: from 02:00 to 03:00, and 25 October: from 03:00 back to 02:00.
@pytest.mark.parametrize(
    ("expression", "spring", "autumn", "other_days"),
    [
        ("30 2 * * *", 1, 1, 1),
        ("0,15,30,45 2 * * *", 1, 4, 4),
        ("0 2,3 * * *", 1, 2, 2),
        ("0 3 * * *", 1, 1, 1),
        ("0 9 * * *", 1, 1, 1),
        ("0 * * * *", 23, 25, 24),
        ("0 0-23 * * *", 23, 25, 24),
        ("*/15 * * * *", 92, 100, 96),
        ("0 */2 * * *", 11, 13, 12),
        ("*/15 2 * * *", 0, 8, 4),
        ("0-59 2 * * *", 0, 120, 60),
    ],
)
def test_on_the_days_when_clocks_change_a_rule_is_due_so_often(
    expression: str, spring: int, autumn: int, other_days: int
) -> None:
    rule = cron(expression, timezone="Europe/Berlin")

    counts = [count_on(rule, day) for day in ("2026-03-29", "2026-10-25", "2026-06-01")]

    assert counts == [spring, autumn, other_days]


@pytest.mark.parametrize(
    ("zone", "expression", "after", "expected"),
    [
        ("Europe/Berlin", "30 2 * * *", "2026-03-28 12:00", ["2026-03-29 03:00", "2026-03-30 02:30"]),
        ("Europe/Berlin", "30 1,2 * * *", "2026-03-28 12:00", ["2026-03-29 01:30", "2026-03-29 03:00"]),
        ("Europe/Berlin", "30 * * * *", "2026-03-29 00:40", ["2026-03-29 01:30", "2026-03-29 03:30"]),
        ("Europe/Berlin", "30 2 * * *", "2026-10-24 12:00", ["2026-10-25 02:30", "2026-10-26 02:30"]),
        ("Europe/Berlin", "30 * * * *", "2026-10-25 01:40", ["2026-10-25 02:30", "2026-10-25 02:30"]),
        ("Australia/Lord_Howe", "15 2 * * *", "2026-10-03 12:00", ["2026-10-04 02:30", "2026-10-05 02:15"]),
        ("America/Sao_Paulo", "0 0 * * *", "2018-11-03 12:00", ["2018-11-04 01:00", "2018-11-05 00:00"]),
        ("Pacific/Apia", "0 9 * * *", "2011-12-29 12:00", ["2011-12-31 00:00", "2011-12-31 09:00"]),
        ("Pacific/Apia", "0 */12 * * *", "2011-12-29 12:00", ["2011-12-31 00:00", "2011-12-31 12:00"]),
    ],
)
def test_when_clocks_change_a_rule_is_due_at(zone: str, expression: str, after: str, expected: list[str]) -> None:
    assert walls(cron(expression, timezone=zone), after, 2) == expected


def test_of_two_equal_times_the_first_counts() -> None:
    rule = cron("30 2 * * *", timezone="Europe/Berlin")

    assert rule.next_after(utc(2026, 10, 24, 12)) == utc(2026, 10, 25, 0, 30)


@pytest.mark.parametrize(
    ("expression", "seconds", "says"),
    [
        ("", None, "0 fields"),
        ("* * * *", None, "4 fields"),
        ("* * * * * *", None, "seconds='first'"),
        ("* * * * *", "first", "5 fields"),
        ("* * * * * * 2026", "last", "no years"),
        ("60 * * * *", None, "no cron expression"),
        ("* 24 * * *", None, "no cron expression"),
        ("* * 0 * *", None, "no cron expression"),
        ("* * * 13 *", None, "no cron expression"),
        ("* * * * 8", None, "no cron expression"),
        ("* * * * someday", None, "no cron expression"),
        ("*/0 * * * *", None, "no cron expression"),
        ("0 0 1, * *", None, "no cron expression"),
        ("0 0 * * *#1", None, "no cron expression"),
        ("a b c d e", None, "no cron expression"),
        ("* * * * mon#6", None, "no cron expression"),
        ("*/90 * * * *", None, r"every\(seconds\)"),
        ("0 */24 * * *", None, r"every\(seconds\)"),
        ("5-5 * * * *", None, "write '5'"),
        ("R * * * *", None, "chance"),
        ("h(0-29) * * * *", None, "chance"),
        ("h/5 * * * *", None, "chance"),
        ("@reboot", None, "@hourly"),
        ("@every 5m", None, "@hourly"),
        ("0 0 30 2 *", None, "can never fire"),
        ("0 0 31 2,4,6,9,11 *", None, "can never fire"),
    ],
)
def test_a_wrong_expression_is_an_error_that_says_what_to_do(
    expression: str, seconds: Literal["first", "last"] | None, says: str
) -> None:
    with pytest.raises(DefinitionError, match=says):
        cron(expression, seconds=seconds)


def test_a_rule_whose_only_hour_is_always_skipped_can_never_fire() -> None:
    with pytest.raises(DefinitionError, match="can never fire in Europe/Berlin"):
        cron("*/5 2 * mar L0", timezone="Europe/Berlin")


@pytest.mark.parametrize("zone", ["", "Berlin", "Europe", "../etc/passwd", "/etc/localtime", "Europe/Berlin\0"])
def test_an_unknown_zone_is_an_error(zone: str) -> None:
    with pytest.raises(DefinitionError, match="no time zone"):
        cron("0 9 * * *", timezone=zone)


@given(st.text(alphabet="0123456789*/-,?#lwhr@ monfrijan", max_size=20))
def test_whatever_is_written_is_a_rule_or_a_definition_error(text: str) -> None:
    try:
        rule = cron(text)
    except DefinitionError:
        return

    found = rule.next_after(utc(2026))

    assert found is not None
    assert found > utc(2026)


def test_equal_definitions_have_equal_texts_and_different_ones_do_not() -> None:
    nine = cron("0  9 * * MON-FRI", timezone="Europe/Berlin")

    assert str(nine) == "cron 0 9 * * mon-fri Europe/Berlin"
    assert nine == cron("0 9 * * mon-fri", timezone="Europe/Berlin")
    assert str(cron("@hourly")) == str(cron("0 * * * *"))
    assert str(nine) != str(cron("0 9 * * mon-fri"))


def test_nothing_is_due_after_the_end_of_the_calendar_and_the_first_is_found_from_the_beginning() -> None:
    rule = cron("0 9 1 1 *", timezone="Asia/Kathmandu")

    assert rule.next_after(datetime.max.replace(tzinfo=UTC)) is None
    assert rule.next_after(datetime.min.replace(tzinfo=UTC)) is not None


def test_another_process_with_another_zone_and_hash_seed_finds_the_same() -> None:
    script = """
import json
from datetime import UTC, datetime
from amqpjobs import any_of, cron, every
from amqpjobs.beat.schedule import anchor, preview
rule = any_of(cron("30 2 * * sun,wed", timezone="America/New_York").jittered(600), every(7777))
rule = anchor(rule, datetime(2026, 1, 1, tzinfo=UTC), "report")
print(json.dumps([str(rule), *(each.isoformat() for each in preview(rule, datetime(2026, 3, 1, tzinfo=UTC), 50))]))
"""
    found = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", script],
                env={"TZ": zone, "PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for zone, seed in [("UTC", "1"), ("Asia/Tokyo", "2")]
    ]

    assert found[0] == found[1]
    assert len(found[0]) == 51
