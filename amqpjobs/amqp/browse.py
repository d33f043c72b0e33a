"""Look into a queue and move messages on, without a worker.

Each message is published where it belongs and acked only when that is confirmed. `walk` goes
round: one message is held at a time, and what stays is published anew, to the tail. `sift`
holds all of a queue at once and hands back what stays as it was: it neither reorders nor
doubles what is not chosen. Both cost O(n).

How `sift` gives back was measured: see there.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import Protocol

import aiormq
import aiormq.exceptions
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel

from amqpjobs.amqp.connection import CLIENT_ERRORS, Session
from amqpjobs.amqp.consumer import ChannelSettler, delivery_of
from amqpjobs.amqp.declare import Declarer
from amqpjobs.amqp.publisher import Publisher, is_forbidden
from amqpjobs.errors import AccessRefusedError, AmqpJobsError, BrokerUnavailableError, UnconfirmedError
from amqpjobs.wire import Delivery, Publication

#: Messages of a sift that are published and not yet acked: so many can be doubled by a crash.
WINDOW = 32
#: Consumers of a sift; with more than 32, 3.10 and 4.0 give back in another order.
CONSUMERS = 30
#: What one consumer holds: its chosen messages are in memory at once. AMQP's prefetch ends at 65,535.
LEAST_HELD, MOST_HELD = 100, 65_535
#: Seconds without a message after which a sift asks whether there are more.
QUIET = 1.0
#: Seconds for one confirm, and for the broker to show what it got back.
PATIENCE = 30.0


async def walk(
    session: Session, queue: str, count: int, publisher: Publisher, onward: Callable[[Delivery], Publication]
) -> int:
    """Move on up to `count` messages from the head of `queue`; how many there were.

    A message whose publish fails goes back to where it was, and the error is raised.
    """
    async with session.scratch() as channel:
        settler = ChannelSettler(session, channel)
        for moved in range(count):
            message = await channel.basic_get(queue)
            if isinstance(message.delivery, aiormq.spec.Basic.GetEmpty):
                return moved
            delivery = delivery_of(message, queue, settler)
            try:
                await publisher.send(onward(delivery))
            except BaseException:
                await settler.nack(delivery.tag)
                raise
            await settler.ack(delivery.tag)
    return count


class Sieve(Protocol):
    """Says what becomes of each message that `sift` holds."""

    @property
    def is_stopped(self) -> bool:
        """Take nothing more; what is under way ends."""
        ...

    def looks(self, delivery: Delivery, position: int) -> bool:
        """Called once for each, in order, from 1. True: it is to be taken out."""
        ...

    def onward(self, delivery: Delivery) -> Publication | None:
        """Where one that is taken out goes. None: nowhere, it is deleted."""
        ...

    def ended(self, delivery: Delivery, error: AmqpJobsError | None) -> None:
        """It is out, or an error kept it in."""
        ...


async def sift(session: Session, queue: str, sieve: Sieve, declarer: Declarer, publisher: Publisher) -> int:
    """Hold all messages of a queue, take some out, hand the others back as they lay. How many there were.

    Each message that is taken out is published, confirmed, and only then acked; up to WINDOW at a
    time are under way. Always all are held, O(n), for what only some were lent of comes back
    behind the others (seen on 3.10, 4.0 and 4.3). What comes in meanwhile is left alone.

    Raises BrokerUnavailableError when the connection is lost, and AccessRefusedError when one may
    not read there or not publish where something should go. Nothing is lost then: what was not
    acked comes back.
    """
    count = await declarer.count(session, queue) or 0
    if not count:
        return 0
    settler: ChannelSettler | None = None
    held = taken = 0
    try:
        # Its close hands back what was not acked, in order. A nack of all does not: 3.10 shuffles them.
        async with session.scratch() as channel:
            settler = ChannelSettler(session, channel)
            size = min(MOST_HELD, max(LEAST_HELD, math.ceil(count / CONSUMERS)))
            while held < count:
                hand = _Hand(sieve, settler, queue, held)
                got = await hand.fill(channel, min(size, count - held), declarer, session)
                held += got
                taken += await _take_out(hand.chosen, sieve, publisher, settler)
                if not got:
                    break
    except aiormq.exceptions.ChannelAccessRefused as error:
        raise AccessRefusedError(f"The broker refused to read {queue!r}: {error}. Give the user read on it.") from error
    except CLIENT_ERRORS as error:
        raise _lost(queue) from error
    await _until_back(session, queue, held - taken, declarer)
    return held


class _Hand:
    """What one consumer holds of a queue; of messages that are not chosen nothing is kept here."""

    def __init__(self, sieve: Sieve, settler: ChannelSettler, queue: str, before: int) -> None:
        self.chosen: list[Delivery] = []
        self._sieve = sieve
        self._settler = settler
        self._queue = queue
        self._before = before
        self._got = 0
        self._news = asyncio.Event()

    async def fill(self, channel: Channel, size: int, declarer: Declarer, session: Session) -> int:
        """Hold so many more, or as many as there are; how many."""

        async def arrived(message: DeliveredMessage) -> None:
            if self._got < size:
                self._got += 1
                self._look(delivery_of(message, self._queue, self._settler))
            self._news.set()

        # Consumers that end together give back in the order of their tags, on 3.10 and 4.0 up to 32 of them.
        tag = f"amqpjobs-{self._before:012}"
        await channel.basic_qos(prefetch_count=size)
        await channel.basic_consume(self._queue, arrived, consumer_tag=tag)
        while self._got < size:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUIET):
                    await self._news.wait()
            if channel.is_closed:
                raise _lost(self._queue)
            if not self._news.is_set() and not await declarer.count(session, self._queue):
                break  # others took some, or their time to live was over
        await channel.basic_cancel(tag)
        return self._got

    def _look(self, delivery: Delivery) -> None:
        if not self._sieve.is_stopped and self._sieve.looks(delivery, self._before + self._got):
            self.chosen.append(delivery)


async def _take_out(chosen: list[Delivery], sieve: Sieve, publisher: Publisher, settler: ChannelSettler) -> int:
    """Publish and ack them, some at a time; how many are out."""
    todo, taken = iter(chosen), 0
    refusal: AmqpJobsError | None = None

    async def lane() -> None:
        nonlocal taken, refusal
        for delivery in todo:
            if sieve.is_stopped or refusal or not settler.is_open:
                return
            error = await _move(delivery, sieve.onward(delivery), publisher, settler)
            taken += error is None
            refusal = error if is_forbidden(error) else refusal
            sieve.ended(delivery, error)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(WINDOW, len(chosen))):
            group.create_task(lane())
    if refusal is not None:  # it has cost the connection: a channel that dies takes its session down
        raise AccessRefusedError(str(refusal)) from refusal
    if chosen and not settler.is_open:
        raise _lost(chosen[0].queue)
    return taken


async def _move(
    delivery: Delivery, publication: Publication | None, publisher: Publisher, settler: ChannelSettler
) -> AmqpJobsError | None:
    """Published, confirmed, acked; or what went wrong, and then it stays."""
    try:
        async with asyncio.timeout(PATIENCE):
            if publication is not None:
                await publisher.send(publication)
            await settler.ack(delivery.tag)
    except AmqpJobsError as error:
        return error
    except TimeoutError:
        return UnconfirmedError(f"The broker did not confirm within {PATIENCE:g} s.")
    return None


async def _until_back(session: Session, queue: str, count: int, declarer: Declarer) -> None:
    """Wait a little until the queue shows what was handed back: who reads too early sees a part, and turns it round."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while (await declarer.count(session, queue) or 0) < count:  # noqa: ASYNC110  (the broker tells nobody)
                await asyncio.sleep(0.01)


def _lost(queue: str) -> BrokerUnavailableError:
    return BrokerUnavailableError(
        f"The connection was lost while {queue!r} was read. Nothing is lost: what was not moved is there again."
    )
