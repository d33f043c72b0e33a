from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amqpjobs.beat.every import Every, at, every
from amqpjobs.beat.schedule import RESOLUTION, Schedule, anchor, preview
from amqpjobs.errors import DefinitionError
from tests.unit.beat.oracle import utc

NOON = utc(2026, 1, 1, 12)


def seconds(schedule: Schedule, after: datetime, limit: int) -> list[float]:
    """The next instants, in seconds since noon."""
    return [(found - NOON).total_seconds() for found in preview(schedule, after, limit)]


def test_an_interval_is_aligned_to_the_epoch() -> None:
    assert seconds(every(60), NOON + timedelta(seconds=1), 3) == [60, 120, 180]
    assert seconds(every(timedelta(hours=1)), NOON, 2) == [3600, 7200]
    assert seconds(every(0.25), NOON, 3) == [0.25, 0.5, 0.75]


def test_an_interval_may_have_a_start_which_is_its_first_instant() -> None:
    schedule = every(60, start=NOON + timedelta(seconds=7))

    assert seconds(schedule, NOON - timedelta(days=9), 3) == [7, 67, 127]
    assert seconds(schedule, NOON + timedelta(seconds=67), 1) == [127]


def test_an_interval_may_count_from_when_it_was_first_seen() -> None:
    schedule = anchor(every(60, from_start=True), NOON + timedelta(seconds=7))

    assert seconds(schedule, NOON, 3) == [67, 127, 187]
    assert seconds(schedule, NOON + timedelta(seconds=70), 1) == [127]


def test_an_interval_may_also_be_due_when_it_was_first_seen() -> None:
    schedule = anchor(every(60, from_start=True, at_start=True), NOON)

    assert seconds(schedule, NOON - RESOLUTION, 3) == [0, 60, 120]
    assert seconds(schedule, NOON, 1) == [60]


def test_before_it_is_anchored_it_counts_from_the_question() -> None:
    assert seconds(every(60, from_start=True), NOON + timedelta(seconds=7), 3) == [67, 127, 187]


def test_an_anchor_does_not_change_the_text_nor_what_is_aligned() -> None:
    floating, aligned = every(60, from_start=True, at_start=True), every(60)

    assert str(anchor(floating, NOON)) == str(floating)
    assert anchor(aligned, NOON) is aligned
    assert seconds(anchor(every(60, start=NOON), NOON + timedelta(seconds=5)), NOON, 1) == [60]


@given(
    st.timedeltas(min_value=timedelta(milliseconds=1), max_value=timedelta(days=400)),
    st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_the_next_one_is_the_first_multiple_that_is_later(interval: timedelta, instant: datetime) -> None:
    epoch = utc(1970)

    found = every(interval).next_after(instant)

    assert found is not None
    assert instant < found <= instant + interval
    assert (found - epoch) % interval == timedelta()


def test_real_time_does_not_care_for_summer_time() -> None:
    spring = datetime(2026, 3, 28, 12, tzinfo=ZoneInfo("Europe/Berlin"))

    following = every(86400, start=spring).next_after(spring.astimezone(UTC))

    assert following == spring.astimezone(UTC) + timedelta(days=1)


@pytest.mark.parametrize("span", [0, -1, 0.0001, float("nan"), float("inf"), 1e12, timedelta(), -timedelta(days=1)])
def test_an_interval_that_is_none_is_an_error(span: float | timedelta) -> None:
    with pytest.raises(DefinitionError, match=r"0\.001 s to a hundred years"):
        every(span)


def test_contradictions_are_errors() -> None:
    with pytest.raises(DefinitionError, match="not both"):
        every(60, start=NOON, from_start=True)
    with pytest.raises(DefinitionError, match="from_start=True"):
        every(60, at_start=True)


def test_a_naive_time_is_an_error() -> None:
    with pytest.raises(DefinitionError, match="no time zone"):
        every(60, start=datetime(2026, 1, 1))  # noqa: DTZ001  (that is the point)
    with pytest.raises(DefinitionError, match="no time zone"):
        at(datetime(2026, 1, 1))  # noqa: DTZ001  (that is the point)


def test_once_is_once() -> None:
    once = at(NOON.astimezone(ZoneInfo("Asia/Tokyo")))

    assert once.next_after(NOON - RESOLUTION) == NOON
    assert once.next_after(NOON) is None


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (every(60), "every 60 s"),
        (every(timedelta(minutes=1)), "every 60 s"),
        (every(0.25), "every 0.25 s"),
        (every(123456789.5), "every 123456789.5 s"),
        (every(60, start=NOON), "every 60 s from 2026-01-01T12:00:00+00:00"),
        (every(60, from_start=True), "every 60 s from first seen"),
        (every(60, from_start=True, at_start=True), "every 60 s from first seen, at once"),
        (at(NOON), "at 2026-01-01T12:00:00+00:00"),
    ],
    ids=str,
)
def test_a_definition_as_text(schedule: Schedule, text: str) -> None:
    assert str(schedule) == text


def test_nothing_is_due_after_the_end_of_the_calendar() -> None:
    last = datetime.max.replace(tzinfo=UTC)

    assert every(60).next_after(last) is None
    assert every(60, from_start=True).next_after(last) is None
    assert isinstance(every(60), Every)
