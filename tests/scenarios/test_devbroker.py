"""The project's own broker over TCP: its time is moved, it is restarted, overfed, and told nonsense."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit

import aiormq
import pytest
import uvloop
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp import commands, frame
from pamqp.commands import Basic

from amqpjobs.devbroker import Broker, Permissions, Stock, VirtualClock
from tests.support.broker import PATIENCE, eventually

BODY = b"x" * 100_000


@asynccontextmanager
async def channel_of(url: str) -> AsyncGenerator[AbstractChannel]:
    """A confirming channel on a connection of its own."""
    connection = await aiormq.connect(url)
    try:
        yield await connection.channel(publisher_confirms=True, on_return_raises=True)
    finally:
        await connection.close()


async def count(channel: AbstractChannel, queue: str) -> int:
    return (await channel.queue_declare(queue, passive=True)).message_count or 0


async def test_three_days_of_delays_pass_at_once_and_in_order() -> None:
    async with Broker(clock=VirtualClock()) as broker, channel_of(broker.url) as channel:
        await channel.queue_declare("due", durable=True)
        for name, days in (("third", 3), ("first", 1), ("second", 2), ("fourth", 4)):
            arguments: dict[str, Any] = {
                "x-queue-type": "quorum",
                "x-message-ttl": days * 86_400_000,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": "due",
            }
            await channel.queue_declare(name, durable=True, arguments=arguments)
            await channel.basic_publish(name.encode(), routing_key=name)

        await broker.advance(days=3)

        came = [(await channel.basic_get("due", no_ack=True)).body for _ in range(3)]
        assert came == [b"first", b"second", b"third"]
        assert await count(channel, "due") == 0
        await broker.advance(hours=24)
        assert await count(channel, "due") == 1


async def test_a_consumer_sees_what_becomes_due_when_time_is_moved() -> None:
    async with Broker() as broker, channel_of(broker.url) as channel:
        got = asyncio.Queue[DeliveredMessage]()
        await channel.queue_declare("due", durable=True)
        arguments: dict[str, Any] = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "due"}
        await channel.queue_declare("wait", durable=True, arguments=arguments)
        await channel.basic_consume("due", got.put)
        await channel.basic_publish(b"later", routing_key="wait", properties=Basic.Properties(expiration="3600000"))

        await broker.advance(minutes=61)

        async with asyncio.timeout(PATIENCE):
            assert (await got.get()).body == b"later"


async def test_a_restart_keeps_what_is_durable() -> None:
    async with Broker() as broker:
        async with channel_of(broker.url) as channel:
            await channel.queue_declare("durable", durable=True)
            await channel.queue_declare("transient")
            await channel.exchange_declare("kept", exchange_type="fanout", durable=True)
            await channel.exchange_declare("gone", exchange_type="fanout")
            await channel.queue_bind("durable", "kept")
            await channel.basic_publish(b"kept", exchange="kept", properties=Basic.Properties(delivery_mode=2))
            await channel.basic_publish(b"gone", exchange="kept", properties=Basic.Properties(delivery_mode=1))
            url = broker.url

            await broker.restart()
            with pytest.raises((aiormq.exceptions.AMQPError, OSError)):
                await channel.queue_declare("durable", passive=True)

        assert broker.url == url
        async with channel_of(url) as channel:
            assert await count(channel, "durable") == 1
            await channel.basic_publish(b"new", exchange="kept")
            assert await count(channel, "durable") == 2
            with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity, match="no exchange 'gone' in vhost '/'"):
                await channel.exchange_declare("gone", exchange_type="fanout", passive=True)
        async with channel_of(url) as channel:
            with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity, match="no queue 'transient' in vhost '/'"):
                await channel.queue_declare("transient", passive=True)


async def test_vhosts_and_users_are_kept_apart() -> None:
    async with Broker() as broker:
        broker.add_vhost("other/one")
        broker.add_user("bob", "s3cret/", vhost="other/one", permissions=Permissions(configure="^mine"))
        async with channel_of(broker.url_of("bob", "s3cret/", "other/one")) as bobs, channel_of(broker.url) as ours:
            await bobs.queue_declare("mine", durable=True)
            with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity):
                await ours.queue_declare("mine", passive=True)
            with pytest.raises(aiormq.exceptions.ChannelAccessRefused, match="configure access to queue 'yours'"):
                await bobs.queue_declare("yours")

        with pytest.raises(aiormq.exceptions.AMQPError):
            await aiormq.connect(broker.url_of("bob", "s3cret/"))
        with pytest.raises(aiormq.exceptions.AMQPError):
            await aiormq.connect(broker.url_of("bob", "wrong", "other/one"))


async def test_a_publisher_waits_while_the_broker_holds_too_much() -> None:
    async with (
        Broker(memory_limit=2_000_000) as broker,
        channel_of(broker.url) as producer,
        channel_of(broker.url) as consumer,
    ):
        await consumer.queue_declare("q", durable=True)
        sending = asyncio.gather(*(producer.basic_publish(BODY, routing_key="q") for _ in range(100)))

        async def is_held_up() -> bool:
            return await count(consumer, "q") >= 20

        await eventually(is_held_up)
        held = await count(consumer, "q")
        assert not sending.done()
        assert held < 40  # the limit, and what was on its way

        received = 0
        async with asyncio.timeout(PATIENCE):
            while received < 100:
                message = await consumer.basic_get("q", no_ack=True)
                received += not isinstance(message.delivery, Basic.GetEmpty)
            assert all(isinstance(confirm, Basic.Ack) for confirm in await sending)


async def test_a_consumer_that_does_not_read_is_given_no_more_than_its_socket_holds() -> None:
    async with Broker() as broker, channel_of(broker.url) as channel:
        await channel.queue_declare("q", durable=True)
        slow = await raw_client(broker.url)
        slow.write(consume_all("q"))
        await slow.drain()

        async def is_consumed() -> bool:
            return (await channel.queue_declare("q", passive=True)).consumer_count == 1

        await eventually(is_consumed)
        for _ in range(300):
            await channel.basic_publish(BODY, routing_key="q")
        waiting = await count(channel, "q")
        slow.transport.abort()

        assert waiting > 100

        async def is_back() -> bool:
            return await count(channel, "q") == 300

        await eventually(is_back)


async def raw_client(url: str, *, heartbeat: int = 0) -> asyncio.StreamWriter:
    """Logged in, with channel 1 open, and never reading again, nor sending heartbeats."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=1024)
    writer.write(b"AMQP\x00\x00\x09\x01")
    await reader.readexactly(100)
    for number, method in (
        (0, commands.Connection.StartOk({}, "PLAIN", "\0guest\0guest", "en_US")),
        (0, commands.Connection.TuneOk(2047, 131_072, heartbeat)),
        (0, commands.Connection.Open("/")),
        (1, commands.Channel.Open()),
    ):
        writer.write(frame.marshal(method, number))
    cast("asyncio.ReadTransport", writer.transport).pause_reading()
    return writer


def consume_all(queue: str) -> bytes:
    return frame.marshal(commands.Basic.Consume(queue=queue, consumer_tag="slow"), 1)


NONSENSE = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"AMQP\x00\x00\x08\x00",
    b"AMQP\x00\x00\x09\x01" + b"\x00" * 100,
    b"AMQP\x00\x00\x09\x01" + b"\x01\x00\x00\xff\xff\xff\xff\x00",
    b"AMQP\x00\x00\x09\x01" + b"\x01\x00\x05\x00\x00\x00\x04\x00\x3c\x00\x28\xce",
    b"AMQP\x00\x00\x09\x01" + b"\x01\x00\x00\x00\x00\x00\x02\x00\x0a\xce",
]


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_nonsense_ends_its_own_connection_only(nonsense: bytes) -> None:
    async with Broker() as broker, channel_of(broker.url) as channel:
        place = urlsplit(broker.url)
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        writer.write(nonsense)
        async with asyncio.timeout(PATIENCE):
            answer = await reader.read()
        writer.close()

        assert answer.startswith((b"AMQP\x00\x00\x09\x01", b"\x01\x00\x00"))
        await channel.queue_declare("q")


async def test_a_silent_client_is_left_and_what_it_held_goes_to_others() -> None:
    async with Broker() as broker, channel_of(broker.url) as channel:
        await channel.queue_declare("q", durable=True)
        await channel.basic_publish(b"a", routing_key="q")
        silent = await raw_client(broker.url, heartbeat=1)
        silent.write(frame.marshal(Basic.Get(queue="q"), 1))
        await silent.drain()

        async def is_back() -> bool:
            return await count(channel, "q") == 1

        async with asyncio.timeout(PATIENCE):
            # A look over TCP might come too late: who stood still for two seconds is left at once.
            while broker.stock("q") != Stock(ready=0, lent=1):  # noqa: ASYNC110
                await asyncio.sleep(0)
        await eventually(is_back)
        silent.transport.abort()


async def test_it_stops_any_number_of_times_and_before_it_started() -> None:
    broker = Broker()
    await broker.stop()
    async with broker:
        assert broker.port > 0
    await broker.stop()
    with pytest.raises(OSError):  # noqa: PT011  refused, in the words of the system
        await aiormq.connect(broker.url)


def test_it_runs_on_uvloop_too() -> None:
    async def story() -> None:
        async with Broker() as broker:
            async with channel_of(broker.url) as channel:
                await channel.queue_declare("q", durable=True)
                for _ in range(50):
                    await channel.basic_publish(BODY, routing_key="q", properties=Basic.Properties(delivery_mode=2))
                await broker.restart()
            async with channel_of(broker.url) as channel:
                assert await count(channel, "q") == 50
                got = await held(channel, "q")
                async with asyncio.timeout(PATIENCE):
                    assert [(await got.get()).body for _ in range(10)] == [BODY] * 10

    uvloop.run(story())


async def held(channel: AbstractChannel, queue: str) -> asyncio.Queue[DeliveredMessage]:
    """What a consumer gets and does not settle."""
    got = asyncio.Queue[DeliveredMessage]()
    await channel.basic_qos(prefetch_count=10)
    await channel.basic_consume(queue, got.put)
    return got


@pytest.mark.parametrize(("version", "kind"), [("3.10", "classic"), ("3.10", "quorum"), ("4.0", "quorum")])
async def test_who_holds_a_delivery_too_long_loses_its_channel(version: str, kind: str) -> None:
    async with Broker(profile=version, clock=VirtualClock()) as broker, channel_of(broker.url) as channel:
        await channel.queue_declare("q", durable=True, arguments={"x-queue-type": kind})
        got = await held(channel, "q")
        await channel.basic_publish(b"a", routing_key="q")
        async with asyncio.timeout(PATIENCE):
            await got.get()

        await broker.advance(minutes=29)
        assert await count(channel, "q") == 0
        await broker.advance(minutes=2)

        words = (
            r"PRECONDITION_FAILED - delivery acknowledgement on channel \d+ timed out. Timeout value used: 1800000 ms"
        )
        with pytest.raises(aiormq.exceptions.AMQPError, match=words):
            await asyncio.wait_for(cast("Any", channel).closing, PATIENCE)
        async with channel_of(broker.url) as other:
            assert (await other.basic_get("q")).body == b"a"


async def test_on_4_3_only_the_consumer_ends_and_a_late_ack_is_harmless() -> None:
    async with (
        Broker(profile="4.3", clock=VirtualClock()) as broker,
        channel_of(broker.url) as slow,
        channel_of(broker.url) as quick,
    ):
        arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-consumer-timeout": 60_000}
        await slow.queue_declare("q", durable=True, arguments=arguments)
        got = await held(slow, "q")
        await slow.basic_publish(b"a", routing_key="q")
        async with asyncio.timeout(PATIENCE):
            late = await got.get()

            await broker.advance(seconds=61)
            again = await (await held(quick, "q")).get()

        assert again.body == b"a"
        await slow.basic_ack(cast("Any", late.delivery).delivery_tag)
        assert await count(slow, "q") == 0
        await quick.basic_reject(cast("Any", again.delivery).delivery_tag, requeue=False)
        assert not slow.is_closed


async def test_a_classic_queue_of_4_3_waits_for_ever() -> None:
    async with Broker(profile="4.3", clock=VirtualClock()) as broker, channel_of(broker.url) as channel:
        await channel.queue_declare("q", durable=True)
        await channel.basic_publish(b"a", routing_key="q")
        message = await channel.basic_get("q")

        await broker.advance(days=30)

        await channel.basic_ack(cast("Any", message.delivery).delivery_tag)
        assert await count(channel, "q") == 0


async def test_its_only_user_may_be_another_than_guest() -> None:
    assert Broker(user="dev", password="s3cret/", host="::1", port=5672).url == "amqp://dev:s3cret%2F@[::1]:5672"
    async with Broker(user="dev", password="s3cret/") as broker:
        async with channel_of(broker.url) as channel:
            await channel.queue_declare("mine")
        with pytest.raises(aiormq.exceptions.ProbableAuthenticationError):
            await aiormq.connect(broker.url_of("guest", "guest"))


async def test_the_stock_of_a_queue_is_known() -> None:
    async with Broker() as broker, channel_of(broker.url) as channel:
        await channel.queue_declare("q", durable=True)
        for _ in range(3):
            await channel.basic_publish(b"x", routing_key="q")

        await channel.basic_get("q")

        assert broker.stock("q") == Stock(ready=2, lent=1)
        assert broker.stock("other") is None


async def test_a_message_is_taken_though_its_confirm_is_lost() -> None:
    async with Broker() as broker:
        async with channel_of(broker.url) as channel:
            await channel.queue_declare("q", durable=True)
            broker.lose_next_confirm()

            with pytest.raises((aiormq.exceptions.AMQPError, ConnectionError, asyncio.CancelledError)):
                await channel.basic_publish(b"x", routing_key="q")

        assert broker.stock("q") == Stock(ready=1, lent=0)


async def test_only_the_connections_that_hold_messages_of_a_queue_are_cut() -> None:
    async with Broker() as broker, channel_of(broker.url) as holder, channel_of(broker.url) as other:
        for channel, queue in ((holder, "q"), (other, "other")):
            got = asyncio.Event()
            await channel.queue_declare(queue, durable=True)
            await channel.basic_publish(b"x", routing_key=queue)
            await channel.basic_consume(queue, partial(_set, got))
            await asyncio.wait_for(got.wait(), PATIENCE)

        broker.cut_holders("q")

        async def is_cut() -> bool:
            return holder.is_closed and broker.stock("q") == Stock(ready=1, lent=0)

        await eventually(is_cut)
        assert broker.stock("other") == Stock(ready=0, lent=1)
        assert not other.is_closed


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_one_queue_may_have_a_consumer_timeout_of_its_own(kind: str) -> None:
    clock = VirtualClock()
    async with Broker(clock=clock) as broker, channel_of(broker.url) as channel:
        await channel.queue_declare("q", durable=True, arguments={"x-queue-type": kind})
        broker.set_consumer_timeout("q", None)
        got = asyncio.Event()
        await channel.basic_publish(b"x", routing_key="q")
        await channel.basic_consume("q", partial(_set, got))
        await asyncio.wait_for(got.wait(), PATIENCE)

        await broker.advance(days=365)

        assert broker.next_due is None
        assert broker.stock("q") == Stock(ready=0, lent=1)


async def _set(event: asyncio.Event, message: object) -> None:
    event.set()


async def test_connections_that_are_cut_are_gone_at_once() -> None:
    async with Broker() as broker, channel_of(broker.url) as channel:
        await channel.queue_declare("q", durable=True)
        await channel.basic_publish(b"x", routing_key="q")
        await channel.basic_get("q")

        await broker.cut_connections()

        assert broker.stock("q") == Stock(ready=1, lent=0)
