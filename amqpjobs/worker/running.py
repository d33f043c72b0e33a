"""What waits and what runs in a worker: slots, and whose turn it is.

`concurrency` slots are shared by the queues. By weight, each queue with something waiting
gets its share (smooth weighted round robin, as in nginx); in strict order, an earlier queue
goes before all later ones as far as its jobs are prefetched.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from amqpjobs.clock import Clock
from amqpjobs.envelope import Envelope
from amqpjobs.topology import Queue
from amqpjobs.wire import Delivery


class Run:
    """One delivery in a slot."""

    __slots__ = ("delivery", "envelope", "is_lost", "is_settling", "task")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.envelope: Envelope | None = None
        #: From here on it is left to finish: what it decided must reach the broker.
        self.is_settling = False
        #: Whether it was noticed that its channel is gone.
        self.is_lost = False
        self.task: asyncio.Task[None] | None = None


class Slots:
    """Deliveries that wait, and how many more may run."""

    def __init__(self, concurrency: int, queues: Sequence[Queue], *, strict: bool = False) -> None:
        self._free = concurrency
        self._strict = strict
        self._waiting: dict[str, deque[Delivery]] = {queue.name: deque() for queue in queues}
        self._weights = {queue.name: queue.weight for queue in queues}
        self._credit = dict.fromkeys(self._weights, 0)
        #: Taken out because their channels are gone, since `drop_lost`.
        self._lost: list[Delivery] = []

    @property
    def waiting(self) -> int:
        """Deliveries that have not started."""
        return sum(len(each) for each in self._waiting.values())

    def add(self, delivery: Delivery) -> None:
        """A delivery waits for its turn."""
        self._waiting[delivery.queue].append(delivery)

    def take(self) -> Delivery | None:
        """The next delivery, now in a slot; None when there is none or no slot is free."""
        while self._free:
            name = self._next_queue()
            if name is None:
                return None
            delivery = self._waiting[name].popleft()
            if delivery.settler.is_open:  # else it comes again on another channel
                self._free -= 1
                return delivery
            self._lost.append(delivery)
        return None

    def release(self) -> None:
        """A slot is free again."""
        self._free += 1

    def drop_lost(self) -> list[Delivery]:
        """Take out what waits from channels that are closed: it comes again on another one."""
        for name, waiting in self._waiting.items():
            self._lost += [each for each in waiting if not each.settler.is_open]
            self._waiting[name] = deque(each for each in waiting if each.settler.is_open)
        lost, self._lost = self._lost, []
        return lost

    def empty(self) -> list[Delivery]:
        """All that waits, taken out to be handed back."""
        waiting = [delivery for each in self._waiting.values() for delivery in each]
        for each in self._waiting.values():
            each.clear()
        return waiting

    def _next_queue(self) -> str | None:
        ready = [name for name, waiting in self._waiting.items() if waiting]
        if len(ready) <= 1 or self._strict:
            return ready[0] if ready else None
        for name in ready:
            self._credit[name] += self._weights[name]
        chosen = max(ready, key=self._credit.__getitem__)
        self._credit[chosen] -= sum(self._weights[name] for name in ready)
        return chosen


class Pauses:
    """Deliveries that wait for a while before they may have a slot."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held: dict[Delivery, asyncio.Task[None]] = {}

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
