"""What was said at runtime is bounded."""

from datetime import UTC, datetime
from typing import Any

import pytest

from amqpjobs import ScheduleError
from amqpjobs.beat.added import LONGEST_ADDED, LONGEST_TOGETHER, MOST_ADDED
from amqpjobs.beat.runtime import MOST_ANSWERS, MOST_PAUSED, Runtime, answer_in

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def data(name: str, size: int = 0) -> dict[str, Any]:
    return {"name": name, "payload": "x" * size}


def test_so_many_schedules_can_be_added_and_no_more() -> None:
    runtime = Runtime()
    for number in range(MOST_ADDED):
        runtime.add(str(number), data(str(number)))

    with pytest.raises(ScheduleError, match=r"10,000 schedules .* are added"):
        runtime.add("one more", data("one more"))

    runtime.add("7", data("7", 10))  # instead of another one
    runtime.remove("8")
    runtime.add("one more", data("one more"))
    assert len(runtime.added) == MOST_ADDED


def test_so_many_bytes_can_be_added_and_no_more_also_after_they_were_read_again() -> None:
    runtime = Runtime()
    for number in range(LONGEST_TOGETHER // LONGEST_ADDED):
        runtime.add(str(number), data(str(number), LONGEST_ADDED - 100))
    again = Runtime()
    again.merge({"added": runtime.added})
    again.merge({"added": {"0": None}})
    again.add("fits", data("fits", LONGEST_ADDED - 200))

    for each in (runtime, again):
        with pytest.raises(ScheduleError, match=r"4,194,304 bytes together"):
            each.add("one more", data("one more", LONGEST_ADDED))


def test_so_many_can_be_paused_and_no_more() -> None:
    runtime = Runtime()
    for number in range(MOST_PAUSED):
        runtime.pause(str(number), NOW)
    runtime.pause("7", NOW)

    with pytest.raises(ScheduleError, match="no more can be"):
        runtime.pause("one more", NOW)


def test_only_the_last_answers_are_kept() -> None:
    runtime, reader = Runtime(), Runtime()
    for number in range(2 * MOST_ANSWERS):
        runtime.answer(str(number), "")
        reader.merge(runtime.changes())

    assert list(runtime.answers) == list(reader.answers) == [str(n) for n in range(MOST_ANSWERS, 2 * MOST_ANSWERS)]


def test_an_answer_is_found_where_it_is() -> None:
    runtime = Runtime()
    runtime.answer("1", "as asked")
    runtime.answer("2", "")
    changes = runtime.changes()

    assert (answer_in(changes, "1"), answer_in(changes, "2"), answer_in(changes, "3")) == ("as asked", "", None)
    assert answer_in({"marks": {}}, "1") is None


def test_what_was_written_is_not_a_change_any_more() -> None:
    runtime = Runtime()
    runtime.pause("report", NOW)
    first, second = runtime.changes(), runtime.changes()

    assert first == {"paused": {"report": NOW}}
    assert second == {}
    assert runtime.is_kept


def test_who_is_removed_is_paused_no_longer() -> None:
    runtime = Runtime()
    runtime.add("report", data("report"))
    runtime.pause("report", NOW)
    runtime.remove("report")

    assert (runtime.added, runtime.paused) == ({}, {})
