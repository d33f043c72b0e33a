"""The project's own broker with clients that nobody here wrote.

pika, which blocks; kombu on py-amqp; aio-pika, which comes back by itself; librabbitmq's command-line tools.
Celery has a file of its own.
"""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from importlib import import_module
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from amqpjobs.devbroker import Broker
from tests.support.broker import PATIENCE
from tests.support.embedded import Embedded

#: Without types of their own.
pika: Any = import_module("pika")
kombu: Any = import_module("kombu")

HEADERS: dict[str, Any] = {
    "text": "é",
    "number": -5,
    "large": 2**40,
    "flag": True,
    "nothing": None,
    "moment": datetime(2024, 5, 1, 12, 0, tzinfo=UTC),
    "list": [1, "two", {"three": 3}],
    "table": {"a": {"b": [True]}},
    "price": Decimal("1.25"),
}


VERSIONS = ["3.10", "4.0", "4.3"]


@pytest.fixture(scope="module", params=VERSIONS)
def broker(request: pytest.FixtureRequest) -> Iterator[Embedded]:
    with Embedded(str(request.param)) as running:
        yield running


def test_pika_publishes_consumes_and_is_told_what_it_did_wrong(broker: Embedded) -> None:
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.exchange_declare("pika", exchange_type="topic", durable=True)
        channel.queue_declare("pika", durable=True, arguments={"x-queue-type": "quorum"})
        channel.queue_bind("pika", "pika", "a.#")
        properties = pika.BasicProperties(headers=HEADERS, content_type="text/plain", priority=3, delivery_mode=2)

        channel.basic_publish("pika", "a.b", b"x" * 300_000, properties, mandatory=True)
        with pytest.raises(pika.exceptions.UnroutableError):
            channel.basic_publish("pika", "b", b"nowhere", mandatory=True)
        channel.basic_qos(prefetch_count=1)
        deliveries = channel.consume("pika", inactivity_timeout=30)
        method, received, body = next(deliveries)
        assert (method.routing_key, len(body), received.priority) == ("a.b", 300_000, 3)
        assert {**received.headers, "moment": HEADERS["moment"]} == HEADERS
        channel.basic_reject(method.delivery_tag, requeue=True)
        method, received, _ = next(deliveries)
        assert method.redelivered
        assert received.headers["x-delivery-count"] == 1
        channel.basic_ack(method.delivery_tag)
        channel.cancel()

        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as caught:
            channel.queue_declare("pika", durable=True)
        assert caught.value.reply_code == 406
        assert "inequivalent arg 'x-queue-type' for queue 'pika'" in caught.value.reply_text
        connection.channel().queue_delete("pika")


def test_kombu_sends_acks_and_requeues(broker: Embedded) -> None:
    exchange = kombu.Exchange("kombu", type="direct")
    queue = kombu.Queue("kombu", exchange, routing_key="k", max_priority=5)
    seen: list[tuple[Any, bool]] = []

    def receive(body: Any, message: Any) -> None:
        seen.append((body, bool(message.delivery_info["redelivered"])))
        if message.delivery_info["redelivered"]:
            message.ack()
        else:
            message.requeue()

    with kombu.Connection(broker.url.replace("amqp://", "pyamqp://"), heartbeat=10) as connection:
        with connection.Producer() as producer:
            producer.publish({"n": 1}, exchange=exchange, routing_key="k", declare=[queue], priority=2)
        with connection.Consumer(queue, callbacks=[receive], prefetch_count=1):
            for _ in range(2):
                connection.drain_events(timeout=30)

    assert seen == [({"n": 1}, False), ({"n": 1}, True)]


async def test_both_at_once_see_each_others_messages(broker: Embedded) -> None:
    def send() -> None:
        with kombu.Connection(broker.url.replace("amqp://", "pyamqp://")) as connection:
            simple = connection.SimpleQueue("both")
            for number in range(100):
                simple.put({"n": number})
            simple.close()

    def receive() -> list[bytes]:
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            channel, bodies = connection.channel(), list[bytes]()
            deliveries = channel.consume("both", inactivity_timeout=30)
            while len(bodies) < 100:
                method, _, body = next(deliveries)
                channel.basic_ack(method.delivery_tag)
                bodies.append(body)
        return bodies

    await asyncio.to_thread(send)
    bodies = await asyncio.to_thread(receive)

    assert bodies == [b'{"n": %d}' % number for number in range(100)]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("accident", ["its connection is closed", "the broker is restarted"])
async def test_aio_pika_comes_back_with_its_queues_bindings_and_consumers(version: str, accident: str) -> None:
    got, is_back = asyncio.Queue[str](), asyncio.Event()

    def come_back(*_: object) -> None:
        is_back.set()

    async def receive(message: AbstractIncomingMessage) -> None:
        async with message.process():
            got.put_nowait(f"{message.consumer_tag}: {message.body.decode()}")

    async with (
        Broker(profile=version) as broker,
        await aio_pika.connect_robust(broker.url, reconnect_interval=0.1) as connection,
    ):
        connection.reconnect_callbacks.add(come_back)
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=10)
        exchange = await channel.declare_exchange("news", aio_pika.ExchangeType.TOPIC)
        for name, keys in (("mine", "a.#"), ("shared", "b.*")):
            queue = await channel.declare_queue(name, exclusive=name == "mine")
            await queue.bind(exchange, keys)
            await queue.consume(receive, consumer_tag=f"from {name}")

        await (broker.restart() if "restarted" in accident else broker.drop_connections())

        async with asyncio.timeout(PATIENCE):
            await is_back.wait()
            for key in ("a.b.c", "b.c"):
                await exchange.publish(aio_pika.Message(key.encode()), key)
            assert {await got.get(), await got.get()} == {"from mine: a.b.c", "from shared: b.c"}


def test_the_command_line_tools_declare_publish_consume_get_and_delete(broker: Embedded) -> None:
    assert tool(broker, "declare-queue", "--queue=tools", "--durable") == "tools\n"
    publish = ("publish", "--routing-key=tools", "--persistent", "--content-type=text/plain")
    tool(broker, *publish, "--header=number: 1", "--body=first")
    tool(broker, *publish, "--line-buffered", said="second\nthird\nfourth\n")

    assert tool(broker, "get", "--queue=tools") == "first"
    assert tool(broker, "consume", "--queue=tools", "--count=2", "--prefetch-count=1", "cat") == "second\nthird\n"
    assert tool(broker, "delete-queue", "--queue=tools") == "1\n"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        tool(broker, "get", "--queue=tools")
    assert "NOT_FOUND - no queue 'tools' in vhost '/'" in caught.value.stderr


def test_the_command_line_tools_bind_a_queue_of_their_own(broker: Embedded) -> None:
    command = [
        program("consume"),
        f"--url={broker.url}",
        "--exchange=amq.topic",
        "--routing-key=a.#",
        "--count=1",
        "cat",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as consumer:
        try:
            assert consumer.stderr is not None
            assert "Server provided queue name: amq.gen-" in consumer.stderr.readline()
            for _ in range(1000):  # the queue is named before it is bound
                tool(broker, "publish", "--exchange=amq.topic", "--routing-key=a.b", "--body=hello")
                if consumer.poll() is not None:
                    break
            output, _ = consumer.communicate(timeout=PATIENCE)
        finally:
            consumer.kill()

    assert (output, consumer.returncode) == ("hello", 0)


def tool(broker: Embedded, name: str, *arguments: str, said: str = "") -> str:
    """What one of librabbitmq's tools prints."""
    command = [program(name), f"--url={broker.url}", *arguments]
    return subprocess.run(command, input=said, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout


def program(name: str) -> str:
    found = shutil.which(f"amqp-{name}")
    assert found, (
        f"amqp-{name} is not on PATH. It is one of librabbitmq's tools: on Debian and Ubuntu `sudo make rabbitmq` "
        "installs them (the package amqp-tools), on Fedora `sudo dnf install librabbitmq-tools`, on macOS "
        "`brew install rabbitmq-c`."
    )
    return found
