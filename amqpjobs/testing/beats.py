"""The beats of a harness: any number of them, of which one leads.

Each has a connection of its own, as in production, and its place is taken by another one when it dies.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from amqpjobs.app import App
from amqpjobs.beat.beat import Beat
from amqpjobs.clock import SystemClock
from amqpjobs.devbroker import Broker
from amqpjobs.errors import DefinitionError

#: A clock that stands still does not jump.
NAP = timedelta(days=36525)

#: Waits for a beat's end, however that comes.
Await = Callable[[Awaitable[None]], Awaitable[None]]


class Beats:
    """Of one app on one broker."""

    def __init__(self, app: App[Any], broker: Broker, end: Await) -> None:
        self._app = app
        self._broker = broker
        self._end = end
        self._lease = app.topology.beat_lease(app.name)
        self._places: list[_Place] = []
        #: Whether there has been one.
        self.were_there = False
        if app.schedules:
            # A leader keeps a token, and gets new ones in real time.
            broker.set_consumer_timeout(self._lease, None)

    def __bool__(self) -> bool:
        return bool(self._places)

    @property
    def is_led(self) -> bool:
        """Whether one leads, and the broker knows that as well."""
        stock = self._broker.stock(self._lease)
        return self._leader() is not None and stock is not None and stock.lent > 0

    @property
    def is_busy(self) -> bool:
        """Whether one has something to do for which no time need pass."""
        return any(place.beat.is_busy for place in self._places)

    @asynccontextmanager
    async def one(self) -> AsyncGenerator[None]:
        """One more, for the time of a block. Raises DefinitionError if nothing is scheduled."""
        if not self._app.schedules:
            raise DefinitionError(f"App {self._app.name!r} has no schedules. Add one with app.schedule(…).")
        self.were_there = True
        place = _Place(await self._begun())
        self._places.append(place)
        try:
            yield
        finally:
            self._places.remove(place)
            await self._end(place.beat.__aexit__(None, None, None))

    async def crash(self) -> None:
        """Let the leader die without a word, and another one take its place; it need not be the one that leads then."""
        place = self._leader()
        if place is None:
            raise RuntimeError("No beat leads here that could crash. Run one by `async with harness.beat():`.")
        self._broker.cut_holders(self._lease)
        await self.until_deposed(place)
        await self._end(place.beat.__aexit__(None, None, None))
        place.beat = await self._begun()

    async def until_deposed(self, place: "_Place | None" = None) -> None:
        """Wait until the leader has noticed that its connection is gone."""
        place = place or self._leader()
        while place is not None and place.beat.is_leading:
            await SystemClock().sleep(0)

    async def _begun(self) -> Beat:
        return await Beat(self._app, nap=NAP, heartbeat=self._app.settings.heartbeat).__aenter__()

    def _leader(self) -> "_Place | None":
        return next((place for place in self._places if place.beat.is_leading), None)


class _Place:
    """Where a beat runs, and after its death another one."""

    def __init__(self, beat: Beat) -> None:
        self.beat = beat
