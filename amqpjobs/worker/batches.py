"""Collect the deliveries of batch handlers, before they take a slot.

A batch is ready when it is full, or some time after its first delivery came; it then waits for
one slot as a single delivery does, and as long as it waits it goes on filling. Nothing is read
here but the kind: who is expired or unreadable is told so when the batch starts.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextvars import copy_context

from amqpjobs.batch import LARGEST, Batch
from amqpjobs.clock import Clock
from amqpjobs.registry import Handler, Registry
from amqpjobs.topology import Queue
from amqpjobs.wire import Delivery
from amqpjobs.worker.joint import Joint, Seat


class Pack:
    """Deliveries of one queue for one handler, that will run as one batch."""

    def __init__(self, queue: str, kind: str, batch: Batch) -> None:
        self.queue = queue
        self.kind = kind
        self.batch = batch
        self.deliveries: list[Delivery] = []
        #: Whether it waits for a slot.
        self.is_ready = False
        self.timer: asyncio.Task[None] | None = None
        # That of the consumer, as a delivery by itself has it: no job's own.
        self.context = copy_context()

    @property
    def is_open(self) -> bool:
        """Whether any of it can still be settled."""
        return any(each.is_open for each in self.deliveries)

    def drop_lost(self) -> list[Delivery]:
        """Take out what came on channels that are closed."""
        lost = [each for each in self.deliveries if not each.is_open]
        self.deliveries = [each for each in self.deliveries if each.is_open]
        return lost


class Batches:
    """The packs that are not full, at most one for each queue and handler."""

    def __init__(self, registry: Registry, clock: Clock, on_ready: Callable[[Pack], None]) -> None:
        self._registry = registry
        self._clock = clock
        self._on_ready = on_ready
        self._open: dict[tuple[str, str], Pack] = {}
        #: Taken out because their channels are gone, since `drop_lost`.
        self._lost: list[Delivery] = []

    @property
    def collecting(self) -> int:
        """Deliveries whose batch is not ready yet."""
        return sum(len(pack.deliveries) for pack in self._open.values() if not pack.is_ready)

    def add(self, delivery: Delivery) -> bool:
        """Collect it. False: its handler, if there is one, takes no batches."""
        handler = self._registry.get(delivery.properties.kind or "")
        if handler is None or handler.batch is None:
            return False
        pack = self._open.get((delivery.queue, handler.kind)) or self._begun(
            delivery.queue, handler.kind, handler.batch
        )
        pack.deliveries.append(delivery)
        if len(pack.deliveries) >= pack.batch.size:
            self._close(pack)
            self._ripe(pack)
        return True

    def seats(self, pack: Pack) -> list[tuple[Delivery, Seat]]:
        """A pack that has a slot now: its deliveries, each with its place in the batch."""
        self._close(pack)
        self._lost += pack.drop_lost()
        joint = Joint(self._clock, len(pack.deliveries), patience=pack.batch.seconds, context=pack.context)
        return [(delivery, Seat(joint)) for delivery in pack.deliveries]

    def drop_lost(self) -> list[Delivery]:
        """Take out what came on channels that are closed: it comes again on another one."""
        for pack in list(self._open.values()):
            self._lost += pack.drop_lost()
            if not pack.deliveries:
                self._close(pack)
        lost, self._lost = self._lost, []
        return lost

    def empty(self) -> list[Delivery]:
        """All that is collected and not ready, taken out to be handed back."""
        packs = list(self._open.values())
        for pack in packs:
            self._close(pack)
        return [delivery for pack in packs if not pack.is_ready for delivery in pack.deliveries]

    def _begun(self, queue: str, kind: str, batch: Batch) -> Pack:
        pack = self._open[queue, kind] = Pack(queue, kind, batch)
        pack.timer = asyncio.create_task(self._ripen(pack))
        return pack

    async def _ripen(self, pack: Pack) -> None:
        await self._clock.sleep(pack.batch.seconds)
        pack.timer = None
        self._ripe(pack)

    def _ripe(self, pack: Pack) -> None:
        if not pack.is_ready:
            pack.is_ready = True
            self._on_ready(pack)

    def _close(self, pack: Pack) -> None:
        if self._open.get((pack.queue, pack.kind)) is pack:
            del self._open[pack.queue, pack.kind]
        if pack.timer is not None:
            pack.timer.cancel()
            pack.timer = None


def prefetch_of(queue: Queue, handlers: Iterable[Handler], concurrency: int) -> int:
    """How many deliveries a worker may hold of a queue.

    Where the queue does not say: one for each slot, and with batch handlers as many as all slots hold
    of the largest batch, and one batch of each other kind. Ordinary handlers of the same queue need
    no more beside that, but so many of their jobs are held too: batches are better off in a queue of their own.
    """
    if queue.prefetch is not None:
        return queue.prefetch
    sizes = [each.batch.size for each in handlers if each.queue == queue.name and each.batch is not None]
    if not sizes:
        return concurrency
    return min(LARGEST, (concurrency - 1) * max(sizes) + sum(sizes))
