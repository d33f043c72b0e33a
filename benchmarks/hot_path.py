"""What a job costs its producer and its worker, in CPU time of their processes, on a RabbitMQ of the machine's own.

    .venv/bin/python -m benchmarks.hot_path

`enqueue` is a batch of typed jobs, each validated, written and confirmed; `work` is what runs them: delivered, read,
validated, run by a handler that does nothing, acked. `aiormq` is the client library by itself with the same
messages, which neither makes nor reads a job. All take turns in every round, so that whatever else the machine does
meets them alike; what is told is the median of the rounds.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from typing import Any, cast

import aiormq
import uvloop
from aiormq.abc import DeliveredMessage

from amqpjobs import App, Job, Worker
from amqpjobs.settings import load_settings
from benchmarks.embedded_broker import PROPERTIES
from tests.support.rabbitmq import Node

#: Deliveries a consumer may hold, and jobs that run at once.
AT_ONCE = 100
#: Publishes of the client library that are under way at once, as many as of `enqueue_many`.
WINDOW = 200
#: A job as `Nothing` writes it.
BODY = b'{"number":1234,"text":"' + b"x" * 70 + b'"}'

#: Spends time on so many messages at a broker, and tells `spent` what on.
Way = Callable[[str, int, "Spent"], Awaitable[None]]


class Nothing(Job[None], kind="benchmark.nothing"):
    """About as large as a job usually is."""

    number: int
    text: str = "x" * 70


class Spent:
    """The CPU time of this process, by what it was spent on."""

    def __init__(self) -> None:
        self.each: dict[str, list[float]] = {}

    @contextmanager
    def on(self, what: str, messages: int) -> Generator[None]:
        before = time.process_time()
        yield
        self.each.setdefault(what, []).append((time.process_time() - before) / messages * 1e6)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--messages", type=int, default=20_000, help="in each round (default: %(default)s)")
    words.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    options = words.parse_args()
    spent = Spent()
    with Node() as node:
        say(f"RabbitMQ {node.version}, {options.rounds} rounds of {options.messages:,} messages")
        uvloop.run(measure_all(node.url, options.messages, options.rounds, spent))
    for what, each in spent.each.items():
        say(f"{what:42}{statistics.median(each):6.1f} us  ({min(each):.1f} to {max(each):.1f})")


async def measure_all(url: str, messages: int, rounds: int, spent: Spent) -> None:
    for way in WAYS:  # what is only done once
        await way(url, AT_ONCE, Spent())
    for _ in range(rounds):
        for way in WAYS:
            await way(url, messages, spent)


# -- jobs --------------------------------------------------------------------------------------------------


async def measure_jobs(url: str, messages: int, spent: Spent) -> None:
    await measure_app("amqpjobs", url, messages, spent)


async def measure_slow_jobs(url: str, messages: int, spent: Spent) -> None:
    await measure_app("amqpjobs without its fast lane", url, messages, spent, fast_lane=False)


async def measure_app(name: str, url: str, messages: int, spent: Spent, **settings: Any) -> None:
    app = App("benchmark", settings=load_settings(url=url, **settings))
    done, left = asyncio.Event(), messages

    async def handle(job: Nothing) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    app.handler(Nothing)(handle)
    async with Worker(app, concurrency=1):  # the queue is there
        pass
    async with app:
        await app.enqueue(Nothing(number=0))
        with spent.on(f"{name}: enqueue", messages):
            await app.enqueue_many((Nothing(number=number) for number in range(messages - 1)), deadline=300)
    with spent.on(f"{name}: work", messages):
        async with Worker(app, concurrency=AT_ONCE):
            await done.wait()


# -- the client library by itself --------------------------------------------------------------------------


async def measure_library(url: str, messages: int, spent: Spent) -> None:
    queue = "benchmark.library"
    async with channel_on(url) as channel:
        await channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
        with spent.on("aiormq: publish", messages):
            await publish(channel, queue, messages)
    async with channel_on(url) as channel:
        with spent.on("aiormq: consume", messages):
            await consume(channel, queue, messages)


@asynccontextmanager
async def channel_on(url: str) -> AsyncGenerator[Any]:
    connection = await aiormq.connect(url)
    try:
        yield await connection.channel(frame_buffer_size=256)
    finally:
        await connection.close()


async def publish(channel: Any, queue: str, messages: int) -> None:
    numbers = iter(range(messages))

    async def lane() -> None:
        for number in numbers:
            # Returns are told apart by the id.
            given: dict[str, Any] = {**PROPERTIES, "message_id": str(number)}
            properties = aiormq.spec.Basic.Properties(**given)
            await channel.basic_publish(BODY, routing_key=queue, properties=properties, mandatory=True, wait=False)

    await asyncio.gather(*(lane() for _ in range(WINDOW)))


async def consume(channel: Any, queue: str, messages: int) -> None:
    done, numbers = asyncio.Event(), count(1)

    async def received(message: DeliveredMessage) -> None:
        tag = cast("aiormq.spec.Basic.Deliver", message.delivery).delivery_tag
        is_last = next(numbers) == messages
        await channel.basic_ack(tag, wait=is_last)
        if is_last:
            done.set()

    await channel.basic_qos(prefetch_count=AT_ONCE)
    await channel.basic_consume(queue, received)
    await done.wait()


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


WAYS: tuple[Way, ...] = (measure_jobs, measure_slow_jobs, measure_library)

if __name__ == "__main__":
    main()
