"""A lane between a transport that only remembers and a stream that only collects; and frames to send along it."""

import asyncio
import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise

from amqpjobs.amqp.lane import Lane
from amqpjobs.amqp.properties import written_header
from amqpjobs.wire import Properties

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"


class FakeTransport(asyncio.Transport):
    """Keeps what is written, one entry for each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.is_aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


class FakeStream(asyncio.StreamReaderProtocol):
    """Keeps what the client library would get."""

    def __init__(self) -> None:
        super().__init__(asyncio.StreamReader())
        self.pieces: list[bytes] = []
        self.lost: Exception | None = None

    @property
    def passed(self) -> bytes:
        return b"".join(self.pieces)

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = exc
        super().connection_lost(exc)


class Road:
    """A lane with both its ends. To be made in an event loop."""

    def __init__(self) -> None:
        self.transport, self.stream = FakeTransport(), FakeStream()
        self.lane = Lane(self.stream, asyncio.get_running_loop())
        self.lane.connection_made(self.transport)

    @property
    def passed(self) -> list[bytes]:
        """The frames that were handed on, heartbeats left out: the lane makes some of its own."""
        return [frame for frame in split_frames(self.stream.passed) if frame != HEARTBEAT_FRAME]

    def feed(self, chunks: Iterable[bytes]) -> None:
        for chunk in chunks:
            self.lane.data_received(chunk)

    def lose(self, error: Exception | None = None) -> None:
        """As the transport does, some time after an abort."""
        self.lane.connection_lost(error)

    async def said(self) -> list[bytes]:
        """The frames that were written up to the end of this turn of the event loop."""
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        written, self.transport.writes = b"".join(self.transport.writes), []
        return split_frames(written)


def split_frames(stream: bytes) -> list[bytes]:
    frames = list[bytes]()
    while stream:
        end = 8 + int.from_bytes(stream[3:7], "big")
        frames.append(stream[:end])
        stream = stream[end:]
    return frames


def framed(kind: int, payload: bytes, channel: int = 1) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def short(raw: bytes) -> bytes:
    return bytes([len(raw)]) + raw


def deliver_method(
    tag: int, *, exchange: bytes = b"amqpjobs", key: bytes = b"mail", redelivered: bool = False
) -> bytes:
    return b"\x00\x3c\x00\x3c" + short(b"ctag") + struct.pack(">QB", tag, redelivered) + short(exchange) + short(key)


def return_method() -> bytes:
    return b"\x00\x3c\x00\x32" + struct.pack(">H", 312) + short(b"NO_ROUTE") + short(b"amqpjobs") + short(b"mail")


def message(
    method: bytes, body: bytes, properties: Properties | None = None, *, channel: int = 1, frame: int = 10**6
) -> list[bytes]:
    """The frames of a method with content, its body in pieces of `frame` bytes."""
    header = written_header(properties or Properties(kind="mail"), len(body))
    pieces = [body[at : at + frame] for at in range(0, len(body), frame)]
    return [
        framed(METHOD, method, channel),
        framed(HEADER, header, channel),
        *(framed(BODY, piece, channel) for piece in pieces),
    ]


def delivery(tag: int, body: bytes, *, channel: int = 1, frame: int = 10**6) -> list[bytes]:
    return message(deliver_method(tag), body, channel=channel, frame=frame)


def confirm(tag: int, *, multiple: bool = False, nack: bool = False, channel: int = 1) -> bytes:
    method = b"\x00\x3c\x00\x78" if nack else b"\x00\x3c\x00\x50"
    return framed(METHOD, method + struct.pack(">QB", tag, multiple), channel)


def close(channel: int = 1) -> bytes:
    return framed(METHOD, b"\x00\x14\x00\x28" + struct.pack(">H", 404) + short(b"gone") + b"\x00\x00\x00\x00", channel)


def cut(stream: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges) if start < end]


class FakeChannel:
    """The part of the library's channel that confirms need."""

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self.closing: asyncio.Future[object] = asyncio.get_running_loop().create_future()


class FakeSession:
    is_open = True
