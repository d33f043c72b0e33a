"""The project's own broker with clients that nobody here wrote: pika, which blocks, and kombu on py-amqp."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from importlib import import_module
from typing import Any

import pytest

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


@pytest.fixture(scope="module", params=["3.10", "4.0", "4.3"])
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
