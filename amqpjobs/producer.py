"""An app's own connection to enqueue on, for its event loop or for a `BlockingClient`'s."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from amqpjobs.amqp.connection import Link, Session
from amqpjobs.amqp.declare import Declarer
from amqpjobs.amqp.publisher import Publisher
from amqpjobs.client import Client
from amqpjobs.clock import Clock
from amqpjobs.draft import Drafts
from amqpjobs.events import Events
from amqpjobs.levels import Level, Levels
from amqpjobs.middleware import EnqueueMiddleware
from amqpjobs.settings import Settings
from amqpjobs.topology import Plan, Topology


class Producing(Protocol):
    """What a producer needs of an app."""

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def topology(self) -> Topology: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def events(self) -> Events: ...
    @property
    def levels(self) -> Levels: ...
    @property
    def enqueue_middlewares(self) -> Sequence[EnqueueMiddleware]: ...

    def observe(self) -> None:
        """Called by whatever connects: from now on it is traced, if somebody wants that."""
        ...


def drafts_of(app: Producing) -> Drafts:
    """What an app would send, without any connection."""
    return Drafts(app=app.name, settings=app.settings, topology=app.topology, clock=app.clock)


class Producer:
    """A link, what it needs to be prepared, and the client that enqueues on it."""

    def __init__(self, app: Producing, loop: asyncio.AbstractEventLoop, *, role: str = "producer") -> None:
        #: It lives and dies with this one.
        self.loop = loop
        app.observe()
        self._levels = app.levels
        self._fall_silent: Callable[[], None] | None = None
        self._declares = app.settings.declare
        self._declarer = Declarer(app.topology, app.events)
        self._link = Link(role, app.settings, app.events, self._prepare)
        self.client = Client(
            app=app.name,
            settings=app.settings,
            topology=app.topology,
            clock=app.clock,
            events=app.events,
            link=self._link,
            publisher=Publisher(self._link, longest_body=app.settings.max_body),
            middlewares=app.enqueue_middlewares,
        )

    async def open(self) -> None:
        """Begin to connect. Returns at once; each enqueue waits for the connection within its deadline."""
        self._fall_silent = self._levels.tell({Level.UNCONFIRMED: lambda: self.client.unconfirmed})
        await self._link.__aenter__()

    async def close(self) -> None:
        if self._fall_silent is not None:
            self._fall_silent()
        await self.client.close()
        await self._link.__aexit__(None, None, None)

    async def _prepare(self, session: Session) -> None:
        await self._declarer.prepare(session, Plan(), declares=self._declares)
