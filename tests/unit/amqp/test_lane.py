"""The lane stands between a transport and the client library, and hands some frames to exits on the way."""

import asyncio
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amqpjobs.amqp.lane import TOLD_EVERY, Exit
from tests.support.lanes import (
    BODY,
    HEADER,
    HEARTBEAT,
    HEARTBEAT_FRAME,
    METHOD,
    Road,
    close,
    confirm,
    cut,
    deliver_method,
    delivery,
    framed,
)

OTHERS = [
    framed(HEARTBEAT, b"", 0),
    framed(METHOD, b"\x00\x0a\x00\x3c\x03low", 0),  # connection.blocked
    framed(METHOD, b"\x00\x3c\x00\x15\x04ctag", 1),  # basic.consume-ok of a channel that has an exit
    *delivery(9, b"of a channel without an exit", channel=3),
    confirm(4, channel=2),
]


def without_end(frames: list[bytes], number: int) -> list[bytes]:
    return [frame[:-1] + b"\x00" if n == number else frame for n, frame in enumerate(frames)]


class Recorder(Exit):
    """An exit that keeps what it takes."""

    begins = b"\x00\x3c\x00\x3c"

    def __init__(self, road: Road, number: int = 1) -> None:
        super().__init__(road.lane, number)
        road.lane.add(number, self)
        self.taken = list[tuple[bytes, bytes]]()
        self.error: Exception | None = None
        self.spoke = 0

    def speak(self) -> None:
        self.spoke += 1

    def lost(self, error: Exception) -> None:
        self.error = error

    def _take_message(self, method: bytes, header: bytes, body: bytes) -> None:
        self.taken.append((method, body))


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """The frames of a stream, some deliveries on channels 1 and 2 woven into each other and others; and the bodies."""
    bodies = draw(st.lists(st.binary(max_size=40), max_size=6))
    frame = draw(st.integers(1, 50))
    lines = [
        [each for tag, body in enumerate(bodies) for each in delivery(tag, body, channel=channel, frame=frame)]
        for channel in (1, 2)
    ]
    lines.append(draw(st.lists(st.sampled_from(OTHERS[:2] + OTHERS[3:6]), max_size=6)))
    woven = list[bytes]()
    while any(lines):
        line = draw(st.sampled_from([each for each in lines if each]))
        woven.append(line.pop(0))
    return woven, bodies


async def led(chunks: Sequence[bytes]) -> tuple[Road, Recorder, Recorder]:
    road = Road()
    one, two = Recorder(road, 1), Recorder(road, 2)
    road.feed(chunks)
    return road, one, two


@settings(max_examples=200)
@given(streams(), st.lists(st.integers(0, 2**20), max_size=20))
def test_every_split_of_every_weave_gives_the_same(woven: tuple[list[bytes], list[bytes]], places: list[int]) -> None:
    frames, bodies = woven

    road, one, two = asyncio.run(led(cut(b"".join(frames), places)))

    assert [body for _, body in one.taken] == bodies
    assert one.taken == two.taken == [(deliver_method(tag), body) for tag, body in enumerate(bodies)]
    assert road.passed == [each for each in frames if each[2] not in (1, 2) and each != HEARTBEAT_FRAME]
    assert not road.transport.is_aborted


async def test_a_stream_byte_by_byte_gives_the_same() -> None:
    stream = b"".join([*OTHERS, *delivery(1, b"body", frame=3), *OTHERS])

    road, one, two = await led([stream[n : n + 1] for n in range(len(stream))])

    assert [body for _, body in one.taken] == [b"body"]
    assert two.taken == []
    assert road.passed == [each for each in OTHERS * 2 if each != HEARTBEAT_FRAME]


async def test_what_nobody_takes_goes_on_in_one_piece() -> None:
    road = Road()

    road.feed([b"".join(OTHERS)])

    assert road.stream.pieces == [b"".join(OTHERS)]


async def test_a_message_without_a_body_needs_no_further_frame() -> None:
    _, one, _ = await led([b"".join(delivery(1, b""))])

    assert one.taken == [(deliver_method(1), b"")]


async def test_a_message_as_long_as_many_frames_comes_whole() -> None:
    body = bytes(range(256)) * 4_000

    _, one, _ = await led(cut(b"".join(delivery(1, body, frame=131_064)), range(0, 1_100_000, 4_096)))

    assert one.taken == [(deliver_method(1), body)]


@pytest.mark.parametrize(
    ("stream", "what"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "a frame of type 72"),
        (framed(5, b""), "a frame of type 5"),
        (framed(METHOD, b"\x00\x0a\x00\x3d")[:-1] + b"\x00", "a frame without its end"),
        (b"".join(without_end(delivery(1, b"body"), 0)), "a frame without its end"),
        (b"".join(without_end(delivery(1, b"body"), 1)), "a frame without its end"),
        (b"".join(without_end(delivery(1, b"body"), 2)), "a frame without its end"),
        (struct.pack(">BHI", BODY, 1, 2**31), "a frame of 2147483648 bytes"),
        (framed(METHOD, deliver_method(1)) * 2, "a method within a message"),
        (framed(METHOD, deliver_method(1)) + framed(BODY, b"x"), "out of its order"),
        (b"".join(delivery(1, b"body")[:2]) + framed(HEADER, b"x" * 14), "out of its order"),
        (b"".join(delivery(1, b"body")[:2]) + framed(BODY, b"bodies"), "longer than it says"),
        (framed(METHOD, deliver_method(1)) + framed(HEADER, b"\x00\x3c"), "without its size"),
    ],
    ids=[
        "http",
        "type",
        "end",
        "method end",
        "header end",
        "body end",
        "long",
        "twice",
        "no header",
        "two headers",
        "body",
        "short header",
    ],
)
async def test_garbage_ends_the_connection_and_says_why(stream: bytes, what: str) -> None:
    road, one, _ = await led([stream, b"".join(delivery(2, b"after"))])

    road.lose()

    assert road.transport.is_aborted
    assert isinstance(road.stream.lost, ConnectionError)
    assert what in str(road.stream.lost)
    assert one.taken == []
    assert one.is_closed
    assert one.error is road.stream.lost


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 3, 8]), st.integers(0, 2), st.binary(max_size=40)), max_size=12),
    st.binary(max_size=40),
)
def test_whatever_comes_is_taken_passed_on_or_ends_the_connection(
    parts: list[tuple[int, int, bytes]], rest: bytes
) -> None:
    stream = b"".join(framed(kind, raw, channel) for kind, channel, raw in parts) + rest

    road, one, _ = asyncio.run(led([stream]))

    assert road.transport.is_aborted or all(
        frame in stream for frame in [*road.passed, *(body for _, body in one.taken)]
    )


async def test_a_broker_that_speaks_another_version_is_heard_by_the_library() -> None:
    road, _, _ = await led([b"AMQP\x00", b"\x00\x09\x01", b"and more"])

    assert road.stream.passed == b"AMQP\x00\x00\x09\x01and more"
    assert not road.transport.is_aborted


async def test_while_only_jobs_come_the_library_hears_a_heartbeat_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    road, one, _ = await led([])
    now = 100.0
    with monkeypatch.context() as patch:
        patch.setattr(asyncio.get_running_loop(), "time", lambda: now)

        road.feed(b"".join(delivery(tag, b"x")) for tag in range(99))
        heard = road.stream.passed
        now += TOLD_EVERY * 1.1
        road.feed([b"".join(delivery(99, b"x"))])

    assert len(one.taken) == 100
    assert heard == HEARTBEAT_FRAME
    assert road.stream.passed == HEARTBEAT_FRAME * 2


async def test_a_channel_that_is_closed_leaves_the_lane_also_within_a_message() -> None:
    road, one, _ = await led([b"".join(delivery(1, b"body")[:2]) + close()])
    again = Recorder(road, 1)

    road.feed([b"".join(delivery(1, b"new"))])

    assert road.passed == [close()]
    assert (one.is_closed, one.taken) == (True, [])
    assert (again.is_closed, again.taken) == (False, [(deliver_method(1), b"new")])


async def test_what_is_written_in_one_turn_goes_out_together() -> None:
    road = Road()

    for number in range(5):
        road.lane.write(framed(METHOD, bytes([number])))
    before = list(road.transport.writes)
    await asyncio.sleep(0)

    assert before == []
    assert road.transport.writes == [b"".join(framed(METHOD, bytes([number])) for number in range(5))]


async def test_what_is_large_does_not_wait_for_the_end_of_the_turn() -> None:
    road = Road()

    road.lane.write(b"small")
    road.lane.write(b"x" * 65_536)

    assert road.transport.writes == [b"small" + b"x" * 65_536]


async def test_at_the_end_all_is_said() -> None:
    road, one, two = await led([])
    road.lane.write(b"last words")

    road.lane.finish()

    assert road.transport.writes == [b"last words"]
    assert (one.spoke, two.spoke) == (1, 1)


async def test_nothing_is_written_to_a_socket_that_is_gone() -> None:
    road, _, _ = await led([])
    road.lane.write(b"one")
    road.transport.abort()
    road.lane.write(b"two")
    road.lose()
    road.lane.write(b"three")
    await asyncio.sleep(0)

    assert road.transport.writes == []


async def test_who_waits_for_the_socket_goes_on_when_it_takes_more_or_is_gone() -> None:
    road = Road()
    road.lane.pause_writing()
    waiting = asyncio.create_task(road.lane.flowing())
    await asyncio.sleep(0)
    was_waiting = not waiting.done()

    road.lane.resume_writing()
    await waiting
    road.lane.pause_writing()
    waiting = asyncio.create_task(road.lane.flowing())
    await asyncio.sleep(0)
    road.lose()
    await waiting

    assert was_waiting
