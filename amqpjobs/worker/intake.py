"""What came to a worker and has not begun: it waits out a pause, for its batch, or for a slot."""

import asyncio
from collections.abc import Callable, Sequence

from amqpjobs.clock import Clock
from amqpjobs.codec import CRASHES_HEADER
from amqpjobs.registry import Registry
from amqpjobs.topology import Queue
from amqpjobs.wire import Delivery
from amqpjobs.worker.batches import Batches, Pack
from amqpjobs.worker.run import Run
from amqpjobs.worker.slots import Slots
from amqpjobs.worker.suspicion import Suspicion, pause_before


class Intake:
    """The way of a delivery from its consumer to its slot. `on_ready` is called when one more may begin."""

    def __init__(
        self,
        *,
        registry: Registry,
        clock: Clock,
        queues: Sequence[Queue],
        concurrency: int,
        strict: bool,
        suspicion: Suspicion,
        on_ready: Callable[[], object],
    ) -> None:
        self._slots = Slots(concurrency, queues, strict=strict)
        self._batches = Batches(registry, clock, self._enlist)
        self._pauses = Pauses(clock)
        self._suspicion = suspicion
        self._on_ready = on_ready
        self._is_closed = False

    @property
    def is_full(self) -> bool:
        """Whether each slot is held."""
        return self._slots.is_full

    @property
    def waiting(self) -> int:
        """Deliveries that have not begun."""
        return self._pauses.holding + self._batches.collecting + self._slots.waiting

    @property
    def busy(self) -> int:
        """Slots that are taken."""
        return self._slots.busy

    def add(self, delivery: Delivery) -> None:
        """It waits from now on, if only for a moment."""
        if self._is_closed:
            self._slots.add(delivery)
        elif delivery.redelivered and (pause := pause_before(self._suspicion.against(delivery))):
            self._pauses.hold(delivery, pause, self._admit)
        elif self._is_suspect(delivery) or not self._batches.add(delivery):  # as `_admit`, which is said for every job
            self._slots.add(delivery)
            self._on_ready()

    def take(self) -> list[Run]:
        """What begins next in one slot: a run, or those of a batch. Empty: nothing waits, or no slot is free."""
        load = self._slots.take()
        if load is None:
            return []
        if isinstance(load, Pack):
            return [Run(delivery, seat) for delivery, seat in self._batches.seats(load)]
        return [Run(load)]

    def leave(self, run: Run) -> None:
        """A run has ended, and leaves its slot, unless others of its batch are still there."""
        if run.seat is None or run.seat.leave():
            self._slots.release()

    def drop_lost(self) -> list[Delivery]:
        """Take out what came on channels that are closed: it comes again on another one."""
        return self._pauses.drop_lost() + self._batches.drop_lost() + self._slots.drop_lost()

    def close(self) -> list[Delivery]:
        """All that waits, taken out to be handed back; nothing is collected any more."""
        self._is_closed = True
        return self._slots.empty() + self._batches.empty() + self._pauses.empty()

    def _admit(self, delivery: Delivery) -> None:
        if self._is_suspect(delivery) or not self._batches.add(delivery):
            self._enlist(delivery)

    def _is_suspect(self, delivery: Delivery) -> bool:
        """Whether it may take down its process, and with it a batch."""
        is_convicted = CRASHES_HEADER in delivery.properties.headers
        return is_convicted or (delivery.redelivered and self._suspicion.against(delivery) > 0)

    def _enlist(self, load: Delivery | Pack) -> None:
        self._slots.add(load)
        self._on_ready()


class Pauses:
    """Deliveries that wait for a while before they may have a slot."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held: dict[Delivery, asyncio.Task[None]] = {}

    @property
    def holding(self) -> int:
        return len(self._held)

    def hold(self, delivery: Delivery, seconds: float, then: Callable[[Delivery], object]) -> None:
        """Call `then` with it after so many seconds."""
        self._held[delivery] = asyncio.create_task(self._wait(delivery, seconds, then))

    def drop_lost(self) -> list[Delivery]:
        """Take out what is held from channels that are closed."""
        return self._taken([each for each in self._held if not each.settler.is_open])

    def empty(self) -> list[Delivery]:
        """All that is held, taken out to be handed back."""
        return self._taken(list(self._held))

    def _taken(self, deliveries: list[Delivery]) -> list[Delivery]:
        for each in deliveries:
            self._held.pop(each).cancel()
        return deliveries

    async def _wait(self, delivery: Delivery, seconds: float, then: Callable[[Delivery], object]) -> None:
        await self._clock.sleep(seconds)
        del self._held[delivery]
        then(delivery)
