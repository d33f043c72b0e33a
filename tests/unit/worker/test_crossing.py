"""What crosses between a worker and its children comes out as it went in."""

import json
import logging
import math
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from amqpjobs.codec import RemoteError, dumps, loads, traceback_of, words_of
from amqpjobs.job import Job
from amqpjobs.logs import JsonFormatter
from amqpjobs.outcome import Cancelled, Completed, Dead, DeadReason, Expired, Outcome, Retrying, Returned, Snoozed
from amqpjobs.worker.crossing import (
    LENGTHS,
    Frame,
    envelope_of,
    job_frame,
    log_frame,
    outcome_frame,
    outcome_of,
    packed,
    record_of,
)
from tests.unit.making import NOW, envelope


class Account(BaseModel):
    owner: str
    token: SecretStr


class Open(Job[Account], kind="open"):
    pass


class Count(Job[int], kind="count"):
    pass


class Maybe(Job[list[Account] | None], kind="maybe"):
    pass


class Nothing(Job[None], kind="nothing"):
    pass


class Anything(Job[Any], kind="anything"):
    pass


def across(frame: Frame) -> Frame:
    """The frame as the other process reads it."""
    head, body = frame
    raw = b"".join(packed(head, body))
    head_length, body_length = LENGTHS.unpack(raw[: LENGTHS.size])
    rest = raw[LENGTHS.size :]
    assert len(rest) == head_length + body_length
    return loads(rest[:head_length]), rest[head_length:]


def test_an_envelope_crosses_whole() -> None:
    sent = envelope(
        payload=b'{"number": 1}',
        attempt=3,
        version=2,
        enqueued_at=NOW,
        run_at=NOW,
        expires_at=NOW + timedelta(milliseconds=1),
        max_attempts=9,
        timeout=1.5,
        priority=4,
        parent="p",
        root="r",
        headers={"tenant": "ü", "n": 3},
    )

    assert envelope_of(across(job_frame(sent))) == sent


def test_a_payload_that_is_no_text_crosses_as_it_is() -> None:
    sent = envelope(payload=bytes(range(256)))

    assert envelope_of(across(job_frame(sent))).payload == sent.payload


def test_headers_that_json_does_not_know_become_text() -> None:
    circle = list[object]()
    circle.append(circle)
    sent = envelope(headers={"raw": b"\xff", "decimal": Decimal("1.5"), "torn": "\ud800", "circle": circle})

    headers = envelope_of(across(job_frame(sent))).headers

    assert headers["decimal"] == "1.5"
    assert all(isinstance(value, str) for value in headers.values())


@pytest.mark.parametrize(
    ("job", "outcome"),
    [
        (Count, Completed(7)),
        (Open, Completed(Account(owner="Ada", token=SecretStr("hidden")))),
        (Maybe, Completed(None)),
        (Maybe, Completed([Account(owner="Ada", token=SecretStr("hidden"))])),
        (Nothing, Completed(None)),
        (Anything, Completed({"a": [1, None, "x"]})),
        (Nothing, Retrying(2.5)),
        (Nothing, Snoozed(1.0, "later")),
        (Nothing, Snoozed(10.0, "a version from the future", unknown=True)),
        (Nothing, Cancelled("no need")),
        (Nothing, Expired()),
        (Nothing, Returned()),
        (Nothing, Dead(DeadReason.NOT_RETRYABLE)),
    ],
    ids=str,
)
def test_an_outcome_crosses_and_its_result_is_typed_again(job: type[Job[Any]], outcome: Outcome) -> None:
    came = outcome_of(across(outcome_frame(outcome, job)), job)

    assert came == outcome
    assert not isinstance(came, Completed) or type(came.result) is type(getattr(outcome, "result", None))


def test_an_error_crosses_with_its_words_and_its_traceback() -> None:
    try:
        raise KeyError("tenant")
    except KeyError as raised:
        sent = Retrying(1.0, raised)

    came = outcome_of(across(outcome_frame(sent, Nothing)), Nothing)

    assert isinstance(came, Retrying)
    assert isinstance(came.error, RemoteError)
    assert words_of(came.error) == "KeyError: 'tenant'"
    assert traceback_of(came.error) == traceback_of(sent.error or ValueError())
    assert 'raise KeyError("tenant")' in traceback_of(came.error)


def test_an_endless_delay_stays_one() -> None:
    came = outcome_of(across(outcome_frame(Retrying(math.inf), Nothing)), Nothing)

    assert isinstance(came, Retrying)
    assert came.delay > 1e300


@pytest.mark.parametrize(("job", "result"), [(Count, "many"), (Count, None), (Open, {"owner": "Ada"}), (Maybe, 3)])
def test_a_result_that_is_none_of_the_jobs_is_refused_without_its_value(job: type[Job[Any]], result: object) -> None:
    with pytest.raises(ValueError, match=rf"no result of {job.__name__}") as caught:
        outcome_frame(Completed(result), job)

    assert "Ada" not in str(caught.value)


def test_what_a_handler_without_result_returns_all_the_same_is_dropped() -> None:
    assert outcome_of(across(outcome_frame(Completed(object()), Nothing)), Nothing) == Completed(None)


def test_a_result_that_was_left_out_is_none_of_any_type() -> None:
    assert outcome_of(across(outcome_frame(Completed(), Nothing)), Count) == Completed(None)


def test_a_log_line_crosses_with_its_fields_and_its_traceback() -> None:
    try:
        raise ValueError("bad")
    except ValueError as error:
        made = logging.LogRecord("my.log", logging.WARNING, "f.py", 1, "half %d", (50,), (type(error), error, None))
    made.colour, made.odd = "teal", {1, 2}

    line = json.loads(JsonFormatter().format(record_of(across(log_frame(made))[0])))

    assert (line["message"], line["level"], line["logger"], line["colour"]) == ("half 50", "warning", "my.log", "teal")
    assert line["odd"] == "{1, 2}"
    assert line["traceback"].endswith("ValueError: bad")


def test_a_log_line_suits_the_formatter_of_the_standard_library() -> None:
    error = ValueError("bad")
    made = logging.LogRecord(
        "my.log", logging.WARNING, "f.py", 1, "it is %s", ("torn \ud800",), (ValueError, error, None)
    )

    text = logging.Formatter("%(asctime)s %(message)s").format(record_of(across(log_frame(made))[0]))

    assert "it is torn \\ud800" in text
    assert text.endswith("ValueError: bad")


def test_frames_are_json() -> None:
    head, _ = job_frame(envelope())

    assert loads(dumps(head))["say"] == "job"
