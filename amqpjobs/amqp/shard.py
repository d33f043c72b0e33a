"""One shard of a queue, consumed on a channel of its own, the jobs of each key one after another.

The broker gives a shard to one consumer at a time. To give it up is to close the channel: what has not
begun goes back to its place in one step, and the next consumer in line gets it in the old order. (To
cancel the consumer would not do: the next one gets what stands behind before that goes back, seen on
RabbitMQ 3.10 to 4.3.) So whoever gives it up begins nothing more, lets what has begun come to its end,
and only then closes.

A job has come to its end when it is settled, so a `Shard` stands where its deliveries are settled.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from amqpjobs.amqp.connection import Session
from amqpjobs.amqp.consumer import Consumer, consume
from amqpjobs.amqp.loans import OnDelivery
from amqpjobs.codec import shard_key_of
from amqpjobs.wire import Delivery, Settler

#: Whether a delivery belongs to a run that goes on.
Rejoins = Callable[[Delivery], bool]


class Shard:
    """Hands on what may begin, and settles it."""

    def __init__(self, *, queue: str, name: str, on_delivery: OnDelivery, rejoins: Rejoins) -> None:
        """`queue` is the shard's own name, `name` that of the whole queue, as the app knows it.

        What `rejoins` says yes to has begun already, before the connection was lost.
        """
        self.queue = queue
        self.name = name
        #: Whether the broker has given it to us, as far as deliveries tell.
        self.is_active = False
        self.is_leaving = False
        self._on_delivery = on_delivery
        self._rejoins = rejoins
        self._consumer: Consumer | None = None
        #: The channel, as that of its deliveries.
        self._settler: Settler | None = None
        #: What has begun, or waits for a slot only, by its tag, with its key; None is no key.
        self._under_way: dict[int, int | None] = {}
        #: By the keys that are under way: what waits for them.
        self._chains: dict[int, deque[Delivery]] = {}
        #: What came and may not begin yet.
        self._held: dict[int, Delivery] = {}
        self._is_over = asyncio.Event()

    async def open(self, session: Session, *, prefetch: int) -> None:
        """Get in line for it. Deliveries may come before this returns."""
        self._consumer = await consume(
            session, queue=self.queue, name=self.name, prefetch=prefetch, on_delivery=self._arrived
        )

    @property
    def consumer(self) -> Consumer | None:
        """None until it is open."""
        return self._consumer

    @property
    def under_way(self) -> int:
        return len(self._under_way)

    @property
    def held(self) -> Sequence[Delivery]:
        """What came and may not begin yet."""
        return list(self._held.values())

    @property
    def waiting(self) -> int:
        """How many that are."""
        return len(self._held)

    # Giving it up

    def leave(self) -> None:
        """Begin nothing more."""
        self.is_leaving = True
        self._look_whether_over()

    def lose(self) -> None:
        """The connection is gone, and with it all that there was to settle."""
        self._is_over.set()

    async def over(self) -> None:
        """Wait until what had begun when it was left has come to its end."""
        await self._is_over.wait()

    async def close(self) -> None:
        """Give it up: what it held goes back."""
        if self._consumer is not None:
            await self._consumer.close()

    # As the settler of its deliveries

    @property
    def is_open(self) -> bool:
        return self._settler is not None and self._settler.is_open

    async def ack(self, tag: int) -> None:
        await self._channel.ack(tag)
        self._ended(tag)

    async def nack(self, tag: int) -> None:
        if not self.is_leaving:  # else it goes back with all others, in their order
            await self._channel.nack(tag)
        self._ended(tag)

    async def reject(self, tag: int) -> None:
        await self._channel.reject(tag)
        self._ended(tag)

    @property
    def _channel(self) -> Settler:
        assert self._settler is not None, "settled before it came"
        return self._settler

    # Keys

    def _arrived(self, delivery: Delivery) -> None:
        self.is_active = True
        self._settler, delivery.settler = delivery.settler, self
        key = shard_key_of(delivery.properties.headers)
        if self._rejoins(delivery):
            self._occupy(delivery, key)
        elif self.is_leaving:
            self._held[delivery.tag] = delivery
        elif key is not None and key in self._chains:
            self._held[delivery.tag] = delivery
            self._chains[key].append(delivery)
        else:
            self._begin(delivery, key)

    def _occupy(self, delivery: Delivery, key: int | None) -> None:
        self._under_way[delivery.tag] = key
        if key is not None:
            self._chains.setdefault(key, deque())

    def _begin(self, delivery: Delivery, key: int | None) -> None:
        self._occupy(delivery, key)
        self._on_delivery(delivery)

    def _ended(self, tag: int) -> None:
        key = self._under_way.pop(tag, None)
        if key is not None and not self.is_leaving:
            self._follow(key)
        self._look_whether_over()

    def _follow(self, key: int) -> None:
        """The next of a key begins, if there is one."""
        chain = self._chains[key]
        if chain:
            delivery = chain.popleft()
            del self._held[delivery.tag]
            self._begin(delivery, key)
        else:
            del self._chains[key]

    def _look_whether_over(self) -> None:
        if self.is_leaving and not self._under_way:
            self._is_over.set()
