"""A proxy that counts AMQP frames in both directions.

It stands between a client and a broker and changes nothing, until it is asked to cut. What crosses it
is counted by method, as `basic.publish`; other frames count as `header`, `body` and `heartbeat`.
`tests.support.faults` has one that does far more.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import cast
from urllib.parse import urlsplit, urlunsplit

from tests.support.frames import GREETING, FrameReader


class Proxy:
    """Counts of all connections since the start, by direction; `url` leads through it."""

    def __init__(self, url: str) -> None:
        self._broker = urlsplit(url)
        self._port = 0
        self.to_broker: Counter[str] = Counter()
        self.from_broker: Counter[str] = Counter()
        self._clients = set[asyncio.StreamWriter]()
        #: Both of each connection.
        self._ends = set[asyncio.StreamWriter]()
        self._serving = set[asyncio.Task[None]]()
        self._is_over = False

    @property
    def url(self) -> str:
        login = f"{self._broker.username}:{self._broker.password}"
        return urlunsplit(self._broker._replace(netloc=f"{login}@127.0.0.1:{self._port}"))

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["Proxy"]:
        """Until then all its connections end, also those that clients have left open."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self._is_over = True
            for end in self._ends:
                end.transport.abort()
            if self._serving:
                await asyncio.wait(self._serving)

    def cut(self) -> None:
        """Break all connections."""
        for client in self._clients:
            client.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._serving.add(task)
        ends = {writer}
        try:
            there, onward = await asyncio.open_connection(
                self._broker.hostname or "localhost", self._broker.port or 5672
            )
            ends.add(onward)
            self._ends |= ends
            self._clients.add(writer)
            if not self._is_over:
                await asyncio.gather(
                    _pump(reader, onward, FrameReader(has_greeting=True), self.to_broker),
                    _pump(there, writer, FrameReader(has_greeting=False), self.from_broker),
                )
        finally:
            self._ends -= ends
            self._clients.discard(writer)
            self._serving.discard(task)
            for end in ends:
                end.transport.abort()


async def _pump(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, frames: FrameReader, counts: Counter[str]
) -> None:
    with suppress(OSError):
        while data := await source.read(65_536):
            counts.update(frame.name for frame in frames.feed(data) if frame.name != GREETING)
            target.write(data)
            await target.drain()
    with suppress(OSError):
        target.close()
