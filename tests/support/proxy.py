"""A proxy that counts AMQP frames in both directions.

It stands between a client and a broker and changes nothing, until it is asked to cut. What crosses it
is counted by method, as `basic.publish`; other frames count as `header`, `body` and `heartbeat`.
"""

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit, urlunsplit

_PREFIX = struct.Struct(">BHI")
_METHOD = struct.Struct(">HH")
_FRAMES = {2: "header", 3: "body", 8: "heartbeat"}
_METHODS = {
    (60, 10): "basic.qos",
    (60, 20): "basic.consume",
    (60, 40): "basic.publish",
    (60, 50): "basic.return",
    (60, 60): "basic.deliver",
    (60, 70): "basic.get",
    (60, 80): "basic.ack",
    (60, 90): "basic.reject",
    (60, 120): "basic.nack",
}


class FrameCounter:
    """Counts the frames of one direction of one connection."""

    def __init__(self, counts: Counter[str], *, has_greeting: bool) -> None:
        self._counts = counts
        self._buffer = bytearray()
        self._skip = 8 if has_greeting else 0

    def feed(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) < self._skip:
            return
        at, self._skip = self._skip, 0
        while len(self._buffer) >= at + 7:
            kind, _, size = _PREFIX.unpack_from(self._buffer, at)
            if len(self._buffer) < at + size + 8:
                break
            self._counts[self._name(kind, at + 7)] += 1
            at += size + 8
        del self._buffer[:at]

    def _name(self, kind: int, payload: int) -> str:
        if kind != 1:
            return _FRAMES.get(kind, "unknown")
        numbers = _METHOD.unpack_from(self._buffer, payload)
        return _METHODS.get(numbers, f"method {numbers[0]}.{numbers[1]}")


class Proxy:
    """Counts of all connections since the start, by direction; `url` leads through it."""

    def __init__(self, url: str) -> None:
        self._broker = urlsplit(url)
        self._port = 0
        self.to_broker: Counter[str] = Counter()
        self.from_broker: Counter[str] = Counter()
        self._clients = set[asyncio.StreamWriter]()

    @property
    def url(self) -> str:
        login = f"{self._broker.username}:{self._broker.password}"
        return urlunsplit(self._broker._replace(netloc=f"{login}@127.0.0.1:{self._port}"))

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["Proxy"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        async with server:
            yield self

    def cut(self) -> None:
        """Break all connections."""
        for client in self._clients:
            client.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._broker.hostname or "localhost", self._broker.port or 5672
        there, onward = await asyncio.open_connection(host, port)
        out = FrameCounter(self.to_broker, has_greeting=True)
        back = FrameCounter(self.from_broker, has_greeting=False)
        self._clients.add(writer)
        try:
            await asyncio.gather(_pump(reader, onward, out), _pump(there, writer, back))
        finally:
            self._clients.discard(writer)


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, counter: FrameCounter) -> None:
    with suppress(OSError):
        while data := await source.read(65_536):
            counter.feed(data)
            target.write(data)
            await target.drain()
    with suppress(OSError):
        target.close()
