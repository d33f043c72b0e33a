"""aiormq alone, on which aio-pika stands: no kinds, no validation, an ack for each message."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aiormq
import orjson
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.commands import Basic

from benchmarks.contenders.pace import Took, at_once, in_processes, one_by_one, sent_at
from benchmarks.contenders.place import QUEUE, TEXT, URL, WAIT, Kind, compute, own_command
from benchmarks.tally import ran


@asynccontextmanager
async def a_channel() -> AsyncGenerator[AbstractChannel]:
    connection = await aiormq.connect(URL)
    try:
        yield await connection.channel()
    finally:
        await connection.close()


def prepare() -> None:
    async def declare() -> None:
        async with a_channel() as channel:
            await channel.queue_declare(QUEUE, durable=True)

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
    await channel.basic_publish(body, routing_key=QUEUE, properties=Basic.Properties(delivery_mode=2))


def command(kind: Kind, processes: int, concurrency: int) -> list[str]:
    return own_command(__name__, processes, concurrency)


def work(processes: int, concurrency: int) -> None:
    in_processes(processes, _work, concurrency)


def _work(concurrency: int) -> None:
    async def take(message: DeliveredMessage) -> None:
        given = orjson.loads(message.body)
        if given["kind"] == "waiting":
            await asyncio.sleep(WAIT)
        elif given["kind"] == "computing":
            compute()
        ran(given["at"])
        await message.channel.basic_ack(message.delivery_tag or 0)

    async def consume() -> None:
        async with a_channel() as channel:
            await channel.basic_qos(prefetch_count=concurrency)
            await channel.queue_declare(QUEUE, durable=True)
            await channel.basic_consume(QUEUE, take)
            await asyncio.Event().wait()

    asyncio.run(consume())
