"""Open the byte stream of a connection, with the guard on it and the lane below, where there is one."""

import asyncio
import ssl
from typing import Any, Protocol, cast

from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from amqpjobs.amqp.guard import GuardedReader, OnBlocked, ignore
from amqpjobs.amqp.lane import Lane


class _ContextProvider(Protocol):
    """What the library hands us for TLS."""

    async def get_context(self) -> ssl.SSLContext: ...


class GuardedTransport(TransportFactory):
    """Opens one stream for the library, and knows what is beside it."""

    def __init__(self, *, fast_lane: bool = True) -> None:
        self.on_blocked: OnBlocked = ignore
        #: None: all frames go through the library.
        self.lane: Lane | None = None
        self._has_lane = fast_lane
        self._transport: asyncio.WriteTransport | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        provider = cast("_ContextProvider", kwargs.pop("ssl_context_provider"))
        context = await provider.get_context() if url.scheme == "amqps" else None
        reader = asyncio.StreamReader(loop=loop)
        stream = asyncio.StreamReaderProtocol(reader, loop=loop)
        self.lane = Lane(stream, loop) if self._has_lane else None
        try:
            transport, _ = await loop.create_connection(
                lambda: self.lane or stream, url.host or "", url.port or 0, ssl=context, **kwargs
            )
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        self._transport = transport
        writer = asyncio.StreamWriter(transport, stream, reader, loop)
        return cast("asyncio.StreamReader", GuardedReader(reader, self._told)), writer

    def abort(self) -> None:
        """Let go of the socket, whatever still waits to be sent."""
        if self._transport is not None:
            self._transport.abort()

    def _told(self, reason: str | None) -> None:
        self.on_blocked(reason)
