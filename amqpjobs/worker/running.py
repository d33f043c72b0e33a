"""What waits and what runs in a worker: slots, and whose turn it is.

`concurrency` slots are shared by the queues. By weight, each queue with something waiting
gets its share (smooth weighted round robin, as in nginx); in strict order, an earlier queue
goes before all later ones as far as its jobs are prefetched.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

from amqpjobs.envelope import Envelope
from amqpjobs.topology import Queue
from amqpjobs.wire import Delivery


class Run:
    """One delivery in a slot."""

    __slots__ = ("delivery", "envelope", "is_settling", "task")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.envelope: Envelope | None = None
        #: From here on it is left to finish: what it decided must reach the broker.
        self.is_settling = False
        self.task: asyncio.Task[None] | None = None


class Slots:
    """Deliveries that wait, and how many more may run."""

    def __init__(self, concurrency: int, queues: Sequence[Queue], *, strict: bool = False) -> None:
        self._free = concurrency
        self._strict = strict
        self._waiting: dict[str, deque[Delivery]] = {queue.name: deque() for queue in queues}
        self._weights = {queue.name: queue.weight for queue in queues}
        self._credit = dict.fromkeys(self._weights, 0)

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
        return None

    def release(self) -> None:
        """A slot is free again."""
        self._free += 1

    def drop_lost(self) -> None:
        """Forget what waits from channels that are closed: it comes again on another one."""
        for name, waiting in self._waiting.items():
            self._waiting[name] = deque(each for each in waiting if each.settler.is_open)

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
