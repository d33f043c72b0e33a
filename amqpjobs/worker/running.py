"""What waits and what runs in a worker: slots, whose turn it is, and what lost its channel while it ran.

`concurrency` slots are shared by the queues. By weight, each queue with something waiting
gets its share (smooth weighted round robin, as in nginx); in strict order, an earlier queue
goes before all later ones as far as its jobs are prefetched.

When a channel is lost, the broker delivers anew what was not acked on it, also what still runs
here. Such a redelivery is handed to its run, which settles it as its own: the job does not
overlap with a copy of itself, and no slot is lost to one.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from amqpjobs.envelope import Envelope
from amqpjobs.outcome import Outcome
from amqpjobs.topology import Queue
from amqpjobs.wire import Delivery, Properties

#: Headers that the broker changes when it delivers again.
BROKERS_COUNTS = frozenset({"x-delivery-count", "x-acquired-count"})


class Run:
    """One delivery in a slot."""

    __slots__ = ("delivery", "envelope", "is_settling", "outcome", "seconds", "task")

    def __init__(self, delivery: Delivery) -> None:
        #: Another one of the same message after a lost channel.
        self.delivery = delivery
        self.envelope: Envelope | None = None
        #: What it came to, and how long that took.
        self.outcome: Outcome | None = None
        self.seconds = 0.0
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


class Severed:
    """Runs that lost their delivery with its channel, until it comes again: those that go on, and those that ended.

    Another worker may get it instead, so at most `limit` are kept; the oldest go first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._runs: dict[tuple[str, str], Run] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def add(self, run: Run) -> None:
        """Keep it. Of several runs of one message id, one."""
        if (key := _key(run.delivery)) is None:
            return
        self._runs.setdefault(key, run)
        if len(self._runs) > self._limit:
            del self._runs[next(iter(self._runs))]

    def take(self, delivery: Delivery) -> Run | None:
        """The run that this redelivery belongs to. None: it is to be run."""
        key = _key(delivery) if delivery.redelivered else None
        run = None if key is None else self._runs.get(key)
        if key is None or run is None or run.delivery.settler.is_open or not _is_same(run.delivery, delivery):
            return None
        return self._runs.pop(key)


def _key(delivery: Delivery) -> tuple[str, str] | None:
    message_id = delivery.properties.message_id
    return None if message_id is None else (delivery.queue, message_id)


def _is_same(one: Delivery, other: Delivery) -> bool:
    """Whether nobody could tell their messages apart. A foreign producer may use a message id twice."""
    return (
        one.body == other.body
        and (one.exchange, one.routing_key) == (other.exchange, other.routing_key)
        and _as_published(one) == _as_published(other)
    )


def _as_published(delivery: Delivery) -> Properties:
    own = delivery.properties
    return replace(own, headers={name: value for name, value in own.headers.items() if name not in BROKERS_COUNTS})
