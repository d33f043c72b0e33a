"""Walk round a queue and move its messages on, without a consumer.

Each message is published where it belongs, perhaps to the tail of the same queue, and acked
only when that is confirmed. One message is held at a time, whatever the queue's length;
those that stay keep their order; each costs one round trip: O(n).
"""

from collections.abc import Callable

import aiormq

from amqpjobs.amqp.connection import Session
from amqpjobs.amqp.consumer import ChannelSettler, delivery_of
from amqpjobs.amqp.publisher import Publisher
from amqpjobs.wire import Delivery, Publication


async def walk(
    session: Session, queue: str, count: int, publisher: Publisher, onward: Callable[[Delivery], Publication]
) -> int:
    """Move on up to `count` messages from the head of `queue`; how many there were.

    A message whose publish fails goes back to where it was, and the error is raised.
    """
    async with session.scratch() as channel:
        settler = ChannelSettler(channel)
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
