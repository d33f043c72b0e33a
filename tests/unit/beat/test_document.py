"""docs/schedules.md tells the truth: its code runs, and what its tables say of changed clocks is so."""

import re
from datetime import datetime
from pathlib import Path

import pytest

from amqpjobs.beat.cron import cron
from amqpjobs.beat.every import every
from amqpjobs.beat.schedule import RESOLUTION, Schedule, preview
from tests.unit.beat.oracle import utc

DOCUMENT = (Path(__file__).parents[3] / "docs/schedules.md").read_text(encoding="utf-8")
BLOCKS: list[str] = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
#: The rules of the row, then what it says of the day of 23 hours, of the one of 25, and of others.
ROWS: list[tuple[str, str, str, str]] = re.findall(
    r"^\| (`[^|]*`) \| ([^|]*) \| ([^|]*) \| (\w+) \|$", DOCUMENT.partition("| rule | 29 March")[2], re.MULTILINE
)
#: Midnights of Berlin, in UTC.
DAYS = [
    (utc(2026, 3, 28, 23), utc(2026, 3, 29, 22)),
    (utc(2026, 10, 24, 22), utc(2026, 10, 25, 23)),
    (utc(2026, 5, 31, 22), utc(2026, 6, 1, 22)),
]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_code_of_the_document_runs(block: str) -> None:
    exec(block, {"__name__": "document"})


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_of_the_table_of_berlin_is_true(row: tuple[str, str, str, str]) -> None:
    rules, *said = row
    for rule in re.findall(r"`([^`]*)`", rules):
        counts = [count_between(made(rule), start, end) for start, end in DAYS]

        assert counts == [number(words) for words in said]


def test_the_document_has_code_and_a_table() -> None:
    assert len(BLOCKS) == 2
    assert len(ROWS) == 9


def made(rule: str) -> Schedule:
    return every(3600) if rule == "every(3600)" else cron(rule, timezone="Europe/Berlin")


def count_between(schedule: Schedule, start: datetime, end: datetime) -> int:
    return sum(found < end for found in preview(schedule, start - RESOLUTION, 200))


def number(words: str) -> int:
    """ "once, at 03:00" is 1, "**none**" is 0, "13: twice at 02:00" is 13."""
    first = re.split(r"[,:]", words.strip("* "))[0]
    return int(first) if first.isdecimal() else ["none", "once", "twice"].index(first)
