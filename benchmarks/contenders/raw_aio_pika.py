"""aio-pika alone: no kinds, no validation, an ack for each message."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aio_pika
import orjson
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from benchmarks.contenders.pace import Took, at_once, in_processes, one_by_one, sent_at
from benchmarks.contenders.place import QUEUE, TEXT, URL, WAIT, Kind, compute, own_command
from benchmarks.tally import ran


@asynccontextmanager
async def a_channel() -> AsyncGenerator[AbstractChannel]:
    connection = await aio_pika.connect(URL)
    async with connection:
        yield await connection.channel()


def prepare() -> None:
    async def declare() -> None:
        async with a_channel() as channel:
            await channel.declare_queue(QUEUE, durable=True)

    asyncio.run(declare())


def enqueue(kind: Kind, count: int) -> Took:
    async def send() -> Took:
        async with a_channel() as channel:
            return await at_once(lambda each: _publish(channel, kind, each), count)

    return asyncio.run(send())


def enqueue_each(kind: Kind, count: int, rate: float) -> Took:
    async def send() -> Took:
        async with a_channel() as channel:
            return await one_by_one(lambda each: _publish(channel, kind, each), count, rate)

    return asyncio.run(send())


async def _publish(channel: AbstractChannel, kind: Kind, number: int) -> None:
    body = orjson.dumps({"kind": kind, "number": number, "text": TEXT, "at": sent_at(kind)})
    message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
    await channel.default_exchange.publish(message, QUEUE)


def command(kind: Kind, processes: int, concurrency: int) -> list[str]:
    return own_command(__name__, processes, concurrency)


def work(processes: int, concurrency: int) -> None:
    in_processes(processes, _work, concurrency)


def _work(concurrency: int) -> None:
    async def take(message: AbstractIncomingMessage) -> None:
        given = orjson.loads(message.body)
        if given["kind"] == "waiting":
            await asyncio.sleep(WAIT)
        elif given["kind"] == "computing":
            compute()
        ran(given["at"])
        await message.ack()

    async def consume() -> None:
        async with a_channel() as channel:
            await channel.set_qos(prefetch_count=concurrency)
            queue = await channel.declare_queue(QUEUE, durable=True)
            await queue.consume(take)
            await asyncio.Event().wait()

    asyncio.run(consume())
