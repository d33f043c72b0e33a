"""A client that does next to nothing: what it costs to serve it is what the broker costs.

It publishes one message over and over, written once, and acks each delivery by itself, as amqpjobs does,
without looking at it. One blocking socket, one channel, no threads.
"""

import socket
import struct
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from pamqp import commands, frame
from pamqp.base import Frame
from pamqp.header import ContentHeader

#: A message that was published and not confirmed: at most so many at once, sent so many at a time.
WINDOW, TOGETHER = 1000, 100
_PREFIX, _TAG = struct.Struct(">BHI"), struct.Struct(">Q")
_METHOD = 1
_ACKED = struct.Struct(">BHIHHQBB")
_DELIVER, _ACK = b"\x00\x3c\x00\x3c", b"\x00\x3c\x00\x50"
_LARGE = 256 * 1024


class Light:
    """Connected, with channel 1 open, from the start to `close`; a context manager."""

    def __init__(self, url: str, *, patience: float = 60.0) -> None:
        place = urlsplit(url)
        self._socket = socket.create_connection((place.hostname or "", place.port or 5672), timeout=patience)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        #: Messages, whose numbers are the broker's confirms'.
        self._published = 0
        self._log_in(unquote(place.username or ""), unquote(place.password or ""), unquote(place.path[1:]) or "/")

    def _log_in(self, user: str, password: str, vhost: str) -> None:
        self._socket.sendall(b"AMQP\x00\x00\x09\x01")
        self._answer()
        self.call(commands.Connection.StartOk({}, "PLAIN", f"\0{user}\0{password}", "en_US"), channel=0)
        self._send(commands.Connection.TuneOk(2047, 131_072, 0), channel=0)
        self.call(commands.Connection.Open(vhost), channel=0)
        self.call(commands.Channel.Open())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def call(self, method: Frame, *, channel: int = 1) -> Frame:
        """Send a method; its answer."""
        self._send(method, channel)
        return self._answer()

    def declare(self, queue: str) -> None:
        """A durable quorum queue."""
        arguments: Any = {"x-queue-type": "quorum"}
        self.call(commands.Queue.Declare(queue=queue, durable=True, arguments=arguments))

    def count(self, queue: str) -> int:
        """How many messages wait in it."""
        declared = self.call(commands.Queue.Declare(queue=queue, passive=True))
        assert isinstance(declared, commands.Queue.DeclareOk), declared
        return declared.message_count or 0

    def publish(self, queue: str, body: bytes, count: int, *, properties: Mapping[str, Any] | None = None) -> None:
        """Returns when all are confirmed."""
        self.call(commands.Confirm.Select())
        message = b"".join(
            (
                frame.marshal(commands.Basic.Publish(exchange="", routing_key=queue, mandatory=True), 1),
                frame.marshal(ContentHeader(0, len(body), commands.Basic.Properties(**(properties or {}))), 1),
                *([_PREFIX.pack(3, 1, len(body)), body, b"\xce"] if body else []),
            )
        )
        sent = confirmed = self._published
        self._published += count
        while confirmed < self._published:
            while sent < self._published and sent - confirmed < WINDOW:
                together = min(TOGETHER, self._published - sent)
                self._socket.sendall(message * together)
                sent += together
            confirmed = self._confirmed(confirmed)

    def consume(self, queue: str, count: int, *, prefetch: int = 200) -> None:
        """Take and ack so many, each by itself."""
        self.call(commands.Basic.Qos(prefetch_count=prefetch))
        self.call(commands.Basic.Consume(queue=queue, consumer_tag="light"))
        while count > 0:
            tags = [_TAG.unpack_from(payload, 5 + payload[4])[0] for payload in self._methods(_DELIVER)]
            self._socket.sendall(b"".join(_ACKED.pack(_METHOD, 1, 13, 60, 80, tag, 0, 0xCE) for tag in tags))
            count -= len(tags)
        self.call(commands.Channel.Close(0, "", 0, 0))

    def _confirmed(self, before: int) -> int:
        return max((_TAG.unpack_from(payload, 4)[0] for payload in self._methods(_ACK)), default=before)

    def _methods(self, index: bytes) -> list[bytes]:
        """The payloads of one method among what has come, waiting if nothing has."""
        if not self._rest:
            self._read()
        data, at, found = self._rest, 0, list[bytes]()
        while len(data) - at > 7:
            kind, _, size = _PREFIX.unpack_from(data, at)
            end = at + 8 + size
            if end > len(data):
                break
            if kind == _METHOD and data[at + 7 : at + 11] == index:
                found.append(data[at + 7 : end - 1])
            at = end
        self._rest = data[at:]
        if self._rest and not found:
            self._read()
        return found

    def _read(self) -> None:
        data = self._socket.recv(_LARGE)
        if not data:
            raise ConnectionError("The broker closed the connection.")
        self._rest += data

    def _send(self, method: Frame, channel: int = 1) -> None:
        self._socket.sendall(frame.marshal(method, channel))

    def _answer(self) -> Frame:
        """The next method, whatever came before it left out."""
        while True:
            size = 8 + _PREFIX.unpack_from(self._rest)[2] if len(self._rest) > 7 else 8
            if len(self._rest) < size:
                self._read()
                continue
            raw, self._rest = self._rest[:size], self._rest[size:]
            _, _, answer = frame.unmarshal(raw)
            if isinstance(answer, Frame) and not isinstance(answer, commands.Basic.Deliver | commands.Basic.Ack):
                return answer
