import contextlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, field_validator

from amqpjobs.amqp.table import encode_table
from amqpjobs.codec import (
    CUT_HEADER,
    HEADER_BUDGET,
    as_it_came,
    check_headers,
    clip,
    decode,
    dumps,
    encode,
    foreign,
    job_from,
    loads,
    milliseconds,
    within_budget,
)
from amqpjobs.envelope import Envelope
from amqpjobs.errors import InvalidArgumentsError, TooLargeError, UnreadableError
from amqpjobs.job import Job
from amqpjobs.wire import Delivery, HeaderValue, table_size
from tests.unit.making import NOW, FakeSettler, delivery

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SHORT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
TIMES = (
    st.timedeltas(timedelta(0), timedelta(days=2_900_000))
    .map(EPOCH.__add__)
    .map(lambda time: time.replace(microsecond=time.microsecond // 1000 * 1000))
)
NUMBERS = st.integers(1, 2**31 - 1)
ENVELOPES = st.builds(
    Envelope,
    kind=SHORT,
    payload=st.binary(max_size=20),
    job_id=SHORT,
    exchange=st.one_of(st.just(""), SHORT),
    queue=st.just("work"),
    attempt=NUMBERS,
    version=st.none() | NUMBERS,
    enqueued_at=TIMES,
    run_at=st.none() | TIMES,
    expires_at=st.none() | TIMES,
    max_attempts=st.none() | NUMBERS,
    timeout=st.none() | NUMBERS.map(lambda number: number / 1000),
    priority=st.none() | st.integers(0, 255),
    parent=st.none() | SHORT,
    root=st.none() | SHORT,
    schedule=st.none() | SHORT,
    copy=st.none() | SHORT,
    doubt_since=st.none() | TIMES,
    first_at=st.none() | TIMES,
    unknown_since=st.none() | TIMES,
    crashes=st.integers(0, 2**31 - 1),
    app_id=st.none() | SHORT,
    correlation_id=SHORT,
    reply_to=st.none() | SHORT,
    headers=st.dictionaries(SHORT.filter(lambda name: foreign({name: 0}) != {}), st.integers() | SHORT),
)


class Letter(Job[None]):
    to: str
    pages: int = 1
    parts: list[int] = Field(default_factory=list[int])
    paper: Literal["a4", "a5"] = "a4"


class Fussy(Job[None]):
    name: str

    @field_validator("name")
    @classmethod
    def _looked_up(cls, value: str) -> str:
        return {"known": value}[value]


def delivered(envelope: Envelope) -> Delivery:
    return Delivery(
        body=envelope.payload,
        properties=encode(envelope, NOW),
        queue=envelope.queue,
        exchange="amqpjobs",
        routing_key=envelope.kind,
        redelivered=False,
        tag=1,
        settler=FakeSettler(),
    )


@given(ENVELOPES)
def test_an_envelope_comes_back_as_it_was_sent(envelope: Envelope) -> None:
    back = decode(delivered(envelope))

    assert back == envelope


def test_each_publish_has_a_message_id_of_its_own() -> None:
    envelope = Envelope(kind="a", payload=b"", job_id="job")

    first, second = encode(envelope, NOW), encode(envelope, NOW)

    assert first.message_id != second.message_id
    assert first.headers["amqpjobs-id"] == second.headers["amqpjobs-id"] == "job"


def test_the_properties_are_those_of_the_wire_table() -> None:
    envelope = Envelope(kind="mail", payload=b"", job_id="job", queue="bulk", timeout=1.5, run_at=NOW, app_id="shop")

    properties = encode(envelope, NOW)

    assert (properties.kind, properties.content_type) == ("mail", "application/json")
    assert (properties.correlation_id, properties.app_id, properties.timestamp) == ("job", "shop", NOW)
    assert properties.headers == {
        "amqpjobs-id": "job",
        "amqpjobs-attempt": 1,
        "amqpjobs-queue": "bulk",
        "amqpjobs-run-at": 1_767_225_600_000,
        "amqpjobs-timeout-ms": 1500,
    }


def test_a_message_of_another_language_needs_no_more_than_its_kind() -> None:
    envelope = decode(delivery(b'{"to": "a"}', kind="mail"))

    assert (envelope.kind, envelope.payload, envelope.queue) == ("mail", b'{"to": "a"}', "work")
    assert (envelope.attempt, envelope.version, envelope.headers) == (1, None, {})
    assert envelope.job_id


def test_a_job_without_an_id_takes_that_of_its_message() -> None:
    envelope = decode(delivery(message_id="message"))

    assert envelope.job_id == "message"


def test_times_before_the_epoch_come_back_in_the_past() -> None:
    long_ago = Envelope(kind="a", payload=b"", job_id="1", queue="work", run_at=datetime.min.replace(tzinfo=UTC))

    back = decode(delivered(long_ago))

    assert back.run_at is None or back.run_at <= NOW


@pytest.mark.parametrize("timeout", [timedelta(days=30).total_seconds(), 1e12])
def test_a_timeout_of_a_month_comes_back(timeout: float) -> None:
    patient = Envelope(kind="a", payload=b"", job_id="1", queue="work", timeout=timeout)

    back = decode(delivered(patient))

    assert back.timeout is not None
    assert back.timeout >= 30 * 86_400


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", 5),
        ("id", ""),
        ("id", "x" * 256),
        ("id", b"\xff"),
        ("attempt", 0),
        ("attempt", -1),
        ("attempt", True),
        ("attempt", "1"),
        ("attempt", 1.0),
        ("attempt", 2**31),
        ("crashes", -1),
        ("crashes", "many"),
        ("crashes", 2**31),
        ("version", 0),
        ("version", [1]),
        ("run-at", -62_135_596_800_001),
        ("run-at", 2**62),
        ("run-at", "2026-01-01"),
        ("run-at", NOW),
        ("expires-at", {"a": 1}),
        ("first-at", 253_402_300_800_000),
        ("unknown-since", bytearray(b"x")),
        ("max-attempts", 0),
        ("timeout-ms", 0),
        ("timeout-ms", 0.5),
        ("parent", 1),
        ("root", []),
        ("schedule", ""),
        ("exchange", 7),
    ],
)
def test_a_broken_header_is_told_in_words(name: str, value: HeaderValue) -> None:
    broken = delivery(headers={f"amqpjobs-{name}": value})

    with pytest.raises(UnreadableError) as caught:
        decode(broken)

    assert f"The header amqpjobs-{name} must be a" in str(caught.value)
    assert f"not {type(value).__name__} " in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("kind", [None, ""])
def test_a_missing_kind_is_told_in_words(kind: str | None) -> None:
    with pytest.raises(UnreadableError, match="`type` is missing"):
        decode(delivery(kind=kind))


def test_an_encoding_nobody_reads_is_told_in_words() -> None:
    with pytest.raises(UnreadableError, match=r"content encoding 'gzip' is not read"):
        decode(delivery(content_encoding="gzip"))


def test_what_the_client_library_could_not_read_is_told() -> None:
    with pytest.raises(UnreadableError, match="nested too deep"):
        decode(delivery(defect="they are nested too deep"))


@given(st.dictionaries(SHORT.map("amqpjobs-".__add__), st.none() | st.integers() | SHORT | st.binary()))
def test_headers_of_ours_with_any_value_raise_nothing_unforeseen(headers: dict[str, Any]) -> None:
    message = delivery(headers=headers)

    with contextlib.suppress(UnreadableError):
        decode(message)

    assert message.properties.headers == headers


BROKERS = ("x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count")
BROKERS_TOO = ("x-acquired-count", "x-opt-anything", "CC", "BCC")


def test_foreign_headers_survive_and_the_brokers_do_not() -> None:
    theirs = {"traceparent": "00-1", "x-match": "all", "Colour": [1, {"a": b"\xff"}], "X-Death": 1}

    headers = foreign(dict.fromkeys((*BROKERS, *BROKERS_TOO, "amqpjobs-id"), 1) | theirs)

    assert headers == theirs


def test_a_message_nobody_could_read_keeps_what_it_had() -> None:
    message = delivery(
        kind=None,
        message_id="theirs",
        app_id="legacy",
        headers={"colour": "red", "amqpjobs-attempt": "many", "amqpjobs-dead-reason": "old", "x-death": []},
    )

    properties = as_it_came(message)

    assert properties.headers == {"colour": "red", "amqpjobs-attempt": "many", "amqpjobs-id": "theirs"}
    assert (properties.kind, properties.app_id) == (None, "legacy")
    assert properties.message_id not in (None, "theirs")


@pytest.mark.parametrize("name", ["amqpjobs-id", "amqpjobs-", "x-death", "x-opt-a", "CC", "BCC"])
def test_a_reserved_header_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="reserved"):
        check_headers({name: "mine"})


@pytest.mark.parametrize("name", ["", "é" * 65])
def test_a_header_name_has_1_to_128_bytes(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 128 bytes"):
        check_headers({name: "mine"})


def test_too_many_headers_are_refused_at_enqueue() -> None:
    with pytest.raises(TooLargeError, match="may have 50000"):
        check_headers({"large": "x" * 50_001})


def test_headers_within_the_budget_stay_as_they_are() -> None:
    headers = {"colour": "red", "amqpjobs-id": "1"}

    assert within_budget(headers) is headers


def test_one_huge_header_is_left_out_and_named() -> None:
    headers: dict[str, HeaderValue] = {"small": "x", "huge": "y" * 200_000, "amqpjobs-id": "1"}

    kept = within_budget(headers)

    assert kept == {"small": "x", "amqpjobs-id": "1", CUT_HEADER: "huge"}


def test_many_small_headers_are_left_out_until_the_rest_fits() -> None:
    headers: dict[str, HeaderValue] = {f"header-{number}": "x" * 20 for number in range(5000)}

    kept = within_budget(headers | {"amqpjobs-id": "1"})

    assert HEADER_BUDGET - 3000 < table_size(kept) <= HEADER_BUDGET
    assert kept["amqpjobs-id"] == "1"
    assert len(str(kept[CUT_HEADER])) <= 1000


def test_a_huge_header_of_ours_was_not_written_by_us_and_is_left_out() -> None:
    headers: dict[str, HeaderValue] = {"amqpjobs-huge": "y" * 200_000, "amqpjobs-id": "1", "colour": "red"}

    kept = within_budget(headers)

    assert kept == {"amqpjobs-id": "1", "colour": "red", CUT_HEADER: "amqpjobs-huge"}


def test_thousands_of_small_headers_under_our_prefix_fit_too() -> None:
    headers: dict[str, HeaderValue] = {f"amqpjobs-{number}": "x" * 20 for number in range(5000)}

    kept = within_budget(headers)

    assert table_size(kept) <= HEADER_BUDGET


@given(
    st.dictionaries(SHORT, st.integers(0, 3000).map("x".__mul__), max_size=30),
    st.integers(2_500, 20_000),
)
def test_headers_fit_any_budget_that_leaves_room_for_the_names(headers: Any, budget: int) -> None:
    kept = within_budget(headers, budget)

    assert len(encode_table(kept)) <= budget
    assert all(kept[name] == headers[name] for name in kept if name != CUT_HEADER)


@given(st.text(max_size=3000), st.integers(100, 2000))
def test_a_clipped_text_has_no_more_bytes_than_it_may(text: str, budget: int) -> None:
    clipped = clip(text, budget)

    assert len(clipped.encode()) <= budget


def test_a_clipped_text_keeps_its_beginning_and_more_of_its_end() -> None:
    text = "begin " + "x" * 1000 + " end"

    clipped = clip(text, 100)

    assert clipped.startswith("begin xx")
    assert clipped.endswith("xx end")
    assert "[… cut …]" in clipped


@given(st.text(max_size=50))
def test_a_short_text_is_not_clipped(text: str) -> None:
    clipped = clip(text, 2000)

    assert clipped == text.encode("utf-8", "backslashreplace").decode()


@pytest.mark.parametrize(
    "payload",
    [
        b'{"to": 5, "pages": "5ecret"}',
        b'{"pages": 1}',
        b'{"to": "5ecret", "pages": 1e400}',
        b'{"to": "a", "parts": ["5ecret", "5ecret"]}',
        b'{"to": "a", "paper": "5ecret"}',
        b'"5ecret"',
        b"5ecret",
        b"",
        b"\xff\xfe",
        b"null",
        b"[" * 100_000,
        b'{"to": ' + b"[" * 100_000,
    ],
)
def test_a_payload_that_does_not_fit_is_told_without_its_values(payload: bytes) -> None:
    with pytest.raises(InvalidArgumentsError) as caught:
        job_from(Letter, payload)

    assert str(caught.value).startswith("The payload does not fit Letter: ")
    assert caught.value.problems
    assert "5ecret" not in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_many_problems_are_told_in_part() -> None:
    payload = dumps({"to": "a", "parts": ["no"] * 1000})

    with pytest.raises(InvalidArgumentsError) as caught:
        job_from(Letter, payload)

    assert len(str(caught.value)) < 10_000
    assert str(caught.value).endswith("; ….")


def test_a_validator_that_fails_in_its_own_way_still_makes_invalid_arguments() -> None:
    with pytest.raises(InvalidArgumentsError):
        job_from(Fussy, b'{"name": "unknown"}')


def test_json_for_machines_takes_what_json_does_not_know() -> None:
    raw = dumps({"time": NOW, 5: {1}, "text": "é"})

    assert json.loads(raw)["text"] == "é"
    assert loads(raw)["5"] == "{1}"


def test_broken_json_of_a_person_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="line 1"):
        loads("{to: a}")


def test_milliseconds_are_cut_and_not_rounded() -> None:
    number = milliseconds(datetime(1970, 1, 1, 0, 0, 1, 999_999, tzinfo=UTC))

    assert number == 1999
