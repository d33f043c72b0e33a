"""Consume one queue on a channel of its own.

Each delivery is handed on as a value of ours, at once and without waiting: the library runs
callbacks in tasks that it cancels when their channel closes.
"""

from typing import Any, cast

import aiormq
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel

from amqpjobs.amqp.connection import CLIENT_ERRORS, Session
from amqpjobs.amqp.guard import DEFECT_HEADER, properties_of
from amqpjobs.amqp.loans import Loans, OnDelivery
from amqpjobs.errors import BrokerUnavailableError
from amqpjobs.wire import Delivery


class ChannelSettler:
    """Settles deliveries on the channel they came on."""

    def __init__(self, session: Session, channel: Channel) -> None:
        self._session = session
        self._channel = channel

    @property
    def is_open(self) -> bool:
        # A session that was given up may leave channels that look open: nobody would hear what is said on them.
        return self._session.is_open and not self._channel.is_closed

    async def ack(self, tag: int) -> None:
        self._check()
        try:
            with self._session.waits:
                await self._channel.basic_ack(tag, wait=False)
        except CLIENT_ERRORS as error:
            raise _gone(error) from error

    async def nack(self, tag: int) -> None:
        self._check()
        try:
            with self._session.waits:
                await self._channel.basic_nack(tag, requeue=True, wait=False)
        except CLIENT_ERRORS as error:
            raise _gone(error) from error

    async def reject(self, tag: int) -> None:
        self._check()
        try:
            with self._session.waits:
                await self._channel.basic_reject(tag, requeue=False, wait=False)
        except CLIENT_ERRORS as error:
            raise _gone(error) from error

    def _check(self) -> None:
        if not self.is_open:
            raise BrokerUnavailableError("The channel is closed, so the delivery will come again.")


class Consumer:
    """One queue's consumer within one session."""

    def __init__(self, session: Session, channel: Channel, queue: str, tag: str) -> None:
        self.session = session
        self.queue = queue
        #: False from the moment on that somebody cancels it here.
        self.is_wanted = True
        self._channel = channel
        self._tag = tag

    @property
    def is_known(self) -> bool:
        """Whether the client library would hand on what comes."""
        return not self._channel.is_closed and self._tag in self._channel.consumers

    async def cancel(self) -> None:
        """Get no further deliveries; those that came can still be settled."""
        self.is_wanted = False
        # With its session it is gone by itself, and nobody would answer.
        if self.session.is_open and not self._channel.is_closed:
            await self._channel.basic_cancel(self._tag)

    async def close(self) -> None:
        """Let go of the channel: the broker takes back what is not settled, in one step and at its place."""
        self.is_wanted = False
        if self.session.is_open:
            await self.session.release(self._channel)


async def consume(session: Session, *, queue: str, name: str, prefetch: int, on_delivery: OnDelivery) -> Consumer:
    """Start consuming `queue`, which the app knows as `name`. Deliveries may come before this returns."""
    channel = await session.channel(confirms=False)
    settler = ChannelSettler(session, channel)
    if session.lane is not None:
        session.lane.add(channel.number, Loans(session.lane, channel.number, session, name, on_delivery))

    async def received(message: DeliveredMessage) -> None:  # where there is no lane
        on_delivery(delivery_of(message, name, settler))

    async def cancelled(frame: Any) -> None:
        session.fail(BrokerUnavailableError(f"The broker cancelled the consumer of {queue!r}."))

    channel.on_consumer_cancel_callbacks.add(cancelled)
    await channel.basic_qos(prefetch_count=prefetch)
    answer = await channel.basic_consume(queue, received)
    return Consumer(session, channel, queue, answer.consumer_tag or "")


def delivery_of(message: DeliveredMessage, name: str, settler: ChannelSettler) -> Delivery:
    """The library's message, consumed or got, as a value of ours."""
    frame = cast("aiormq.spec.Basic.Deliver", message.delivery)
    properties = properties_of(message.header.properties)
    return Delivery(
        body=message.body,
        properties=properties,
        queue=name,
        exchange=frame.exchange or "",
        routing_key=frame.routing_key or "",
        redelivered=bool(frame.redelivered),
        tag=frame.delivery_tag or 0,
        settler=settler,
        defect=str(properties.headers.get(DEFECT_HEADER, "")),
    )


def _gone(error: BaseException) -> BrokerUnavailableError:
    return BrokerUnavailableError(f"The channel is closed, so the delivery will come again ({error!r}).")
