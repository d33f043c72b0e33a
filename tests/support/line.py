"""A plain, blocking AMQP client for comparing brokers: everything that was said is kept, types of header values too.

It decides nothing: no reply is taken for a delivery, no field left out, and nothing is retried.
"""

import select
import socket
import struct
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from pamqp import commands, frame, header
from pamqp.base import Frame
from pamqp.commands import Basic

from amqpjobs.devbroker.properties import HEADERS, Properties
from amqpjobs.devbroker.table import Field, Table, read_array

GREETING = b"AMQP\x00\x00\x09\x01"
_PREFIX = struct.Struct(">BHI")
_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
#: What a broker says by itself; all else answers something.
_UNASKED = frozenset({"Basic.Deliver", "Basic.Return", "Basic.Ack", "Basic.Nack", "Basic.Cancel"})
_WITH_CONTENT = frozenset({"Basic.Deliver", "Basic.Return", "Basic.GetOk"})
_ENDS = frozenset({"Channel.Close", "Connection.Close"})
_CAPABILITIES = {
    "authentication_failure_close": True,
    "basic.nack": True,
    "connection.blocked": True,
    "consumer_cancel_notify": True,
    "publisher_confirms": True,
}


class SilenceError(Exception):
    """The broker did not say what was waited for, or hung up."""


@dataclass(frozen=True, slots=True)
class Said:
    """A method, and the message that came with it, if one did."""

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    properties: tuple[object, ...] = ()
    body: bytes = b""

    def but(self, **fields: object) -> "Said":
        """The same with other fields."""
        return replace(self, fields={**self.fields, **fields})


class Line:
    """One connection. Use `answer` for what was asked, `heard` for the rest, `ends` for channels the broker closed."""

    def __init__(self, url: str, *, within: float) -> None:
        place = urlsplit(url)
        self._within = within
        self._socket = socket.create_connection((place.hostname or "", place.port or 5672), timeout=within)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()
        self._answers: dict[int, deque[Said]] = defaultdict(deque)
        self._partial: dict[int, tuple[Said, int]] = {}
        self.heard: dict[int, list[Said]] = defaultdict(list)
        #: Channels that the broker closed, with its words; of 0 the connection.
        self.ends: dict[int, Said] = {}
        self.is_lost = False
        self.version = ""
        self._log_in(place.username or "guest", place.password or "guest", unquote(place.path[1:]) or "/")

    def _log_in(self, user: str, password: str, vhost: str) -> None:
        self.send_raw(GREETING)
        start = self.answer(0)
        self.version = str(start.fields["server_properties"]["version"])
        properties: Any = {"capabilities": _CAPABILITIES}
        self.send(0, commands.Connection.StartOk(properties, "PLAIN", f"\0{user}\0{password}", "en_US"))
        tune = self.answer(0).fields
        self.send(0, commands.Connection.TuneOk(tune["channel_max"], tune["frame_max"], 0))
        self.send(0, commands.Connection.Open(vhost))
        self.answer(0)

    # -- out -----------------------------------------------------------------------------------------------

    def send(self, channel: int, asked: Frame) -> None:
        self.send_raw(frame.marshal(asked, channel))

    def send_raw(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError:
            self.is_lost = True

    # -- in ------------------------------------------------------------------------------------------------

    def answer(self, channel: int) -> Said:
        """The next reply on a channel, or what the broker said when it closed it. Raises `SilenceError`."""
        deadline = time.monotonic() + self._within
        while not self._answers[channel]:
            if (end := self.ends.get(channel) or self.ends.get(0)) is not None:
                return end
            if self.is_lost or time.monotonic() > deadline:
                raise SilenceError(f"No answer on channel {channel}; the connection is {self.is_lost and 'lost'}.")
            self.listen(0.1)
        return self._answers[channel].popleft()

    def ask(self, channel: int, asked: Frame) -> Said:
        self.send(channel, asked)
        return self.answer(channel)

    def listen(self, seconds: float) -> None:
        """Take in what comes, if anything comes in that time."""
        if self.is_lost or not select.select([self._socket], [], [], seconds)[0]:
            return
        try:
            data = self._socket.recv(262_144)
        except OSError:
            data = b""
        if not data:
            self.is_lost = True
            return
        self._buffer += data
        for kind, channel, payload in self._frames():
            self._take(kind, channel, payload)

    def _frames(self) -> Iterator[tuple[int, int, bytes]]:
        while len(self._buffer) >= 8:
            kind, channel, size = _PREFIX.unpack_from(self._buffer)
            if len(self._buffer) < size + 8:
                return
            payload = bytes(self._buffer[7 : 7 + size])
            del self._buffer[: size + 8]
            yield kind, channel, payload

    def _take(self, kind: int, channel: int, payload: bytes) -> None:
        match kind:
            case 1:
                self._take_method(channel, payload)
            case 2:
                said, _ = self._partial[channel]
                size = int.from_bytes(payload[4:12], "big")
                self._partial[channel] = replace(said, properties=shape(payload[12:])), size
                self._end_content(channel)
            case 3:
                said, size = self._partial[channel]
                self._partial[channel] = replace(said, body=said.body + payload), size
                self._end_content(channel)
            case _:
                assert kind == _HEARTBEAT

    def _take_method(self, channel: int, payload: bytes) -> None:
        raw = _PREFIX.pack(_METHOD, channel, len(payload)) + payload + b"\xce"
        method = cast("Frame", frame.unmarshal(raw)[2])
        said = Said(method.name, dict(method))
        if said.name in _WITH_CONTENT:
            self._partial[channel] = said, -1
        elif said.name in _ENDS:
            self.ends[channel] = said
            self.send(channel, commands.Connection.CloseOk() if channel == 0 else commands.Channel.CloseOk())
        else:
            self._keep(channel, said)

    def _end_content(self, channel: int) -> None:
        said, size = self._partial[channel]
        if len(said.body) == size:
            del self._partial[channel]
            self._keep(channel, said)

    def _keep(self, channel: int, said: Said) -> None:
        if said.name in _UNASKED:
            self.heard[channel].append(said)
        else:
            self._answers[channel].append(said)

    # -- the end -------------------------------------------------------------------------------------------

    def reopen(self, channel: int) -> Said:
        """Open a channel, perhaps one that the broker closed."""
        self.ends.pop(channel, None)
        self._answers.pop(channel, None)
        return self.ask(channel, commands.Channel.Open())

    def hang_up(self) -> None:
        """Without a word."""
        self.is_lost = True
        self._socket.close()


def publication(
    channel: int, exchange: str, key: str, properties: Basic.Properties, body: bytes, *, mandatory: bool = False
) -> bytes:
    """The frames of a message."""
    parts = [
        frame.marshal(Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory), channel),
        frame.marshal(header.ContentHeader(0, len(body), properties), channel),
    ]
    if body:
        parts.append(_PREFIX.pack(_BODY, channel, len(body)) + body + b"\xce")
    return b"".join(parts)


def shape(raw: bytes) -> tuple[object, ...]:
    """Properties by number, the types of header values kept."""
    properties = Properties(raw)
    return tuple(
        (number, _table(properties.headers()) if number == HEADERS else properties.part(number))
        for number in range(14)
        if properties.has(number)
    )


def _table(table: Table) -> tuple[object, ...]:
    return tuple((name, *_value(item)) for name, item in table.items())


def _value(item: Field) -> tuple[str, object]:
    match item.letter:
        case "F":
            return "F", _table(Table.of(item.raw))
        case "A":
            return "A", tuple(_value(one) for one in read_array(item.raw))
        case "T":
            return "T", "a time"  # two clocks, read at two moments
        case letter:
            return letter, item.raw
