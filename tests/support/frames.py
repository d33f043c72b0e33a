"""AMQP 0-9-1 frames, as far as a proxy must know them: where one ends, and what it is called.

A method is called as in the specification, `basic.publish`; other frames are `header`, `body` and `heartbeat`.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_PREFIX = struct.Struct(">BHI")
_METHOD = struct.Struct(">HH")
_FRAMES = {2: "header", 3: "body", 8: "heartbeat"}
_METHODS = {
    (10, 50): "connection.close",
    (10, 60): "connection.blocked",
    (10, 61): "connection.unblocked",
    (50, 10): "queue.declare",
    (50, 11): "queue.declare-ok",
    (60, 10): "basic.qos",
    (60, 20): "basic.consume",
    (60, 21): "basic.consume-ok",
    (60, 30): "basic.cancel",
    (60, 40): "basic.publish",
    (60, 50): "basic.return",
    (60, 60): "basic.deliver",
    (60, 70): "basic.get",
    (60, 71): "basic.get-ok",
    (60, 80): "basic.ack",
    (60, 90): "basic.reject",
    (60, 120): "basic.nack",
}
_NUMBERS = {name: numbers for numbers, name in _METHODS.items()}
#: What the client says first is no frame.
GREETING = "greeting"


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, as it is on the wire."""

    name: str
    channel: int
    raw: bytes

    @property
    def payload(self) -> bytes:
        return self.raw[7:-1]

    @property
    def arguments(self) -> bytes:
        """What follows a method's numbers."""
        return self.payload[4:]


class FrameReader:
    """Finds the frames of one direction of one connection."""

    def __init__(self, *, has_greeting: bool) -> None:
        self._buffer = bytearray()
        self._has_greeting = has_greeting

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete with these bytes."""
        self._buffer += data
        while (size := self._size()) <= len(self._buffer):
            raw = bytes(self._buffer[:size])
            del self._buffer[:size]
            if self._has_greeting:
                self._has_greeting = False
                yield Frame(GREETING, 0, raw)
            else:
                yield Frame(_name(raw), _PREFIX.unpack_from(raw)[1], raw)

    def _size(self) -> int:
        """Of the first frame, or more than there is."""
        if self._has_greeting:
            return 8
        if len(self._buffer) < 7:
            return 8  # the shortest frame
        return int.from_bytes(self._buffer[3:7], "big") + 8


def method(name: str, channel: int, arguments: bytes) -> bytes:
    """A method frame as a broker writes it."""
    payload = _METHOD.pack(*_NUMBERS[name]) + arguments
    return _PREFIX.pack(1, channel, len(payload)) + payload + b"\xce"


def short_text(raw: bytes) -> bytes:
    """A short string, with its length before it."""
    return bytes([len(raw)]) + raw


def _name(raw: bytes) -> str:
    if raw[0] != 1:
        return _FRAMES.get(raw[0], "unknown")
    numbers = _METHOD.unpack_from(raw, 7)
    return _METHODS.get(numbers, f"method {numbers[0]}.{numbers[1]}")
