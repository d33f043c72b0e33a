"""See that the consumers that should exist do exist.

A broker says once that it has cancelled a consumer. Should that get lost, or be overlooked, the
worker would wait on a healthy connection for what never comes. So about every heartbeat the
broker is asked how many consumers each consumed queue has. Where it has none, knows no such
queue, or does not answer, the session fails and is rebuilt, like after any other accident.

What it cannot see: that a consumer is gone from a queue on which others consume.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from amqpjobs.amqp.connection import CLIENT_ERRORS, Session
from amqpjobs.amqp.consumer import Consumer
from amqpjobs.amqp.declare import Declarer
from amqpjobs.errors import AmqpJobsError, BrokerUnavailableError

_log = logging.getLogger(__name__)

#: An answer may take so many heartbeats, as long as a dead peer goes unnoticed.
PATIENCE = 3.0
#: Of a heartbeat: how soon is looked again when a queue shows no consumer, as it does while it elects a leader.
SOON = 0.25


class Watchdog:
    """Watches over one worker's consumers."""

    def __init__(self, declarer: Declarer, heartbeat: float, consumers: Callable[[], Sequence[Consumer]]) -> None:
        self._declarer = declarer
        self._heartbeat = heartbeat
        self._consumers = consumers

    async def watch(self) -> None:
        """Look about every heartbeat, until cancelled."""
        suspects, pause = frozenset[Consumer](), self._heartbeat
        while True:
            # Some chance, so that a thousand workers do not all ask at once.
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))
            try:
                suspects = await self.look(suspects)
            except Exception:  # a bug must not end the watch
                _log.exception("The consumers could not be looked at")
            pause = self._heartbeat * (SOON if suspects else 1.0)

    async def look(self, suspects: frozenset[Consumer] = frozenset()) -> frozenset[Consumer]:
        """One look; those without a trace at the broker. Fails their session if they were `suspects` before."""
        watched = [each for each in self._consumers() if _is_alive(each)]
        if not watched:
            return frozenset()
        session = watched[0].session
        if unknown := [each for each in watched if not each.is_known]:
            session.fail(_lost(unknown[0], "the client library no longer knows it"))
            return frozenset()
        states = await self._ask(session, [each.queue for each in watched])
        missing = [each for each in watched if _is_alive(each) and states.get(each.queue, 1) == 0]
        for each in missing:
            if each in suspects:
                session.fail(_lost(each, "the queue has no consumer at the broker"))
        return frozenset(each for each in missing if session.is_open)

    async def _ask(self, session: Session, queues: Sequence[str]) -> dict[str, int]:
        """How many consumers each queue has, where that is known."""
        deadline = asyncio.timeout(PATIENCE * self._heartbeat)
        try:
            async with deadline:
                states = await self._declarer.look_at(session, queues)
        except (AmqpJobsError, *CLIENT_ERRORS, TimeoutError) as error:
            if deadline.expired():  # whatever the library made of it
                session.fail(BrokerUnavailableError("The broker did not answer on a connection that is open."))
            else:
                _log.debug("The consumers could not be looked at: %r", error)
            return {}
        return {queue: 0 if state is None else state.consumers for queue, state in states.items()}


def _is_alive(consumer: Consumer) -> bool:
    return consumer.is_wanted and consumer.session.is_open


def _lost(consumer: Consumer, how: str) -> BrokerUnavailableError:
    return BrokerUnavailableError(
        f"The consumer of {consumer.queue!r} is gone without a word ({how}), so the connection is made anew."
    )
