"""Schedules as data: what is written is made again, and what comes from outside is bounded and checked."""

from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from pydantic import TypeAdapter, ValidationError

from amqpjobs import DefinitionError, Schedule, any_of, at, cron, every
from amqpjobs.beat.form import Form, form_of
from amqpjobs.beat.schedule import anchor, preview
from tests.support.ticks import Each

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FORM: TypeAdapter[Form] = TypeAdapter(Form)
SCHEDULES = [
    cron("0 9 * * mon-fri", timezone="Europe/Berlin"),
    cron("@daily"),
    cron("30 0 9 * * *", timezone="America/New_York", seconds="first"),
    cron("0 9 * * * 30", seconds="last"),
    every(0.001),
    every(90),
    every(60, start=NOW + timedelta(seconds=7)),
    every(60, from_start=True),
    every(60, from_start=True, at_start=True),
    at(NOW + timedelta(days=1)),
    every(60).between(NOW, NOW + timedelta(days=1)),
    every(60).between(end=NOW + timedelta(days=1)),
    cron("0 9 * * *").jittered(30),
    every(60).between(start=NOW).jittered(1.5),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_what_is_written_is_made_again_with_the_same_text_and_the_same_instants(schedule: Schedule) -> None:
    again = FORM.validate_json(form_of(schedule).model_dump_json(exclude_defaults=True)).schedule()

    assert str(again) == str(schedule)
    made, first = anchor(again, NOW, "report"), anchor(schedule, NOW, "report")
    assert list(islice(preview(made, NOW, 5), 5)) == list(preview(first, NOW, 5))


@pytest.mark.parametrize(
    "schedule",
    [
        Each(1),
        any_of(every(1), every(2)),
        every(1).limited(3),
        every(60).except_on(NOW.date()),
        every(60).jittered(1).between(start=NOW),
    ],
    ids=str,
)
def test_what_cannot_be_kept_is_told_and_what_can(schedule: Schedule) -> None:
    with pytest.raises(DefinitionError, match=r"cannot be added at runtime: a schedule that the broker keeps is cron"):
        form_of(schedule)


@pytest.mark.parametrize(
    "data",
    [
        "{}",
        "[]",
        '{"every": "often"}',
        '{"every": 1, "cron": "* * * * *"}',
        '{"cron": 7}',
        '{"at": "2026-01-01T00:00:00"}',
        '{"cron": "' + "*" * 501 + '"}',
        '{"every": 1, "jitter": 0}',
        '{"every": 1, "jitter": 1e300}',
        '{"every": 1, "schedule": "os.system"}',
        '{"limited": 10000}',
    ],
)
def test_data_of_another_form_is_refused(data: str) -> None:
    with pytest.raises(ValidationError):
        FORM.validate_json(data)


@pytest.mark.parametrize(
    "data",
    [
        '{"cron": "not a rule at all"}',
        '{"cron": "0 0 31 2 *"}',
        '{"cron": "* * * * *", "timezone": "../../etc/passwd"}',
        '{"every": 0}',
        '{"every": -1}',
        '{"every": 1e300}',
        '{"every": 1, "at_start": true}',
        '{"every": 1, "start": "2026-01-02T00:00:00Z", "end": "2026-01-01T00:00:00Z"}',
    ],
)
def test_data_of_the_form_passes_the_checks_of_our_own_constructors(data: str) -> None:
    form = FORM.validate_json(data)

    with pytest.raises(DefinitionError):
        form.schedule()
