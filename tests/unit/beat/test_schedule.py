from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone

import pytest

from amqpjobs.beat.every import at, every
from amqpjobs.beat.refined import any_of
from amqpjobs.beat.schedule import RESOLUTION, Schedule, anchor, describe, find_next, preview, zone_of
from amqpjobs.errors import DefinitionError
from tests.unit.beat.oracle import utc


@dataclass(frozen=True)
class Doubling:
    """A user's own schedule, without a base class: 1, 2, 4, 8 … s after its start."""

    start: datetime

    def next_after(self, instant: datetime) -> datetime | None:
        step = timedelta(seconds=1)
        while self.start + step <= instant:
            step *= 2
        return self.start + step

    def __str__(self) -> str:
        return f"doubling from {self.start.isoformat()}"


@dataclass(frozen=True)
class Answering:
    """Says what it is told to say."""

    answer: datetime

    def next_after(self, instant: datetime) -> datetime | None:
        return self.answer


class Nameless:
    def next_after(self, instant: datetime) -> datetime | None:
        return None


NOON = utc(2026, 1, 1, 12)


def test_a_users_own_schedule_is_asked_like_ours() -> None:
    mine: Schedule = Doubling(NOON)

    assert [(found - NOON).total_seconds() for found in preview(mine, NOON, 4)] == [1, 2, 4, 8]


def test_a_users_own_schedule_can_be_refined() -> None:
    mine = any_of(Doubling(NOON)).except_on(at(NOON + timedelta(seconds=4))).limited(3, start=NOON)

    assert [(found - NOON).total_seconds() for found in preview(mine, NOON, 10)] == [1, 2, 8]


def test_a_users_own_schedule_is_the_same_when_anchored() -> None:
    mine = Doubling(NOON)

    assert anchor(mine, NOON, "mine") is mine


def test_an_answer_in_another_zone_is_turned_into_utc() -> None:
    east = timezone(timedelta(hours=9))

    found = find_next(Answering(datetime(2026, 1, 2, 9, tzinfo=east)), NOON)

    assert found is not None
    assert found == utc(2026, 1, 2)
    assert found.tzinfo is UTC


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (NOON, "must return a later one"),
        (NOON - timedelta(days=1), "must return a later one"),
        (NOON.replace(tzinfo=None), "no time zone"),
    ],
)
def test_a_wrong_answer_is_an_error_that_says_what_to_do(answer: datetime, says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        find_next(Answering(answer), NOON)


def test_a_schedule_without_a_text_is_an_error_for_python_would_give_its_address() -> None:
    with pytest.raises(DefinitionError, match="__str__"):
        describe(Nameless())
    with pytest.raises(DefinitionError, match="__str__"):
        any_of(every(60), Nameless())


def test_a_preview_ends_with_the_schedule_or_at_its_limit() -> None:
    assert list(preview(at(NOON), NOON - RESOLUTION, 5)) == [NOON]
    assert len(list(preview(every(60), NOON, 5))) == 5


def test_a_preview_after_a_naive_time_is_an_error() -> None:
    with pytest.raises(DefinitionError, match="no time zone"):
        list(preview(every(60), datetime(2026, 1, 1), 5))  # noqa: DTZ001  (that is the point)


def test_an_anchor_without_a_zone_is_an_error() -> None:
    with pytest.raises(DefinitionError, match="no time zone"):
        anchor(every(60), datetime(2026, 1, 1))  # noqa: DTZ001  (that is the point)


def test_a_schedule_without_a_zone_has_the_days_of_utc() -> None:
    assert zone_of(Doubling(NOON)) == "UTC"
