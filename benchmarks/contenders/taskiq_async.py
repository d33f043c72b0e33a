"""taskiq with its broker on aio-pika."""

import asyncio
import os
import sys
from typing import Any

from taskiq_aio_pika import AioPikaBroker, Queue, QueueType

from benchmarks.contenders.pace import Took, at_once, one_by_one, sent_at
from benchmarks.contenders.place import QUEUE, TEXT, URL, WAIT, Kind, compute
from benchmarks.tally import ran

broker = AioPikaBroker(
    URL or "amqp://localhost",
    qos=int(os.environ.get("BENCHMARK_PREFETCH", "100")),
    task_queues=[Queue(name=QUEUE, type=QueueType.CLASSIC)],
    dead_letter_queue=Queue(name=f"{QUEUE}.dead", type=QueueType.CLASSIC),
)


@broker.task(task_name="nothing")
async def nothing(number: int, text: str = TEXT, at: float = 0.0) -> None:
    ran()


@broker.task(task_name="waiting")
async def waiting(number: int, text: str = TEXT, at: float = 0.0) -> None:
    await asyncio.sleep(WAIT)
    ran()


@broker.task(task_name="computing")
async def computing(number: int, text: str = TEXT, at: float = 0.0) -> None:
    compute()
    ran()


@broker.task(task_name="timed")
async def tell(number: int, text: str = TEXT, at: float = 0.0) -> None:
    ran(at)


TASKS: dict[Kind, Any] = {"nothing": nothing, "waiting": waiting, "computing": computing, "timed": tell}


def prepare() -> None:
    async def declare() -> None:
        await broker.startup()
        await broker.shutdown()

    asyncio.run(declare())


def enqueue(kind: Kind, count: int) -> Took:
    async def send() -> Took:
        await broker.startup()
        try:
            return await at_once(lambda each: TASKS[kind].kiq(each, TEXT, 0.0), count)
        finally:
            await broker.shutdown()

    return asyncio.run(send())


def enqueue_each(kind: Kind, count: int, rate: float) -> Took:
    async def send() -> Took:
        await broker.startup()
        try:
            return await one_by_one(lambda each: TASKS[kind].kiq(each, TEXT, sent_at(kind)), count, rate)
        finally:
            await broker.shutdown()

    return asyncio.run(send())


def command(kind: Kind, processes: int, concurrency: int) -> list[str]:
    at_most = ["--workers", str(processes), "--max-async-tasks", str(concurrency), "--ack-type", "when_executed"]
    run = [sys.executable, "-m", "taskiq", "worker", f"{__name__}:broker", *at_most, "--log-level", "WARNING"]
    return ["env", f"BENCHMARK_PREFETCH={concurrency}", *run]
