"""Slots, what waits for one, and whose turn it is.

`concurrency` slots are shared by the queues; a batch takes one. By weight, each queue with something waiting
gets its share (smooth weighted round robin, as in nginx); in strict order, an earlier queue
goes before all later ones as far as its jobs are prefetched.
"""

from collections import deque
from collections.abc import Iterable, Sequence

from amqpjobs.topology import Queue
from amqpjobs.wire import Delivery
from amqpjobs.worker.batches import Pack


class Slots:
    """Deliveries and packs of them that wait, and how many more may run."""

    def __init__(self, concurrency: int, queues: Sequence[Queue], *, strict: bool = False) -> None:
        self._concurrency = self._free = concurrency
        self._strict = strict
        self._waiting: dict[str, deque[Delivery | Pack]] = {queue.name: deque() for queue in queues}
        #: The queue, if there is but one.
        self._only = queues[0].name if len(queues) == 1 else None
        #: How many loads wait, in all queues.
        self._waits = 0
        self._weights = {queue.name: queue.weight for queue in queues}
        self._credit = dict.fromkeys(self._weights, 0)
        #: Taken out because their channels are gone, since `drop_lost`.
        self._lost: list[Delivery] = []

    @property
    def is_full(self) -> bool:
        """Whether each slot is held."""
        return self._free <= 0

    @property
    def waiting(self) -> int:
        """Deliveries that have not started."""
        return len(self._all())

    @property
    def busy(self) -> int:
        """Slots that are taken."""
        return self._concurrency - self._free

    def add(self, load: Delivery | Pack) -> None:
        """A delivery or a pack waits for its turn."""
        self._waits += 1
        self._waiting[load.queue].append(load)

    def take(self) -> Delivery | Pack | None:
        """What is next, now in a slot; None when there is nothing or no slot is free."""
        while self._free and self._waits:
            name = self._only or self._next_queue()
            if name is None:
                return None
            load = self._waiting[name].popleft()
            self._waits -= 1
            if load.is_open:  # else it comes again on another channel
                self._free -= 1
                return load
            self._lost += _deliveries([load])
        return None

    def release(self) -> None:
        """A slot is free again."""
        self._free += 1

    def drop_lost(self) -> list[Delivery]:
        """Take out what waits from channels that are closed: it comes again on another one."""
        for name, waiting in self._waiting.items():
            self._lost += _deliveries(each for each in waiting if not each.is_open)
            self._waiting[name] = deque(each for each in waiting if each.is_open)
        self._waits = sum(map(len, self._waiting.values()))
        lost, self._lost = self._lost, []
        return lost

    def empty(self) -> list[Delivery]:
        """All that waits, taken out to be handed back."""
        waiting = self._all()
        for each in self._waiting.values():
            each.clear()
        self._waits = 0
        return waiting

    def _all(self) -> list[Delivery]:
        return _deliveries(load for each in self._waiting.values() for load in each)

    def _next_queue(self) -> str | None:
        ready = [name for name, waiting in self._waiting.items() if waiting]
        if len(ready) <= 1 or self._strict:
            return ready[0] if ready else None
        for name in ready:
            self._credit[name] += self._weights[name]
        chosen = max(ready, key=self._credit.__getitem__)
        self._credit[chosen] -= sum(self._weights[name] for name in ready)
        return chosen


def _deliveries(loads: Iterable[Delivery | Pack]) -> list[Delivery]:
    return [each for load in loads for each in (load.deliveries if isinstance(load, Pack) else [load])]
