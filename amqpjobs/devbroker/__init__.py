"""An AMQP 0-9-1 server in the process, for development and tests. It stands alone, and any client can use it.

    async with Broker(profile="4.3") as broker:
        connection = await aio_pika.connect(broker.url)

What RabbitMQ does is the specification, in three versions: 3.10, 4.0 and 4.3. Its time can be moved: after
`await broker.advance(days=3)` every TTL and expiry of three days has fired, in order.

It keeps everything in memory, on one node. It refuses, with 540 NOT_IMPLEMENTED, what it does not do: prefetch
sizes, `immediate`, pausing by channel.flow, x-credit, x-delayed-retry-*, filters of streams. It accepts, and does
nothing about, arguments that place or size replicas and segments, x-queue-mode and x-queue-version, and a new
secret. It has no TLS, no policies, no plugins and no management API.

It is more exact than RabbitMQ in three things: the consumer timeout strikes when it is over and not at the next
look, a confirm never waits, and a stream drops single messages and not segments.
"""

from amqpjobs.devbroker.profile import Profile
from amqpjobs.devbroker.server import Broker, Stock
from amqpjobs.devbroker.timers import RealClock, VirtualClock
from amqpjobs.devbroker.users import Permissions

__all__ = ["Broker", "Permissions", "Profile", "RealClock", "Stock", "VirtualClock"]
