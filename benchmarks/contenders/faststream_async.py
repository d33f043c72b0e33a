"""FastStream with its broker on aio-pika."""

import asyncio
from typing import Any

from faststream import FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from pydantic import BaseModel

from benchmarks.contenders.pace import Took, at_once, in_processes, one_by_one, sent_at
from benchmarks.contenders.place import QUEUE, TEXT, URL, WAIT, Kind, compute, own_command
from benchmarks.tally import ran


class Order(BaseModel):
    kind: str
    number: int
    text: str = TEXT
    at: float = 0.0


queue = RabbitQueue(QUEUE, durable=True)


def prepare() -> None:
    async def declare() -> None:
        async with RabbitBroker(URL) as broker:
            await broker.declare_queue(queue)

    asyncio.run(declare())


def enqueue(kind: Kind, count: int) -> Took:
    async def send() -> Took:
        async with RabbitBroker(URL) as broker:
            return await at_once(lambda each: _publish(broker, kind, each), count)

    return asyncio.run(send())


def enqueue_each(kind: Kind, count: int, rate: float) -> Took:
    async def send() -> Took:
        async with RabbitBroker(URL) as broker:
            return await one_by_one(lambda each: _publish(broker, kind, each), count, rate)

    return asyncio.run(send())


async def _publish(broker: RabbitBroker, kind: Kind, number: int) -> Any:
    order = Order(kind=kind, number=number, at=sent_at(kind))
    return await broker.publish(order, queue, persist=True, mandatory=True)


def command(kind: Kind, processes: int, concurrency: int) -> list[str]:
    return own_command(__name__, processes, concurrency)


def work(processes: int, concurrency: int) -> None:
    """Its own command does the same with several processes."""
    in_processes(processes, _work, concurrency)


def _work(concurrency: int) -> None:
    broker = RabbitBroker(URL, logger=None)  # no line for each job

    @broker.subscriber(queue, channel=Channel(prefetch_count=concurrency))
    async def take(order: Order) -> None:
        if order.kind == "waiting":
            await asyncio.sleep(WAIT)
        elif order.kind == "computing":
            compute()
        ran(order.at)

    asyncio.run(FastStream(broker).run())
