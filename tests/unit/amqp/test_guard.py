"""The guard stands between the socket and the library, so the library is what these tests ask."""

import asyncio
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pamqp import commands
from pamqp import frame as pamqp_frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from amqpjobs.amqp.guard import (
    DEFECT_HEADER,
    RAW_HEADER,
    GuardedReader,
    mended_deliver,
    mended_header,
)
from amqpjobs.amqp.table import encode_table

HEADERS_FLAG, TIMESTAMP_FLAG = 1 << 13, 1 << 6
#: What RabbitMQ negotiates as the largest frame.
FRAME_MAX = 131_072


def framed(kind: int, payload: bytes, channel: int = 1) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def header_payload(flags: int, rest: bytes, body_size: int = 3) -> bytes:
    return struct.pack(">HHQH", 60, 0, body_size, flags) + rest


def deliver_payload(exchange: bytes = b"amqpjobs", key: bytes = b"mail", tag: bytes = b"ctag1") -> bytes:
    def short(raw: bytes) -> bytes:
        return bytes([len(raw)]) + raw

    return b"\x00\x3c\x00\x3c" + short(tag) + struct.pack(">QB", 5, 1) + short(exchange) + short(key)


def good_header(**properties: Any) -> bytes:
    return ContentHeader(body_size=3, properties=commands.Basic.Properties(**properties)).marshal()


def nested_table(depth: int) -> bytes:
    raw = b"\x00\x00\x00\x00"
    for _ in range(depth):
        inner = b"\x00F" + raw
        raw = struct.pack(">I", len(inner)) + inner
    return raw


DEEP = header_payload(HEADERS_FLAG, nested_table(18_000))
LATE = header_payload(TIMESTAMP_FLAG, struct.pack(">Q", 2**63))
LATE_INSIDE = header_payload(HEADERS_FLAG, b"\x00\x00\x00\x0a\x00T" + struct.pack(">Q", 2**64 - 1))
BAD_NAME = header_payload(HEADERS_FLAG, b"\x00\x00\x00\x04\x02\xff\xfeV")
BAD_TYPE = header_payload(1 << 5, b"\x02\xff\xfe")
BAD_KEY = deliver_payload(key=b"caf\xe9")

FRAMES = [
    framed(8, b"", 0),
    framed(1, deliver_payload()),
    framed(2, good_header(headers={"a": 1}, message_type="mail")),
    framed(3, b"{}\xce"),
    framed(1, BAD_KEY),
    framed(2, LATE),
    framed(3, b"AMQ"),
    framed(2, BAD_NAME),
    framed(2, header_payload(HEADERS_FLAG, nested_table(1_500))),
    framed(3, b"\x00"),
    framed(1, deliver_payload(), 300),
]


def unmarshalled(payload: bytes) -> ContentHeader:
    header = ContentHeader()
    header.unmarshal(payload)
    return header


async def read_frames(chunks: Sequence[bytes]) -> list[bytes]:
    """All frames of a stream, asked for in the library's way: one byte, six, the rest."""
    source = asyncio.StreamReader()
    reader = GuardedReader(source)

    async def feed() -> None:
        for chunk in chunks:
            source.feed_data(chunk)
            await asyncio.sleep(0)
        source.feed_eof()

    feeding = asyncio.create_task(feed())
    frames = list[bytes]()
    while True:
        try:
            head = await reader.readexactly(1)
            head += await reader.readexactly(6)
            frames.append(head + await reader.readexactly(int.from_bytes(head[3:], "big") + 1))
        except asyncio.IncompleteReadError:
            await feeding
            return frames


def cut(stream: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges) if start < end]


@pytest.mark.parametrize(
    "payload",
    [
        good_header(),
        good_header(headers={"a": [1, {"b": None}]}, timestamp=datetime(2026, 1, 1, tzinfo=UTC), priority=3),
        header_payload(HEADERS_FLAG, encode_table({"x": b"\xff no text"})),
        header_payload(HEADERS_FLAG, nested_table(50)),
    ],
)
def test_a_header_that_can_be_decoded_is_left_as_it_is(payload: bytes) -> None:
    assert mended_header(payload) is payload


@pytest.mark.parametrize(
    "payload",
    [DEEP, LATE, LATE_INSIDE, BAD_NAME, BAD_TYPE, b"", b"\x00\x3c", header_payload(HEADERS_FLAG, b"\x7f")],
    ids=["deep", "late", "late inside", "bad name", "bad type", "empty", "short", "truncated"],
)
def test_a_header_that_cannot_be_decoded_tells_what_was_wrong(payload: bytes) -> None:
    mended = mended_header(payload)

    headers = unmarshalled(mended).properties.headers or {}
    assert "cannot be decoded" in str(headers[DEFECT_HEADER])
    assert headers[RAW_HEADER] == bytearray(payload[12 : 12 + 60_000])
    assert len(mended) + 8 <= FRAME_MAX


def test_deep_nesting_is_told_in_words() -> None:
    headers = unmarshalled(mended_header(DEEP)).properties.headers or {}

    assert "nested too deep" in str(headers[DEFECT_HEADER])


def test_a_mended_header_keeps_the_size_of_its_body() -> None:
    mended = mended_header(header_payload(TIMESTAMP_FLAG, b"\xff" * 8, body_size=12_345))

    assert unmarshalled(mended).body_size == 12_345


@given(st.binary(max_size=400))
@example(b"\x00" * 12)
@example(b"\xff" * 100)
def test_random_bytes_come_out_decodable(payload: bytes) -> None:
    mended = mended_header(payload)

    assert unmarshalled(mended).properties is not None


@given(st.integers(0, 2**16 - 1), st.binary(max_size=300))
def test_random_properties_come_out_decodable_and_keep_the_body_size(flags: int, rest: bytes) -> None:
    mended = mended_header(header_payload(flags, rest, body_size=77))

    assert unmarshalled(mended).body_size == 77


@given(st.binary(max_size=300))
def test_random_tables_come_out_decodable(raw: bytes) -> None:
    payload = header_payload(HEADERS_FLAG, struct.pack(">I", len(raw)) + raw)

    assert unmarshalled(mended_header(payload)).body_size == 3


@given(st.binary(max_size=255), st.binary(max_size=255))
@example(b"\xff" * 255, b"\xff" * 255)
@example("é".encode() * 127, b"caf\xe9")
def test_a_delivery_with_any_names_comes_out_decodable(exchange: bytes, key: bytes) -> None:
    payload = deliver_payload(exchange, key)

    method = commands.Basic.Deliver()
    method.unmarshal(mended_deliver(payload)[4:])

    assert method.exchange == exchange.decode("utf-8", "replace").encode()[:255].decode("utf-8", "ignore")
    assert (method.consumer_tag, method.delivery_tag, method.redelivered) == ("ctag1", 5, True)
    assert isinstance(method.routing_key, str)


@pytest.mark.parametrize(
    "payload", [deliver_payload(), deliver_payload(key="żółw".encode()), b"\x00\x3c\x00\x50\xff\xff", b""]
)
def test_a_delivery_of_text_and_other_methods_are_left_as_they_are(payload: bytes) -> None:
    assert mended_deliver(payload) == payload


async def test_good_and_bad_frames_come_out_in_their_order() -> None:
    frames = await read_frames([b"".join(FRAMES)])

    assert len(frames) == len(FRAMES)
    assert [frame[:3] for frame in frames] == [frame[:3] for frame in FRAMES]
    changed = [number for number, frame in enumerate(frames) if frame != FRAMES[number]]
    assert changed == [4, 5, 7, 8]


async def test_each_frame_that_comes_out_is_one_the_library_can_decode() -> None:
    frames = await read_frames([b"".join(FRAMES)])

    decoded = [pamqp_frame.unmarshal(frame) for frame in frames]

    kinds = [type(each[2]).__name__ for each in decoded]
    assert kinds[:5] == ["Heartbeat", "Deliver", "ContentHeader", "ContentBody", "Deliver"]
    assert [each[0] for each in decoded] == [len(frame) for frame in frames]
    assert (Heartbeat.name, ContentBody.name) == ("Heartbeat", "ContentBody")


async def test_a_stream_byte_by_byte_gives_the_same_frames() -> None:
    stream = b"".join(frame for frame in FRAMES if len(frame) < 1000)
    at_once = await read_frames([stream])

    byte_by_byte = await read_frames([stream[n : n + 1] for n in range(len(stream))])

    assert byte_by_byte == at_once


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 2**20), max_size=12), st.permutations(range(len(FRAMES))))
def test_every_split_of_a_stream_gives_the_same_frames(places: list[int], order: list[int]) -> None:
    stream = b"".join(FRAMES[number] for number in order)

    split = asyncio.run(read_frames(cut(stream, places)))

    assert split == asyncio.run(read_frames([stream]))


@given(st.lists(st.tuples(st.sampled_from([1, 2, 3, 8]), st.binary(max_size=60)), max_size=8))
def test_frames_of_random_bytes_keep_their_borders(parts: list[tuple[int, bytes]]) -> None:
    # Methods come from the broker itself; only what a client may put into a message is random.
    stream = [framed(kind, b"\x00\x3c\x00\x50" + raw if kind == 1 else raw) for kind, raw in parts]

    frames = asyncio.run(read_frames([b"".join(stream)]))

    assert [frame[:3] for frame in frames] == [frame[:3] for frame in stream]
    assert all(frame.endswith(b"\xce") for frame in frames)


async def test_one_read_across_several_frames_gives_all_their_bytes() -> None:
    source = asyncio.StreamReader()
    reader = GuardedReader(source)
    stream = framed(3, b"one") + framed(3, b"two") + framed(3, b"three")
    source.feed_data(stream[:20])
    first = await reader.readexactly(11)
    source.feed_data(stream[20:])

    rest = await reader.readexactly(len(stream) - 11)

    assert first + rest == stream


async def test_what_is_left_can_be_read_to_the_end() -> None:
    source = asyncio.StreamReader()
    reader = GuardedReader(source)
    source.feed_data(framed(3, b"one") + b"tail")
    source.feed_eof()
    await reader.readexactly(11)

    rest = await reader.read()

    assert rest == b"tail"
    assert reader.at_eof()


async def test_a_stream_that_ends_within_a_frame_is_told_as_such() -> None:
    source = asyncio.StreamReader()
    reader = GuardedReader(source)
    source.feed_data(framed(2, good_header())[:-3])
    source.feed_eof()

    with pytest.raises(asyncio.IncompleteReadError):
        await reader.readexactly(1)


async def test_a_broker_that_speaks_another_version_is_heard() -> None:
    source = asyncio.StreamReader()
    reader = GuardedReader(source)
    source.feed_data(b"AMQP\x00\x00\x09\x01")
    source.feed_eof()

    heard = await reader.readexactly(1) + await reader.readexactly(6)

    assert heard == b"AMQP\x00\x00\x09"


async def test_that_the_broker_blocks_publishers_is_heard_and_passed_on() -> None:
    heard, source = list[str | None](), asyncio.StreamReader()
    reader = GuardedReader(source, heard.append)
    stream = [
        framed(1, b"\x00\x0a\x00\x3c\x0dlow on memory", 0),
        framed(1, b"\x00\x0a\x00\x3d", 0),
        framed(1, b"\x00\x0a\x00\x3c\x02\xff\xfe", 0),
        framed(1, b"\x00\x0a\x00\x3d", 1),  # not the connection's
    ]
    source.feed_data(b"".join(stream))

    passed = [await reader.readexactly(len(frame)) for frame in stream]

    assert passed == stream
    assert heard == ["low on memory", None, "\ufffd\ufffd"]
