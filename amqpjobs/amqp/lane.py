"""The fast lane: what comes and goes for every job passes by the client library.

The library opens the connection and keeps it: handshake, channels, declares, heartbeats, errors. It
spends 100 µs on each delivery, and as much on each publish, with a task, futures and objects for every
frame. So a `Lane` stands on the byte stream below it. It goes from frame to frame, hands those to an
`Exit` that belong to the jobs of its channel, and all others on, in their order and as they are.

What is no AMQP ends the connection: nobody could tell where the next frame begins.
"""

import asyncio
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from io import BytesIO
from typing import cast

#: Type, channel, length of what follows; behind that stands one more byte.
_PREFIX = struct.Struct(">BHI")
#: The same before a content header, and how long the body will be.
_HEAD = struct.Struct(">BHI4xQ")
_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_KINDS = frozenset({_METHOD, _HEADER, _BODY, _HEARTBEAT})
_END = 0xCE
_END_BYTE = b"\xce"
#: All of a frame but what it carries.
AROUND = 8
#: channel.close and channel.close-ok
_CLOSINGS = (b"\x00\x14\x00\x28", b"\x00\x14\x00\x29")
#: The first letter of "AMQP", which a broker says that speaks another version.
_FOREIGN = ord("A")
HEARTBEAT = _PREFIX.pack(_HEARTBEAT, 0, 0) + _END_BYTE
#: While nothing but jobs comes, the library is told so often that the broker lives. It waits three heartbeats of 1 s
#: or more.
TOLD_EVERY = 1.0
#: Until the broker has said what it may send. RabbitMQ's default is an eighth of that.
LONGEST_FRAME = 1024 * 1024
#: Where the broker sets no limit.
UNLIMITED = 2**31
#: Bytes that wait for the end of the event loop's turn at most, before they go to the socket.
WRITTEN_ABOVE = 64 * 1024


class Garbage(Exception):
    """What came is no AMQP, or not in its order."""


class Exit(ABC):
    """Where the frames of one channel leave the lane: some methods, and one kind of message."""

    #: The method that begins a message which is taken; its header and body are then ours, too.
    begins: bytes
    #: Whether the bodies are wanted.
    wants_bodies = True

    def __init__(self, lane: "Lane", number: int) -> None:
        self._lane = lane
        self._number = number
        #: Nothing more may be said on the channel, and nothing comes.
        self.is_closed = False
        self._method: bytes | None = None
        self._header = b""
        #: A body of several frames. As pieces, each of them would stay in memory wherever it happened to be.
        self._body: BytesIO | None = None
        self._missing = 0

    def take(self, kind: int, payload: bytes) -> bool:
        """Whether it is ours. Raises Garbage."""
        if kind == _METHOD:
            if payload.startswith(_CLOSINGS):
                return False
            if self._method is not None:
                raise Garbage("a method within a message")
            if payload.startswith(self.begins):
                self._method = payload
                return True
            return self._take_method(payload)
        if self._method is None:
            return False
        if kind == _HEADER and not self._header:
            self._take_header(payload)
        elif kind == _BODY and self._header:
            self._take_body(payload)
        else:
            raise Garbage("a message out of its order")
        return True

    def take_whole(self, data: bytes, at: int, end: int) -> int:
        """Take a message that begins here and is all there, in the usual three frames. Where it ends; 0: it is not.

        What it returns 0 for is taken frame by frame, and found wrong there if it is wrong.
        """
        length = len(data)
        if self._method is not None or length < end + _HEAD.size:
            return 0
        head: tuple[int, int, int, int] = _HEAD.unpack_from(data, end)
        kind, number, size, body_size = head
        after = end + AROUND + size
        whole = after + AROUND + body_size
        if kind != _HEADER or number != self._number or size < 14 or not body_size or whole > length:
            return 0
        expected = _PREFIX.pack(_BODY, number, body_size) if body_size <= self._lane.longest else b""
        if expected != data[after : after + 7] or data[after - 1] != _END or data[whole - 1] != _END:
            return 0
        self._take_message(data[at + 7 : end - 1], data[end + 7 : after - 1], data[after + 7 : whole - 1])
        return whole

    @abstractmethod
    def lost(self, error: Exception) -> None:
        """The connection is gone."""

    @abstractmethod
    def speak(self) -> None:
        """Write what waits for the end of this turn."""

    @abstractmethod
    def _take_message(self, method: bytes, header: bytes, body: bytes) -> None: ...

    def _take_method(self, payload: bytes) -> bool:
        """Another method of the channel; whether it is ours."""
        return False

    def _take_header(self, payload: bytes) -> None:
        if len(payload) < 14:
            raise Garbage("a message without its size")
        self._header = payload
        self._missing = int.from_bytes(payload[4:12], "big")
        if not self._missing:
            self._finish(b"")

    def _take_body(self, payload: bytes) -> None:
        self._missing -= len(payload)
        if self._missing < 0:
            raise Garbage("a message longer than it says")
        if self._body is None and not self._missing:
            self._finish(payload)
        elif self.wants_bodies:
            self._body = self._body or BytesIO()
            self._body.write(payload)
            if not self._missing:
                self._finish(self._body.getvalue())

    def _finish(self, body: bytes) -> None:
        method, header = cast("bytes", self._method), self._header
        self._method, self._header, self._body = None, b"", None
        self._take_message(method, header, body)


class Lane(asyncio.Protocol):
    """Stands between the transport and the stream that the library reads."""

    def __init__(self, stream: asyncio.StreamReaderProtocol, loop: asyncio.AbstractEventLoop) -> None:
        self._stream = stream
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._exits: dict[int, Exit] = {}
        #: As much of a frame as has come, and what it needs to be looked at again.
        self._rest = bytearray()
        self._needed = AROUND
        self._is_passing_all = False
        #: Why it was given up.
        self._error: ConnectionError | None = None
        self._told_at = 0.0
        self._out: list[bytes] = []
        self._out_size = 0
        #: Set while the socket takes what is written.
        self._flowing = asyncio.Event()
        self._flowing.set()
        #: The longest frame that the broker may send and gets, but for what is around.
        self.longest = LONGEST_FRAME

    # What exits use

    def add(self, number: int, exit_: Exit) -> None:
        """Hand it the frames of a channel, until that is closed."""
        self._exits[number] = exit_

    @property
    def is_flowing(self) -> bool:
        """Whether the socket takes more."""
        return self._flowing.is_set()

    async def flowing(self) -> None:
        """Wait until it does, or until the connection is gone."""
        await self._flowing.wait()

    def write(self, frames: bytes) -> None:
        """Send whole frames, together with what else is said in this turn of the event loop."""
        self._out.append(frames)
        self._out_size += len(frames)
        if self._out_size > WRITTEN_ABOVE:
            self._flush()
        elif len(self._out) == 1:
            self._loop.call_soon(self._flush)

    def soon(self, speak: Callable[[], None]) -> None:
        """Call it once this turn of the event loop is over."""
        self._loop.call_soon(speak)

    def finish(self) -> None:
        """Send now whatever waits for the end of a turn."""
        for each in [*self._exits.values()]:
            each.speak()
        self._flush()

    def _flush(self) -> None:
        frames, self._out, self._out_size = self._out, [], 0
        if frames and self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by their class
        self._stream.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._is_passing_all:
            self._stream.data_received(data)
            return
        if self._error is not None:
            return
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
            self._rest.clear()
        try:
            self._walk(data)
        except Garbage as error:
            self._give_up(f"The broker sent {error}.")
        except (IndexError, struct.error):
            self._give_up("The broker sent a frame that is cut short.")

    def eof_received(self) -> bool | None:
        return self._stream.eof_received()

    def pause_writing(self) -> None:
        self._flowing.clear()
        self._stream.pause_writing()

    def resume_writing(self) -> None:
        self._flowing.set()
        self._stream.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        exits, self._exits = self._exits, {}
        self._transport = None
        self._out.clear()
        self._stream.connection_lost(self._error or exc)
        for each in exits.values():
            each.is_closed = True
            each.lost(self._error or exc or ConnectionError("The connection was closed."))
        self._flowing.set()

    def _walk(self, data: bytes) -> None:
        """From frame to frame; those that nobody takes go on together."""
        at = begin = 0
        length, exits, has_taken = len(data), self._exits, False
        needed = AROUND
        while length - at >= AROUND:
            kind, number, size = _PREFIX.unpack_from(data, at)
            if kind not in _KINDS:
                self._pass_all(data[begin:], kind)
                return
            if size > self.longest:
                raise Garbage(f"a frame of {size} bytes, and {self.longest} are the most")
            end = at + AROUND + size
            if end > length:
                needed = end - at
                break
            if data[end - 1] != _END:
                raise Garbage("a frame without its end")
            exit_ = exits.get(number)
            if exit_ is not None and exit_.begins == data[at + 7 : at + 11]:
                whole = exit_.take_whole(data, at, end)
                if whole:
                    has_taken = True
                    if begin < at:
                        self._pass_on(data[begin:at])
                    begin = at = whole
                    continue
            if exit_ is not None:
                payload = data[at + 7 : end - 1]
                if exit_.take(kind, payload):
                    has_taken = True
                    if begin < at:
                        self._pass_on(data[begin:at])
                    begin = end
                elif kind == _METHOD and payload.startswith(_CLOSINGS):
                    del exits[number]
                    exit_.is_closed = True
            at = end
        if begin < at:
            self._pass_on(data[begin:at])
        elif has_taken and self._loop.time() - self._told_at > TOLD_EVERY:
            self._pass_on(HEARTBEAT)
        if at < length:
            self._rest += data[at:]
            self._needed = needed

    def _pass_on(self, frames: bytes) -> None:
        self._told_at = self._loop.time()
        self._stream.data_received(frames)

    def _pass_all(self, data: bytes, kind: int) -> None:
        if kind != _FOREIGN:
            raise Garbage(f"a frame of type {kind}")
        self._is_passing_all = True  # the library says what it means
        self._stream.data_received(data)

    def _give_up(self, why: str) -> None:
        self._error = ConnectionError(why)
        if self._transport is not None:
            self._transport.abort()


def framed(kind: int, number: int, payload: bytes) -> bytes:
    """One frame."""
    return _PREFIX.pack(kind, number, len(payload)) + payload + _END_BYTE


def method_frame(number: int, payload: bytes) -> bytes:
    """A method's frame."""
    return framed(_METHOD, number, payload)


def message_frames(number: int, method: bytes, header: bytes, body: bytes, longest: int) -> bytes:
    """The frames of a message: that of its method, its header's, and as many as its body needs."""
    parts: list[bytes | memoryview] = [method, _PREFIX.pack(_HEADER, number, len(header)), header, _END_BYTE]
    if len(body) <= longest:
        if body:
            parts += (_PREFIX.pack(_BODY, number, len(body)), body, _END_BYTE)
        return b"".join(parts)
    view = memoryview(body)
    for at in range(0, len(body), longest):
        piece = view[at : at + longest]
        parts += (_PREFIX.pack(_BODY, number, len(piece)), piece, _END_BYTE)
    return b"".join(parts)
