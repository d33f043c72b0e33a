"""The shards of sharded queues that one worker is in line for, and their spread over the workers.

The first worker there gets all shards from the broker. So each looks now and then how many workers there
are, which the broker does not tell of a quorum queue with a single active consumer: it says one, however
many are in line (3.10 to 4.3). They are counted as consumers of a queue that never holds anything. One
that has more than its share gives up half of what is too much, at least one shard: when what runs of it
has ended it stands in line for it anew, behind all others, and lets go of its old place. Each pass brings
the others one place forward, so shards come to rest where there is room for them.

Nobody is told that a shard was given to it. A delivery tells; a shard without any is no burden.
"""

import asyncio
import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence

from amqpjobs.amqp.connection import CLIENT_ERRORS, Session
from amqpjobs.amqp.consumer import Consumer, consume
from amqpjobs.amqp.declare import Declarer
from amqpjobs.amqp.loans import OnDelivery
from amqpjobs.amqp.shard import Rejoins, Shard
from amqpjobs.clock import SystemClock
from amqpjobs.errors import AccessRefusedError, AmqpJobsError
from amqpjobs.events import Events, ShardGivenUp
from amqpjobs.topology import Queue, Topology
from amqpjobs.wire import Delivery
from amqpjobs.worker.suspicion import Suspicion

_log = logging.getLogger(__name__)

#: Seconds between two looks, about; in real time, as connections are watched.
EVERY = 2.0


class Shards:
    """Of one worker, over all its sessions."""

    def __init__(
        self,
        *,
        topology: Topology,
        declarer: Declarer,
        events: Events,
        suspicion: Suspicion,
        prefetch: Mapping[str, int],
        on_delivery: OnDelivery,
        rejoins: Rejoins,
        chance: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`prefetch` is that of each shard, by its queue's name."""
        self._topology = topology
        self._declarer = declarer
        self._events = events
        self._suspicion = suspicion
        self._prefetch = prefetch
        self._on_delivery = on_delivery
        self._rejoins = rejoins
        self._chance = chance
        self._session: Session | None = None
        self._shards: dict[str, Shard] = {}
        #: By which others count us, one for each queue.
        self.crew: list[Consumer] = []
        self._is_leaving = False

    @property
    def consumers(self) -> list[Consumer]:
        return [*self.crew, *(each.consumer for each in self._shards.values() if each.consumer is not None)]

    @property
    def waiting(self) -> int:
        """Deliveries that wait for their key, or go back with their shard."""
        return sum(each.waiting for each in self._shards.values())

    async def open(self, session: Session, queues: Sequence[Queue]) -> None:
        """Get in line for all shards of these queues, those of a greater number before too."""
        self._session, self.crew = session, []
        for queue in queues:
            crew = self._topology.crew(queue.name)
            self.crew.append(await consume(session, queue=crew, name=crew, prefetch=1, on_delivery=_ignored))
            for part in [*self._topology.parts(queue), *await self._former(session, queue)]:
                self._shards[part] = await self._opened(session, part, queue.name)

    def drop_lost(self) -> None:
        """The connection is gone: what came on it comes again, and has killed nobody."""
        for shard in self._shards.values():
            self._suspicion.pardon(shard.held)
            shard.lose()
        self._shards = {}

    async def _former(self, session: Session, queue: Queue) -> list[str]:
        former = self._topology.former_parts(queue)
        try:
            # They are removed from the last to the first: where this one is gone, all are.
            if not former or await self._declarer.look(session, former[0]) is None:
                return []
            states = await self._declarer.look_at(session, former)
        except AccessRefusedError as error:
            _log.warning("Shards that queue %s may have had before are not looked for: %s", queue.name, error)
            return []
        return [part for part, state in states.items() if state is not None]

    async def _opened(self, session: Session, part: str, name: str) -> Shard:
        shard = Shard(queue=part, name=name, on_delivery=self._on_delivery, rejoins=self._rejoins)
        await shard.open(session, prefetch=self._prefetch[name])
        return shard

    # Spread

    async def watch(self) -> None:
        """Give up what is too much, until cancelled."""
        while True:
            # Some chance, so that two workers do not pass a shard to and fro in step.
            await SystemClock().sleep(EVERY * self._chance(0.5, 1.5))
            try:
                await self.look()
            except (AmqpJobsError, *CLIENT_ERRORS) as error:
                _log.debug("The shards could not be looked at: %r", error)
            except Exception:  # a bug must not end the watch
                _log.exception("The shards could not be looked at")

    async def look(self) -> None:
        """One look at each queue; what is given up has been when this returns."""
        for name in {each.name for each in self._shards.values()}:
            own = [each for each in self._shards.values() if each.name == name]
            active = [each for each in own if each.is_active]
            if len(active) < 2 or self._session is None or not self._session.is_open or self._is_leaving:
                continue
            state = await self._declarer.look(self._session, self._topology.crew(name))
            in_line = 1 if state is None else max(1, state.consumers)
            surplus = len(active) - math.ceil(len(own) / in_line)
            # Those first that stand still for the least.
            chosen = sorted(active, key=lambda each: each.under_way)[: math.ceil(surplus / 2)] if surplus > 0 else []
            await asyncio.gather(*(self._give_up(each, self._session, in_line) for each in chosen))

    async def _give_up(self, shard: Shard, session: Session, in_line: int) -> None:
        shard.leave()
        await shard.over()
        if not session.is_open or self._is_leaving or self._shards.get(shard.queue) is not shard:
            return
        # In line anew before the old place is left: at no time it looks as if nobody consumed.
        self._shards[shard.queue] = await self._opened(session, shard.queue, shard.name)
        held: Sequence[Delivery] = shard.held
        await shard.close()
        self._suspicion.pardon(held)
        self._events.emit(ShardGivenUp(shard.name, shard.queue, len(held), in_line))

    # Stopping

    def leave(self) -> None:
        """Begin nothing more of any."""
        self._is_leaving = True
        for shard in self._shards.values():
            shard.leave()

    async def close(self) -> None:
        """Give each up as soon as what had begun of it has ended."""
        await asyncio.gather(*(self._closed(each) for each in self._shards.values()))

    async def _closed(self, shard: Shard) -> None:
        await shard.over()
        await shard.close()


def _ignored(delivery: Delivery) -> None:
    """Nobody sends anything there."""
