"""Messages that are served one after the other, each acked when that is done.

For commands: few, in order, and none may be lost with who serves them. What was not acked when
the session ends comes again, to whoever opens the inbox next.
"""

import asyncio
from collections.abc import Awaitable, Callable

from amqpjobs.amqp.connection import Session
from amqpjobs.amqp.consumer import consume
from amqpjobs.amqp.declare import told_of_consuming
from amqpjobs.wire import Delivery

#: Messages lent to us at once.
WINDOW = 32


async def attend(session: Session, queue: str, serve: Callable[[Delivery], Awaitable[None]]) -> None:
    """Serve what comes, for as long as the session lasts.

    Raises what `serve` raises, and then the message comes again; AccessRefusedError when one may
    not read the queue, BrokerUnavailableError when the session has ended.
    """
    waiting = asyncio.Queue[Delivery]()  # no more than the window, since each is acked after it
    with told_of_consuming():
        await consume(session, queue=queue, name=queue, prefetch=WINDOW, on_delivery=waiting.put_nowait)
    while True:
        delivery = await waiting.get()
        await serve(delivery)
        await delivery.settler.ack(delivery.tag)
