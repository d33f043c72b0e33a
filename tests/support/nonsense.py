"""Bytes that no client should send, and how a broker ends who sends them."""

import socket
import struct
from collections.abc import Iterator
from random import Random
from urllib.parse import urlsplit

from pamqp import commands, frame
from pamqp.commands import Basic

from tests.support.frames import FrameReader

_PREFIX = struct.Struct(">BHI")
_METHOD, _HEADER, _BODY = 1, 2, 3
GREETING = b"AMQP\x00\x00\x09\x01"
START_OK = frame.marshal(commands.Connection.StartOk({}, "PLAIN", "\0guest\0guest", "en_US"), 0)
TUNE_OK = frame.marshal(commands.Connection.TuneOk(2047, 131_072, 0), 0)
OPEN = frame.marshal(commands.Connection.Open("/"), 0)
CHANNEL = frame.marshal(commands.Channel.Open(), 1)
PUBLISH = frame.marshal(Basic.Publish(exchange="", routing_key="nobody"), 1)
#: What a client says until its first channel is open.
SCRIPT = (GREETING, START_OK, TUNE_OK, OPEN, CHANNEL)


def raw(kind: int, channel: int, payload: bytes, *, end: bytes = b"\xce") -> bytes:
    return _PREFIX.pack(kind, channel, len(payload)) + payload + end


def method(class_id: int, method_id: int, arguments: bytes = b"", channel: int = 1) -> bytes:
    return raw(_METHOD, channel, struct.pack(">HH", class_id, method_id) + arguments)


def header(size: int, properties: bytes = b"\x00\x00", class_id: int = 60) -> bytes:
    return raw(_HEADER, 1, struct.pack(">HHQ", class_id, 0, size) + properties)


def body(payload: bytes) -> bytes:
    return raw(_BODY, 1, payload)


def declare(table: bytes) -> bytes:
    """queue.declare with these bytes as its arguments."""
    return method(50, 10, b"\x00\x00\x08nonsense\x08" + struct.pack(">I", len(table)) + table)


def nested(depth: int) -> bytes:
    """A table in a table in a table."""
    table = b""
    for _ in range(depth):
        table = b"\x01aF" + struct.pack(">I", len(table)) + table
    return table


#: What is said on an open channel 1, by what is wrong with it.
WRONG: dict[str, bytes] = {
    "a wrong frame end": raw(_METHOD, 1, b"\x00\x3c\x00\x0a", end=b"\x00"),
    "a frame too large": _PREFIX.pack(_METHOD, 1, 200_000) + b"\x00" * 20,
    "a frame of four gigabytes": _PREFIX.pack(_BODY, 1, 0xFFFF_FFFF),
    "an unknown kind of frame": raw(9, 1, b"abcd"),
    "a heartbeat on a channel": raw(8, 1, b""),
    "an unknown class": method(99, 10),
    "an unknown method": method(60, 99),
    "a method of the broker's": method(50, 11, b"\x01q" + b"\x00" * 8),
    "a method without arguments": method(50, 10),
    "a method frame without a method": raw(_METHOD, 1, b"\x00\x3c"),
    "a header without a message": header(1),
    "a body without a message": body(b"x"),
    "a method instead of a header": PUBLISH + PUBLISH,
    "a body instead of a header": PUBLISH + body(b"x"),
    "a method instead of a body": PUBLISH + header(5) + PUBLISH,
    "a header instead of a body": PUBLISH + header(5) + header(5),
    "a body that is too long": PUBLISH + header(2) + body(b"xyz"),
    "a body beyond all limits": PUBLISH + header(1 << 62),
    "a header of another class": PUBLISH + header(0, class_id=10),
    "a header that is cut": PUBLISH + raw(_HEADER, 1, b"\x00\x3c\x00"),
    "properties that are cut": PUBLISH + header(0, b"\x80\x00\x20abc"),
    "flags without end": PUBLISH + header(0, b"\x00\x01"),
    "a header of an unknown type": PUBLISH + header(0, b"\x20\x00\x00\x00\x00\x04\x01aq\x00"),
    "a channel that is not open": method(60, 10, b"\x00" * 7, channel=2),
    "content on a channel that is not open": raw(_BODY, 2, b"x"),
    "a second opening": CHANNEL,
    "a channel beyond the maximum": frame.marshal(commands.Channel.Open(), 3000),
    "a channel's method on channel 0": method(60, 10, b"\x00" * 7, channel=0),
    "an unknown method on channel 0": method(99, 10, channel=0),
    "content on channel 0": raw(_BODY, 0, b"x"),
    "an unknown kind of frame on channel 0": raw(9, 0, b"x"),
    "a second login": START_OK,
    "a second vhost": OPEN,
    "a table with an unknown type": declare(b"\x01aq\x00"),
    "a table that is cut": declare(b"\x01aS\x00\x00\x00\xffabc"),
    "a table without a value": declare(b"\x01a"),
    "a name that is no UTF-8": method(50, 10, b"\x00\x00\x02\xff\xfe\x08\x00\x00\x00\x00"),
    "recovery without requeue": method(60, 110, b"\x00"),
}
CLASSES, METHODS = (10, 20, 40, 50, 60, 85, 90, 99), (10, 11, 20, 30, 31, 40, 50, 70, 80, 90, 110, 120)
#: What a client says on an open channel.
SENSE = (
    frame.marshal(commands.Queue.Declare(queue="nonsense", durable=True), 1),
    frame.marshal(commands.Queue.Bind(queue="nonsense", exchange="amq.headers"), 1),
    frame.marshal(Basic.Consume(queue="nonsense", consumer_tag="c"), 1),
    frame.marshal(Basic.Get(queue="nonsense"), 1),
    frame.marshal(Basic.Ack(1, True), 1),
    frame.marshal(commands.Confirm.Select(), 1),
    frame.marshal(commands.Channel.Close(200, "", 0, 0), 1),
    frame.marshal(Basic.Publish(exchange="", routing_key="nonsense"), 1) + header(3) + body(b"abc"),
    PUBLISH + header(0, b"\x20\x00" + struct.pack(">I", len(nested(2_000))) + nested(2_000)),
    declare(nested(15_000)),
    frame.marshal(commands.Connection.Close(200, "", 0, 0), 0),
)
#: The same instead of each step of the handshake.
EARLY: dict[str, bytes] = {
    "another protocol": b"GET / HTTP/1.1\r\n\r\n",
    "an older version": b"AMQP\x01\x01\x08\x00",
    "a method before the login": GREETING + OPEN,
    "content before the login": GREETING + raw(_BODY, 0, b"x"),
    "a channel before the login": GREETING + CHANNEL,
    "a cut login": GREETING + method(10, 11, b"\x00\x00", channel=0),
    "a channel before the vhost": GREETING + START_OK + TUNE_OK + CHANNEL,
    "frames too small": GREETING + START_OK + frame.marshal(commands.Connection.TuneOk(2047, 100, 0), 0),
    "frames too large": GREETING + START_OK + frame.marshal(commands.Connection.TuneOk(2047, 1 << 20, 0), 0),
    "too many channels": GREETING + START_OK + frame.marshal(commands.Connection.TuneOk(65_535, 131_072, 0), 0),
    "an unknown vhost": GREETING + START_OK + TUNE_OK + frame.marshal(commands.Connection.Open("nowhere"), 0),
}


class Caller:
    """A socket that says what it is told to."""

    def __init__(self, url: str, *, within: float) -> None:
        place = urlsplit(url)
        self._socket = socket.create_connection((place.hostname or "", place.port or 5672), timeout=within)

    def __enter__(self) -> "Caller":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def say(self, *data: bytes) -> None:
        self._socket.sendall(b"".join(data))

    def frames(self) -> Iterator[bytes]:
        """Until the broker hangs up. Raises `TimeoutError` if it does not."""
        reader = FrameReader(has_greeting=False)
        while data := self._heard():
            yield from (frame.raw for frame in reader.feed(data))

    def _heard(self) -> bytes:
        try:
            return self._socket.recv(65_536)
        except ConnectionError:
            return b""


def mutated(random: Random) -> bytes:
    """A conversation in which something went wrong: always the same for the same numbers."""
    frames = [*SCRIPT, *random.choices(SENSE, k=random.randint(0, 4))]
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(frames))
        match random.randrange(7):
            case 0:
                frames.insert(at + 1, random.choice(list(WRONG.values())))
            case 1:
                del frames[at]
                frames.append(b"")
            case 2:
                frames[at] = frames[at][: random.randrange(len(frames[at]) + 1)]
            case 3:
                frames[at] = spoiled(frames[at], random)
            case 4:
                frames.insert(at, frames[random.randrange(len(frames))])
            case 5:
                frames.append(raw(random.choice((1, 1, 1, 2, 3, 8)), random.randrange(3), random.randbytes(12)))
            case _:
                arguments = random.randbytes(random.randrange(30))
                frames.append(method(random.choice(CLASSES), random.choice(METHODS), arguments, random.randrange(3)))
    return b"".join(frames)


def spoiled(whole: bytes, random: Random) -> bytes:
    """With some bytes that are others."""
    data = bytearray(whole)
    for _ in range(random.randint(1, 4) if data else 0):
        data[random.randrange(len(data))] = random.randrange(256)
    return bytes(data)
