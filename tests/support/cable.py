"""A cable to a broker that a test can cut: at once, for good, or when a certain frame crosses it.

It knows no more of AMQP than the first bytes of a publish and of an ack, which is enough to end a connection
between the two. A cut is what both sides see when the network goes: an end without any goodbye.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit, urlunsplit


class Frame(Enum):
    """A method of AMQP, as its class and number are on the wire."""

    PUBLISH = b"\x00\x3c\x00\x28"
    ACK = b"\x00\x3c\x00\x50"


@dataclass(frozen=True, slots=True)
class Trap:
    """Cut when the client next sends `frame`: before it has passed or after, one connection or all."""

    frame: Frame
    passes: bool
    all: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Connection:
    client: asyncio.StreamWriter
    broker: asyncio.StreamWriter

    def cut(self) -> None:
        self.client.transport.abort()
        # Closed, not aborted: what has passed the cable must reach the broker.
        self.broker.close()


class Cable:
    """`url` leads through it."""

    def __init__(self, url: str) -> None:
        self._broker = urlsplit(url)
        self._port = 0
        self._connections: set[_Connection] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._is_broken = False
        #: Set by a test; gone when it has sprung, and at any other cut.
        self.trap: Trap | None = None
        #: How often it was cut while somebody was connected.
        self.cuts = 0

    @property
    def url(self) -> str:
        login = f"{self._broker.username}:{self._broker.password}"
        return urlunsplit(self._broker._replace(netloc=f"{login}@127.0.0.1:{self._port}"))

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["Cable"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self._is_broken = True
            self._end(self._connections)
            while self._pumps:
                await asyncio.wait(self._pumps)

    def cut(self) -> None:
        """End all connections; new ones are welcome."""
        self._cut(self._connections)

    def break_off(self) -> None:
        """Cut it for good: who connects again is cut off at once."""
        self._is_broken = True
        self.cut()

    def _cut(self, connections: set[_Connection]) -> None:
        self.trap = None
        self.cuts += bool(connections)
        self._end(connections)

    def _end(self, connections: set[_Connection]) -> None:
        for connection in connections:
            connection.cut()
        self._connections = self._connections - connections

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_connection(self._broker.hostname, self._broker.port)
        connection = _Connection(writer, onward)
        if self._is_broken:
            connection.cut()
            return
        self._connections.add(connection)
        for pump in (self._outward(reader, connection), self._inward(there, connection)):
            task = asyncio.create_task(pump)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _outward(self, source: asyncio.StreamReader, connection: _Connection) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                trap = self.trap if self.trap is not None and self.trap.frame.value in data else None
                if trap is None or trap.passes:
                    connection.broker.write(data)
                    await connection.broker.drain()
                if trap is not None:
                    self._cut(self._connections if trap.all else {connection})
        self._ended(connection)

    async def _inward(self, source: asyncio.StreamReader, connection: _Connection) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                connection.client.write(data)
                await connection.client.drain()
        self._ended(connection)

    def _ended(self, connection: _Connection) -> None:
        """One side said goodbye; what it said before goes on."""
        self._connections.discard(connection)
        connection.client.close()
        connection.broker.close()
