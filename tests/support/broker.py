"""A plain AMQP client, as any other program would be: it publishes foreign messages and looks into queues.

It knows nothing of amqpjobs but what is on the wire. Header tables may be given as raw bytes, so that a
test can send what no client library would write.
"""

import asyncio
import struct
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypedDict, TypeVar, cast

import aiormq
from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage
from typing_extensions import Unpack

T = TypeVar("T")

#: How long a test waits for what should come at once. Generous: a busy machine is no failure.
PATIENCE = 30.0
#: Seconds, of the 250 ms that the broker waits for a queue: what took less is the queue's own answer.
UNANSWERED = 0.2
#: So many looks without an answer make an empty queue.
LOOKS = 20


class Foreign(TypedDict, total=False):
    """AMQP properties of a foreign message; `headers` are written by the client, `table` is raw."""

    kind: str
    raw_kind: bytes
    message_id: str
    correlation_id: str
    reply_to: str
    app_id: str
    content_type: str
    content_encoding: str
    priority: int
    headers: Mapping[str, object]
    table: bytes


@dataclass(frozen=True, slots=True)
class Letter:
    """A message taken out of a queue."""

    body: bytes
    headers: Mapping[str, object]
    kind: str | None
    message_id: str | None
    priority: int | None
    redelivered: bool
    content_type: str | None = field(default=None)

    def text(self, header: str) -> str:
        """A header that must be text."""
        value = self.headers[header]
        assert isinstance(value, str), f"{header} is {value!r}"
        return value

    def number(self, header: str) -> int:
        """A header that must be a whole number."""
        value = self.headers[header]
        assert isinstance(value, int), f"{header} is {value!r}"
        return value


class Broker:
    """One connection to a broker; each call has a channel of its own, since a refused one closes it."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection

    @asynccontextmanager
    async def channel(self) -> AsyncGenerator[AbstractChannel]:
        """A confirming channel that raises what is returned."""
        channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
        try:
            yield channel
        finally:
            if not channel.is_closed:
                await channel.close()

    async def publish(self, exchange: str, key: str, body: bytes = b"{}", **properties: Unpack[Foreign]) -> None:
        """Publish, confirmed and mandatory."""
        await self.publish_all(exchange, key, [(body, properties)])

    async def publish_all(self, exchange: str, key: str, messages: list[tuple[bytes, Foreign]]) -> None:
        """Publish in this order on one channel; all are confirmed."""
        async with self.channel() as channel:
            for body, properties in messages:
                await channel.basic_publish(
                    body,
                    exchange=exchange,
                    routing_key=key,
                    properties=_properties(properties),
                    mandatory=True,
                )

    async def take(self, queue: str, count: int, *, within: float = PATIENCE) -> list[Letter]:
        """Consume and ack the next `count` messages."""
        if not count:
            return []
        letters: list[Letter] = []
        complete = asyncio.Event()
        async with self.channel() as channel:

            async def received(message: DeliveredMessage) -> None:
                if len(letters) < count:
                    letters.append(_letter(message))
                    await channel.basic_ack(cast("Any", message.delivery).delivery_tag)
                if len(letters) >= count:
                    complete.set()

            await channel.basic_qos(prefetch_count=1)
            await channel.basic_consume(queue, received)
            try:
                async with asyncio.timeout(within):
                    await complete.wait()
            except TimeoutError:
                raise AssertionError(f"{queue} gave {len(letters)} of {count} messages") from None
        return letters

    async def reject(self, queue: str) -> None:
        """Take one message and reject it, so that the broker dead-letters it."""
        async with self.channel() as channel:
            message = await channel.basic_get(queue)
            await channel.basic_reject(cast("Any", message.delivery).delivery_tag, requeue=False)

    async def bounce(self, queue: str, times: int) -> None:
        """Take the first message and reject it back so often; all brokers count that like a crash."""
        async with self.channel() as channel:
            for _ in range(times):
                await channel.basic_reject(await _got(channel, queue), requeue=True)

    async def count(self, queue: str) -> int:
        """Messages that wait, those lent to consumers left out."""
        return (await self._counts(queue))[0]

    async def consumers(self, queue: str) -> int:
        """How many consume it."""
        return (await self._counts(queue))[1]

    async def _counts(self, queue: str) -> tuple[int, int]:
        """Messages and consumers. Of a quorum queue that does not answer it in time 3.10 says that it has neither."""
        async with self.channel() as channel:
            for _ in range(LOOKS):
                asked = time.monotonic()
                answer = await channel.queue_declare(queue, passive=True)
                counts = answer.message_count or 0, answer.consumer_count or 0
                if any(counts) or time.monotonic() - asked < UNANSWERED:
                    return counts
        return 0, 0

    async def await_count(self, queue: str, count: int, *, within: float = PATIENCE) -> None:
        """Until so many messages wait in the queue."""

        async def has_count() -> bool:
            return await self.count(queue) == count

        await eventually(has_count, within=within)

    async def exists(self, queue: str) -> bool:
        try:
            await self.count(queue)
        except aiormq.exceptions.ChannelNotFoundEntity:
            return False
        return True

    async def declare_queue(self, queue: str, arguments: Mapping[str, str | int | bool]) -> None:
        async with self.channel() as channel:
            await channel.queue_declare(queue, durable=True, arguments=cast("Any", dict(arguments)))

    async def declare_exchange(self, exchange: str, kind: str) -> None:
        async with self.channel() as channel:
            await channel.exchange_declare(exchange, exchange_type=kind, durable=True)

    async def bind(self, queue: str, exchange: str, key: str) -> None:
        async with self.channel() as channel:
            await channel.queue_bind(queue, exchange, key)

    async def purge(self, queue: str) -> None:
        async with self.channel() as channel:
            await channel.queue_purge(queue)

    async def delete_queue(self, queue: str) -> None:
        """Also when it is not there."""
        async with self.channel() as channel:
            await channel.queue_delete(queue)

    async def delete_exchange(self, exchange: str) -> None:
        """Also when it is not there."""
        async with self.channel() as channel:
            await channel.exchange_delete(exchange)


@asynccontextmanager
async def plain_client(url: str) -> AsyncGenerator[Broker]:
    """A `Broker` on a connection of its own."""
    connection = await aiormq.connect(url)
    try:
        yield Broker(connection)
    finally:
        await connection.close()


async def eventually(condition: Callable[[], Awaitable[bool]], *, within: float = PATIENCE) -> None:
    """Poll until the condition holds: for what the broker tells nobody by itself."""
    deadline = time.monotonic() + within
    while not await condition():
        assert time.monotonic() < deadline, f"It did not become true within {within:g} s."
        await asyncio.sleep(0.02)


async def _got(channel: AbstractChannel, queue: str) -> int:
    """The delivery tag of the next message, as soon as there is one."""
    while True:
        found = (await channel.basic_get(queue)).delivery
        if isinstance(found, aiormq.spec.Basic.GetOk):
            return found.delivery_tag or 0


def table(*fields: bytes) -> bytes:
    """A raw header table."""
    return counted(b"".join(fields))


def item(name: bytes | str, kind: bytes, value: bytes) -> bytes:
    """One raw field: its name, its type's letter, its value as it is on the wire."""
    raw = name.encode() if isinstance(name, str) else name
    return bytes([len(raw)]) + raw + kind + value


def counted(raw: bytes) -> bytes:
    """Bytes with their length before them, as long strings, arrays and tables have it."""
    return struct.pack(">I", len(raw)) + raw


class _Raw(aiormq.spec.Basic.Properties):
    """Properties of which some are sent just as they are given."""

    raw: Mapping[str, bytes]

    def encode_property(self, name: str, value: Any) -> bytes:
        return self.raw.get(name) or super().encode_property(name, value)


def _properties(given: Foreign) -> aiormq.spec.Basic.Properties:
    raw = dict[str, bytes]()
    if (headers := given.get("table")) is not None:
        raw["headers"] = headers
    if (kind := given.get("raw_kind")) is not None:
        raw["message_type"] = bytes([len(kind)]) + kind
    made = _Raw(
        headers=cast("Any", {"raw": True} if "headers" in raw else given.get("headers")),
        message_type="raw" if "message_type" in raw else given.get("kind"),
        message_id=given.get("message_id"),
        correlation_id=given.get("correlation_id"),
        reply_to=given.get("reply_to"),
        app_id=given.get("app_id"),
        content_type=given.get("content_type"),
        content_encoding=given.get("content_encoding"),
        priority=given.get("priority"),
        delivery_mode=2,
    )
    made.raw = raw
    return made


def _letter(message: DeliveredMessage) -> Letter:
    properties = message.header.properties
    return Letter(
        body=message.body,
        headers=cast("Mapping[str, object]", properties.headers or {}),
        kind=properties.message_type,
        message_id=properties.message_id,
        priority=properties.priority,
        redelivered=bool(cast("Any", message.delivery).redelivered),
        content_type=properties.content_type,
    )
