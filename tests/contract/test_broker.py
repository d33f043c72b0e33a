"""What brokers do that the rest of this suite, and whoever develops with the embedded one, relies on.

Where RabbitMQ's versions differ, what is expected goes by the version that the broker announces.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import aiormq
import pytest
from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage
from pamqp.commands import Basic

from tests.support.broker import PATIENCE, eventually

How = Literal["nack", "reject", "lost"]


@dataclass
class Desk:
    """A connection, names nobody else uses, and the queues to remove."""

    connection: AbstractConnection
    unique: Callable[[], str]
    queues: list[str]

    @property
    def version(self) -> str:
        """Such as `4.0`."""
        properties = self.connection.server_properties or {}
        return ".".join(str(properties["version"]).split(".")[:2])

    async def channel(self) -> AbstractChannel:
        return await self.connection.channel(publisher_confirms=True, on_return_raises=True)

    async def queue(self, channel: AbstractChannel, **arguments: Any) -> str:
        """A durable one; underscores in names of arguments are dashes."""
        return await self.declare(channel, {name.replace("_", "-"): value for name, value in arguments.items()})

    async def declare(self, channel: AbstractChannel, arguments: dict[str, Any]) -> str:
        name = self.unique()
        self.queues.append(name)
        await channel.queue_declare(name, durable=True, arguments=arguments)
        return name

    async def taken(self, channel: AbstractChannel, queue: str) -> DeliveredMessage:
        """The next message, by basic.get, as soon as there is one."""
        messages = list[DeliveredMessage]()

        async def is_there() -> bool:
            messages.append(await channel.basic_get(queue))
            return not isinstance(messages[-1].delivery, Basic.GetEmpty)

        await eventually(is_there)
        return messages[-1]

    async def bodies(self, channel: AbstractChannel, queue: str, count: int) -> list[str]:
        return [(await self.taken(channel, queue)).body.decode() for _ in range(count)]


@pytest.fixture
async def desk(url: str, unique: Callable[[], str]) -> AsyncGenerator[Desk]:
    connection = await aiormq.connect(url)
    desk = Desk(connection, unique, [])
    yield desk
    await connection.close()
    connection = await aiormq.connect(url)  # the test may have lost its own
    channel = await connection.channel()
    for queue in desk.queues:
        await channel.queue_delete(queue)
    await connection.close()


async def send(channel: AbstractChannel, queue: str, *bodies: str, **properties: Any) -> None:
    for body in bodies:
        await channel.basic_publish(body.encode(), routing_key=queue, properties=Basic.Properties(**properties))


def tag(message: DeliveredMessage) -> int:
    return cast("int", cast("Any", message.delivery).delivery_tag)


def headers(message: DeliveredMessage) -> Mapping[str, Any]:
    return message.header.properties.headers or {}


def counts(message: DeliveredMessage) -> tuple[bool, object, object]:
    given = headers(message)
    redelivered = bool(cast("Any", message.delivery).redelivered)
    return redelivered, given.get("x-delivery-count"), given.get("x-acquired-count")


async def give_back(desk: Desk, channel: AbstractChannel, message: DeliveredMessage, how: How) -> AbstractChannel:
    """By one of three ways; the channel to go on with."""
    match how:
        case "nack":
            await channel.basic_nack(tag(message), requeue=True)
        case "reject":
            await channel.basic_reject(tag(message), requeue=True)
        case "lost":
            await channel.close()
            return await desk.channel()
    return channel


@pytest.mark.parametrize("how", ["nack", "reject", "lost"])
async def test_a_quorum_queue_tells_how_often_a_message_came_back(desk: Desk, how: How) -> None:
    channel = await desk.channel()
    queue = await desk.queue(channel, x_queue_type="quorum", x_delivery_limit=10)
    await send(channel, queue, "a")

    seen = list[tuple[bool, object, object]]()
    for _ in range(3):
        message = await desk.taken(channel, queue)
        seen.append(counts(message))
        channel = await give_back(desk, channel, message, how)

    first = (False, 0 if desk.version == "3.10" else None, None)
    if desk.version != "4.3":
        assert seen == [first, (True, 1, None), (True, 2, None)]
    elif how == "nack":
        assert seen == [first, (True, None, 1), (True, None, 2)]
    else:
        assert seen == [first, (True, 1, 1), (True, 2, 2)]


@pytest.mark.parametrize("how", ["nack", "reject", "lost"])
async def test_a_message_beyond_its_delivery_limit_is_a_dead_letter(desk: Desk, how: How) -> None:
    channel = await desk.channel()
    dead = await desk.queue(channel)
    queue = await desk.queue(
        channel,
        x_queue_type="quorum",
        x_delivery_limit=1,
        x_dead_letter_exchange="",
        x_dead_letter_routing_key=dead,
    )
    await send(channel, queue, "a")

    for _ in range(2):
        channel = await give_back(desk, channel, await desk.taken(channel, queue), how)

    if (desk.version, how) == ("4.3", "nack"):  # handed back unstarted, any number of times
        assert counts(await desk.taken(channel, queue)) == (True, None, 2)
        return
    (death,) = headers(await desk.taken(channel, dead))["x-death"]
    assert (death["reason"], death["queue"], death["count"]) == ("delivery_limit", queue, 1)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize("how", ["nack", "lost"])
async def test_what_comes_back_is_next_again(desk: Desk, kind: str, how: How) -> None:
    channel = await desk.channel()
    limit = {"x-delivery-limit": 9} if kind == "quorum" else {}
    queue = await desk.declare(channel, {"x-queue-type": kind, **limit})
    await send(channel, queue, *"abcde")

    messages = [await desk.taken(channel, queue) for _ in range(2)]
    if how == "nack":
        await channel.basic_nack(tag(messages[-1]), multiple=True)
    else:
        await channel.close()
        channel = await desk.channel()

        async def is_back() -> bool:
            return (await channel.queue_declare(queue, passive=True)).message_count == 5

        await eventually(is_back)

    assert await desk.bodies(channel, queue, 5) == list("abcde")


PRIORITIES = [None, 1, 5, 9, 0, 4, 31, None, 5]
EXPECTED: dict[str, list[int | None]] = {
    "3.10": [None, 1, 5, 9, 0, 4, 31, None, 5],
    "4.0": [5, 9, None, 31, 5, 1, 0, 4, None],
    "4.3": [31, 9, 5, 5, None, 4, None, 1, 0],
}


async def test_priorities_of_a_quorum_queue_are_the_versions(desk: Desk) -> None:
    channel = await desk.channel()
    queue = await desk.queue(channel, x_queue_type="quorum")
    for priority in PRIORITIES:
        await send(channel, queue, str(priority), priority=priority)

    assert await desk.bodies(channel, queue, 9) == [str(priority) for priority in EXPECTED[desk.version]]


async def test_priorities_of_a_classic_queue_are_those_it_was_declared_with(desk: Desk) -> None:
    channel = await desk.channel()
    queue = await desk.queue(channel, x_queue_type="classic", x_max_priority=5)
    for priority in PRIORITIES:
        await send(channel, queue, str(priority), priority=priority)

    expected = ["5", "9", "31", "5", "4", "1", "None", "0", "None"]
    assert await desk.bodies(channel, queue, 9) == expected


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_a_dead_letter_tells_of_its_way(desk: Desk, kind: str) -> None:
    channel = await desk.channel()
    end = await desk.queue(channel, x_queue_type=kind)
    to_end = {"x_dead_letter_exchange": "", "x_dead_letter_routing_key": end}
    second = await desk.queue(channel, x_queue_type=kind, x_message_ttl=50, **to_end)
    to_second = {"x_dead_letter_exchange": "", "x_dead_letter_routing_key": second}
    first = await desk.queue(channel, x_queue_type=kind, **to_second)

    await send(channel, first, "a", expiration="40", headers={"own": 1}, message_id="m")
    message = await desk.taken(channel, end)

    given, properties = headers(message), message.header.properties
    ways = [(death["queue"], death["reason"], death["count"], death["routing-keys"]) for death in given["x-death"]]
    assert ways == [(second, "expired", 1, [second]), (first, "expired", 1, [first])]
    assert [death.get("original-expiration") for death in given["x-death"]] == [None, "40"]
    assert (given["x-first-death-queue"], given["x-first-death-reason"]) == (first, "expired")
    assert given.get("x-last-death-queue") == (None if desk.version == "3.10" else second)
    assert (given["own"], properties.message_id, properties.expiration) == (1, "m", None)


async def test_deaths_that_a_publisher_claims_end_its_message_in_old_versions(desk: Desk) -> None:
    channel = await desk.channel()
    end = await desk.queue(channel)
    wait = await desk.queue(channel, x_message_ttl=20, x_dead_letter_exchange="", x_dead_letter_routing_key=end)
    claimed = [{"queue": end, "reason": "expired", "count": 1}]

    await send(channel, wait, "claimed", headers={"x-death": claimed})
    await send(channel, wait, "plain")

    assert await desk.bodies(channel, end, 1) == ["plain" if desk.version == "3.10" else "claimed"]


@pytest.mark.parametrize("overflow", ["drop-head", "reject-publish", "reject-publish-dlx"])
async def test_a_full_classic_queue_does_as_it_was_told(desk: Desk, overflow: str) -> None:
    channel = await desk.channel()
    dead = await desk.queue(channel)
    queue = await desk.queue(
        channel,
        x_queue_type="classic",
        x_max_length=2,
        x_overflow=overflow,
        x_dead_letter_exchange="",
        x_dead_letter_routing_key=dead,
    )

    taken = list[bool]()
    for body in "abcd":
        try:
            await send(channel, queue, body)
        except aiormq.exceptions.DeliveryError:
            taken.append(False)
        else:
            taken.append(True)

    drops = overflow == "drop-head"
    assert taken == [True, True, drops, drops]
    assert await desk.bodies(channel, queue, 2) == (["c", "d"] if drops else ["a", "b"])
    if overflow != "reject-publish":
        assert await desk.bodies(channel, dead, 2) == (["a", "b"] if drops else ["c", "d"])


Refused = Callable[[AbstractChannel, str], Any]
REFUSED: dict[str, tuple[Refused, str]] = {
    "an unknown queue": (lambda it, name: it.basic_get(name), r"NOT_FOUND - no queue '{}' in vhost '/'"),
    "an unknown exchange": (
        lambda it, name: it.exchange_declare(name, passive=True),
        r"NOT_FOUND - no exchange '{}' in vhost '/'",
    ),
    "the default exchange": (
        lambda it, name: it.exchange_delete(""),
        r"ACCESS_REFUSED - operation not permitted on the default exchange",
    ),
    "a system exchange": (
        lambda it, name: it.exchange_delete("amq.topic"),
        r"ACCESS_REFUSED - deletion of system exchange 'amq.topic' in vhost '/' not allowed",
    ),
    "a reserved name": (
        lambda it, name: it.queue_declare("amq.mine"),
        r"ACCESS_REFUSED - queue name 'amq.mine' contains reserved prefix 'amq.\*'",
    ),
    "another exchange type": (
        lambda it, name: it.exchange_declare("amq.topic", exchange_type="direct", durable=True),
        r"PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'amq.topic' in vhost '/': "
        r"received 'direct' but current is 'topic'",
    ),
    "a negative TTL": (
        lambda it, name: it.queue_declare(name, durable=True, arguments={"x-message-ttl": -1}),
        r"PRECONDITION_FAILED - invalid arg 'x-message-ttl' for queue '{}' in vhost '/': {{value_negative,-1}}",
    ),
    "an argument of another type of queue": (
        lambda it, name: it.queue_declare(
            name, durable=True, arguments={"x-queue-type": "quorum", "x-max-priority": 3}
        ),
        r"PRECONDITION_FAILED - invalid arg 'x-max-priority' for queue '{}' in vhost '/' of queue type "
        r"rabbit_quorum_queue",
    ),
    "a transient quorum queue": (
        lambda it, name: it.queue_declare(name, arguments={"x-queue-type": "quorum"}),
        r"PRECONDITION_FAILED - invalid property 'non-durable' for queue '{}' in vhost '/'",
    ),
    "an expiration that is none": (
        lambda it, name: it.basic_publish(b"", routing_key=name, properties=Basic.Properties(expiration="soon")),
        r"PRECONDITION_FAILED - invalid expiration 'soon': no_integer",
    ),
    "a user that it is not": (
        lambda it, name: it.basic_publish(b"", routing_key=name, properties=Basic.Properties(user_id="bob")),
        r"PRECONDITION_FAILED - user_id property set to 'bob' but authenticated user was 'guest'",
    ),
    "a direct reply without a consumer": (
        lambda it, name: it.basic_publish(
            b"", routing_key=name, properties=Basic.Properties(reply_to="amq.rabbitmq.reply-to")
        ),
        r"PRECONDITION_FAILED - fast reply consumer does not exist",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_is_wrong_is_refused_in_these_words(desk: Desk, what: str) -> None:
    attempt, words = REFUSED[what]
    channel, name = await desk.channel(), desk.unique()

    with pytest.raises(aiormq.exceptions.AMQPError, match=words.format(name)):
        await attempt(channel, name)

    assert not (await desk.channel()).is_closed  # the connection stays


async def test_an_ack_of_an_unknown_delivery_ends_the_channel(desk: Desk) -> None:
    channel = await desk.channel()

    await channel.basic_ack(77)

    with pytest.raises(aiormq.exceptions.AMQPError):
        await asyncio.wait_for(cast("Any", channel).closing, PATIENCE)


async def test_a_transaction_happens_as_a_whole_or_not_at_all(desk: Desk) -> None:
    channel = await desk.connection.channel(publisher_confirms=False)
    queue = await desk.queue(channel)

    async def count() -> int | None:
        return (await channel.queue_declare(queue, passive=True)).message_count

    await channel.tx_select()
    await channel.basic_publish(b"1", routing_key=queue)
    await channel.tx_rollback()
    await channel.basic_publish(b"2", routing_key=queue)
    assert await count() == 0
    await channel.tx_commit()
    assert await count() == 1

    message = await desk.taken(channel, queue)
    await channel.basic_ack(tag(message))
    await channel.tx_rollback()
    await channel.basic_nack(tag(message))
    await channel.tx_commit()
    assert (await desk.taken(channel, queue)).body == b"2"


async def test_what_a_transaction_hands_back_comes_in_its_old_order_to_whose_turn_it_is(desk: Desk) -> None:
    channel = await desk.connection.channel(publisher_confirms=False)
    queue = await desk.queue(channel, **{"x-queue-type": "quorum"})
    taken = asyncio.Queue[tuple[str, DeliveredMessage]]()

    async def consume(name: str) -> None:
        async def take(message: DeliveredMessage) -> None:
            await taken.put((name, message))

        await channel.basic_consume(queue, take, consumer_tag=name)

    async def next_two() -> list[tuple[str, DeliveredMessage]]:
        return [await asyncio.wait_for(taken.get(), PATIENCE) for _ in range(2)]

    for body in ("first", "second"):
        await send(channel, queue, body)
    await channel.basic_qos(prefetch_count=2)
    await channel.tx_select()
    await consume("has both")
    first, second = await next_two()
    await consume("has none")
    for _, message in (second, first):
        await channel.basic_nack(tag(message))
    await channel.tx_commit()

    assert {name: message.body for name, message in await next_two()} == {"has none": b"first", "has both": b"second"}


async def test_a_prefetch_for_consumers_lifts_the_one_of_the_channel_at_once(desk: Desk) -> None:
    channel = await desk.channel()
    queue = await desk.queue(channel)
    taken = asyncio.Queue[DeliveredMessage]()
    await send(channel, queue, "first", "second")

    await channel.basic_qos(prefetch_count=1, global_=True)  # 4.3 takes it for one of each consumer, as the next
    await channel.basic_consume(queue, taken.put)
    first = await asyncio.wait_for(taken.get(), PATIENCE)
    await channel.basic_qos(prefetch_count=1)
    if desk.version == "4.3":
        await channel.basic_ack(tag(first))
    second = await asyncio.wait_for(taken.get(), PATIENCE)

    assert (first.body, second.body) == (b"first", b"second")


async def test_a_direct_reply_finds_its_way(desk: Desk) -> None:
    asker, answerer = await desk.channel(), await desk.connection.channel()
    queue = await desk.queue(asker)
    replies = asyncio.Queue[DeliveredMessage]()
    await asker.basic_consume("amq.rabbitmq.reply-to", replies.put, no_ack=True)

    await send(asker, queue, "?", reply_to="amq.rabbitmq.reply-to", correlation_id="7")
    asked = (await desk.taken(answerer, queue)).header.properties
    assert asked.reply_to is not None
    await answerer.basic_publish(
        b"!", routing_key=asked.reply_to, properties=Basic.Properties(correlation_id=asked.correlation_id)
    )

    async with asyncio.timeout(PATIENCE):
        reply = await replies.get()
    assert (reply.body, reply.header.properties.correlation_id) == (b"!", "7")


async def test_a_consumer_of_a_deleted_queue_is_told(desk: Desk) -> None:
    consumer, other = await desk.channel(), await desk.channel()
    queue = await desk.queue(other)
    consumed = await consumer.basic_consume(queue, lambda message: asyncio.sleep(0))

    await other.queue_delete(queue)

    async def is_gone() -> bool:
        return consumed.consumer_tag not in cast("Any", consumer).consumers

    await eventually(is_gone)
    assert not consumer.is_closed


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_one_active_consumer_is_followed_by_the_next(desk: Desk, kind: str) -> None:
    publisher, channels = await desk.channel(), [await desk.channel() for _ in range(2)]
    queue = await desk.queue(publisher, x_queue_type=kind, x_single_active_consumer=True)
    seen = asyncio.Queue[tuple[int, bytes]]()

    def receiver(number: int) -> Callable[[DeliveredMessage], Any]:
        async def receive(message: DeliveredMessage) -> None:
            await channels[number].basic_ack(tag(message))
            await seen.put((number, message.body))

        return receive

    for number, channel in enumerate(channels):
        await channel.basic_consume(queue, receiver(number))
    async with asyncio.timeout(PATIENCE):
        await send(publisher, queue, "a", "b")
        assert [await seen.get(), await seen.get()] == [(0, b"a"), (0, b"b")]
        await channels[0].close()
        await send(publisher, queue, "c")
        assert await seen.get() == (1, b"c")


@pytest.mark.parametrize(("offset", "expected"), [("first", "abcde"), (3, "de"), ("1h", "abcde")])
async def test_a_stream_is_read_from_anywhere_any_number_of_times(desk: Desk, offset: str | int, expected: str) -> None:
    publisher = await desk.channel()
    queue = await desk.queue(publisher, x_queue_type="stream")
    await send(publisher, queue, *"abcde")

    for _ in range(2):
        reader, seen = await desk.channel(), asyncio.Queue[DeliveredMessage]()
        await reader.basic_qos(prefetch_count=10)
        await reader.basic_consume(queue, seen.put, arguments={"x-stream-offset": offset})
        async with asyncio.timeout(PATIENCE):
            messages = [await seen.get() for _ in expected]
        await reader.basic_ack(tag(messages[-1]), multiple=True)

        assert [message.body.decode() for message in messages] == list(expected)
        offsets = [headers(message)["x-stream-offset"] for message in messages]
        assert offsets == list(range(5 - len(expected), 5))
