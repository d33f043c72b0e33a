"""Let out what was parked until its kind is bound.

Done when a worker starts, and again every half minute: a job may be parked just after its
kind was bound. A walk round the queue moves every message, so there is one only when there
are others than after the last.
"""

import logging
from typing import Protocol

from amqpjobs.amqp.browse import walk
from amqpjobs.amqp.connection import CLIENT_ERRORS, Link
from amqpjobs.amqp.declare import Declarer
from amqpjobs.amqp.publisher import Publisher
from amqpjobs.client import Client
from amqpjobs.clock import SystemClock
from amqpjobs.codec import as_it_came, decode
from amqpjobs.errors import AccessRefusedError, AmqpJobsError, UnreadableError
from amqpjobs.events import ParkedReleased
from amqpjobs.producer import Producing
from amqpjobs.registry import Registry
from amqpjobs.wire import Delivery, Publication

_log = logging.getLogger(__name__)

#: Seconds between two looks.
EVERY = 30.0


class Parking(Producing, Protocol):
    """What is needed of an app, beside what a producer needs."""

    @property
    def registry(self) -> Registry: ...


class Parked:
    """The parked queue, seen by one worker."""

    def __init__(self, app: Parking, declarer: Declarer, link: Link, publisher: Publisher, client: Client) -> None:
        self._app = app
        self._declarer = declarer
        self._link = link
        self._publisher = publisher
        self._client = client

    async def watch(self) -> None:
        """Let out what this app handles, until cancelled."""
        seen, is_told = 0, False
        while True:
            try:
                seen = await self._release(seen)
            except AccessRefusedError as error:
                if not is_told:  # once: it stays so until somebody grants the permission
                    _log.warning("Parked jobs are not let out: %s", error)
                is_told = True
            except (AmqpJobsError, *CLIENT_ERRORS) as error:
                _log.debug("Parked jobs could not be looked at: %r", error)
            # In real time, as connections are watched: a day of a test would be 2,880 looks.
            await SystemClock().sleep(EVERY)

    async def _release(self, seen: int) -> int:
        """One walk, unless there are as many as were seen; the number that stays."""
        queue, released = self._app.topology.parked, 0

        def onward(delivery: Delivery) -> Publication:
            nonlocal released
            wanted = self._wanted(delivery)
            released += wanted is not None
            return wanted or self._parked_again(delivery)

        session = await self._link.session()
        count = await self._declarer.count(session, queue) or 0
        if count in (0, seen):
            return count
        await walk(session, queue, count, self._publisher, onward)
        if released:
            self._app.events.emit(ParkedReleased(released))
        return count - released

    def _wanted(self, delivery: Delivery) -> Publication | None:
        """To the queues of its kind, if this app handles it."""
        try:
            envelope = decode(delivery).evolve(queue="")
        except UnreadableError:
            return None
        return None if self._app.registry.get(envelope.kind) is None else self._client.publication(envelope)

    def _parked_again(self, delivery: Delivery) -> Publication:
        route = self._app.topology.to_parked()
        return Publication(
            exchange=route.exchange, routing_key=route.key, body=delivery.body, properties=as_it_came(delivery)
        )
