"""What is read and written here is read and written the same by the client library, which these tests ask."""

import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pamqp.header import ContentHeader

from amqpjobs.amqp.properties import _read_plain, read_usual, written_header  # pyright: ignore[reportPrivateUsage]
from amqpjobs.amqp.table import ExactProperties, encode_table
from amqpjobs.codec import encode
from amqpjobs.envelope import Envelope, new_id
from amqpjobs.wire import Properties

SHORT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
SOME_SHORT = st.none() | SHORT
VALUES = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), SHORT, st.none(), st.binary(max_size=20).map(bytearray)
)
PROPERTIES = st.builds(
    Properties,
    headers=st.dictionaries(SHORT, VALUES, max_size=5),
    kind=SOME_SHORT,
    message_id=SOME_SHORT,
    correlation_id=SOME_SHORT,
    reply_to=SOME_SHORT,
    app_id=SOME_SHORT,
    content_type=SOME_SHORT,
    content_encoding=SOME_SHORT,
    priority=st.none() | st.integers(0, 255),
    timestamp=st.none() | st.integers(0, 2**33).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
)
USUAL = Properties(
    headers={"amqpjobs-id": "1", "amqpjobs-attempt": 1, "x-delivery-count": 2**40, "yes": True},
    kind="mail",
    message_id="2",
    correlation_id="1",
    reply_to="nobody",
    app_id="app",
    content_type="application/json",
    content_encoding="utf-8",
    priority=3,
    timestamp=datetime(2026, 1, 1, tzinfo=UTC),
)


#: As a producer of ours writes it.
PLAIN = written_header(
    encode(Envelope(kind="email.send", payload=b"", job_id=new_id(), version=1, app_id="email"), datetime.now(UTC)), 9
)


def by_library(payload: bytes) -> Properties:
    """What the library makes of it; raises whatever it raises."""
    header = ContentHeader()
    header.unmarshal(payload)
    given: Any = header.properties
    return Properties(
        headers=given.headers or {},
        kind=given.message_type,
        message_id=given.message_id,
        correlation_id=given.correlation_id,
        reply_to=given.reply_to,
        app_id=given.app_id,
        content_type=given.content_type,
        content_encoding=given.content_encoding,
        priority=given.priority,
        timestamp=given.timestamp,
    )


def written_by_library(own: Properties, size: int) -> bytes:
    headers: Any = own.headers
    return ContentHeader(
        body_size=size,
        properties=ExactProperties(
            content_type=own.content_type,
            content_encoding=own.content_encoding,
            headers=headers or None,
            delivery_mode=2,
            priority=own.priority,
            correlation_id=own.correlation_id,
            reply_to=own.reply_to,
            message_id=own.message_id,
            timestamp=own.timestamp,
            message_type=own.kind,
            app_id=own.app_id,
        ),
    ).marshal()


def header(flags: int, rest: bytes) -> bytes:
    return struct.pack(">HHQH", 60, 0, 3, flags) + rest


def table(headers: Mapping[str, object]) -> bytes:
    return header(1 << 13, encode_table(headers))


@given(PROPERTIES, st.integers(0, 2**40))
@example(USUAL, 0)
def test_properties_are_written_as_the_library_writes_them(own: Properties, size: int) -> None:
    assert written_header(own, size) == written_by_library(own, size)


def test_all_that_is_usual_is_read_here() -> None:
    assert read_usual(written_header(USUAL, 3)) == USUAL
    assert read_usual(written_header(Properties(), 0)) == Properties()


@given(st.integers(0, 400), st.integers(0, 255), st.integers(1, 3))
@example(14, 20, 1)
def test_a_plain_job_with_any_bytes_changed_is_read_as_the_library_reads_it(place: int, value: int, count: int) -> None:
    payload = bytearray(PLAIN)
    for at in range(place, place + count):
        payload[at % len(payload)] = value

    found = read_usual(bytes(payload))

    assert found is None or found == by_library(bytes(payload))


@pytest.mark.parametrize("payload", [PLAIN[:-1], PLAIN + b"\x00", PLAIN[:60], PLAIN[:-20]])
def test_a_plain_job_that_is_cut_or_longer_is_left_to_the_library(payload: bytes) -> None:
    assert read_usual(payload) is None


def test_what_the_producer_writes_for_a_plain_job_is_read_by_one_look() -> None:
    assert _read_plain(PLAIN) == by_library(PLAIN)


@given(PROPERTIES)
@example(USUAL)
def test_what_is_read_here_reads_the_same_there(own: Properties) -> None:
    payload = written_header(own, 3)

    assert read_usual(payload) in (None, by_library(payload))


@given(st.binary(max_size=300))
def test_of_random_bytes_is_read_what_the_library_reads(payload: bytes) -> None:
    found = read_usual(payload)

    assert found is None or found == by_library(payload)


@given(st.integers(0, 2**16 - 1), st.binary(max_size=300))
def test_of_random_properties_is_read_what_the_library_reads(flags: int, rest: bytes) -> None:
    found = read_usual(header(flags, rest))

    assert found is None or found == by_library(header(flags, rest))


@given(st.binary(max_size=300))
def test_of_random_tables_is_read_what_the_library_reads(raw: bytes) -> None:
    payload = header(1 << 13, struct.pack(">I", len(raw)) + raw)
    found = read_usual(payload)

    assert found is None or found == by_library(payload)


@given(PROPERTIES, st.integers(0, 400), st.integers(0, 255))
def test_with_any_byte_changed_is_read_what_the_library_reads(own: Properties, place: int, value: int) -> None:
    payload = bytearray(written_header(own, 3))
    payload[place % len(payload)] = value

    found = read_usual(bytes(payload))

    assert found is None or found == by_library(bytes(payload))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        written_header(USUAL, 3)[:-1],
        written_header(USUAL, 3) + b"\x00",
        table({"nested": {}}),
        table({"list": [1]}),
        table({"bytes": bytearray(b"1")}),
        table({"no text": b"\xff"}),
        header(1 << 13, b"\x00\x00\x00\x04\x02\xff\xfeV"),
        header(1 << 6, struct.pack(">Q", 2**32)),
        header(1 << 5, b"\x02\xff\xfe"),
        header(1 << 8, b"\x041000"),
        header(1, b""),
    ],
    ids=[
        "empty",
        "cut",
        "longer",
        "table",
        "list",
        "bytes",
        "no text",
        "bad name",
        "ms",
        "bad kind",
        "expires",
        "flags",
    ],
)
def test_what_is_rare_is_left_to_the_library(payload: bytes) -> None:
    assert read_usual(payload) is None


@pytest.mark.parametrize("own", [Properties(kind="x" * 256), Properties(message_id="é" * 128)])
def test_what_has_no_room_is_not_written(own: Properties) -> None:
    with pytest.raises(ValueError, match="255"):
        written_header(own, 0)
