"""How fast the embedded broker is, and how much memory its messages take.

    .venv/bin/python -m benchmarks.embedded_broker

`raw` is the broker alone: clients that do next to nothing publish, and consume at the same time. `jobs` is the
whole way: jobs enqueued with `enqueue_many` in one process, through the broker in a second, and run by a worker in
a third. `queued` fills a queue and empties it. Beside each speed stands the CPU time that a message cost each
process, which other programs on the machine change much less.
"""

import argparse
import asyncio
import multiprocessing
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from typing import Any

import uvloop

from amqpjobs import App, Job, Worker
from amqpjobs.settings import load_settings
from tests.support.embedded import Embedded
from tests.support.light import Light

#: What amqpjobs sends with a job.
PROPERTIES: dict[str, Any] = {
    "content_type": "application/json",
    "headers": {
        "amqpjobs-id": "01a2067f-4f12-7093-8144-5fb346377178",
        "amqpjobs-attempt": 1,
        "amqpjobs-version": 1,
    },
    "delivery_mode": 2,
    "correlation_id": "01a2067f-4f12-7093-8144-5fb346377178",
    "message_id": "01a2067f-4f13-70e1-9427-a2cc68062a64",
    "message_type": "benchmark.nothing",
    "app_id": "benchmark",
}
BODY = b"x" * 100
QUEUE = "benchmark"
#: Jobs handed to one enqueue_many.
AT_ONCE = 5_000
#: Seconds for all processes to start.
PATIENCE = 120.0
_MIB = 1024 * 1024

#: What one process does: with the broker's URL, a number of messages, and what to call once it is connected.
Role = Callable[[str, int, Callable[[], object]], None]
spawn = multiprocessing.get_context("spawn")


class Nothing(Job[None], kind="benchmark.nothing"):
    """About as large as a job usually is."""

    number: int
    text: str = "x" * 70


def main() -> None:
    options = parsed()
    for part in options.part or PARTS:
        with Embedded(options.profile) as broker:
            PARTS[part](broker, options.messages or DEFAULTS[part])


def parsed() -> argparse.Namespace:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--part", action="append", choices=[*PARTS], help="only this one, or these (default: all)")
    words.add_argument("--messages", type=int, help="in each part (raw 100,000, jobs 50,000, queued 1,000,000)")
    words.add_argument("--profile", default="4.0", help="the RabbitMQ version to behave like (default: %(default)s)")
    return words.parse_args()


# -- raw ---------------------------------------------------------------------------------------------------


def measure_raw(broker: Embedded, count: int) -> None:
    declare(broker)
    measure(broker, "raw: published, confirmed, delivered and acked", count, publish_light, consume_light)


def publish_light(url: str, count: int, start: Callable[[], object]) -> None:
    with Light(url) as client:
        start()
        client.publish(QUEUE, BODY, count, properties=PROPERTIES)


def consume_light(url: str, count: int, start: Callable[[], object]) -> None:
    with Light(url) as client:
        start()
        client.consume(QUEUE, count)


def declare(broker: Embedded) -> None:
    with Light(broker.url) as client:
        client.declare(QUEUE)


# -- jobs --------------------------------------------------------------------------------------------------


def measure_jobs(broker: Embedded, count: int) -> None:
    measure(broker, "jobs: enqueued, confirmed, run and acked", count, enqueue, work)


def enqueue(url: str, count: int, start: Callable[[], object]) -> None:
    uvloop.run(enqueue_all(url, count, start))


def work(url: str, count: int, start: Callable[[], object]) -> None:
    uvloop.run(work_off(url, count, start))


async def enqueue_all(url: str, count: int, start: Callable[[], object]) -> None:
    async with App("producer", settings=load_settings(url=url)) as app:
        await asyncio.to_thread(start)
        for at in range(0, count, AT_ONCE):
            jobs = [Nothing(number=number) for number in range(at, min(at + AT_ONCE, count))]
            await app.enqueue_many(jobs, deadline=300)


async def work_off(url: str, count: int, start: Callable[[], object]) -> None:
    app = App("benchmark", settings=load_settings(url=url))
    done, left = asyncio.Event(), count

    async def handle(job: Nothing) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    app.handler(Nothing)(handle)
    async with Worker(app, concurrency=100):
        await asyncio.to_thread(start)
        await done.wait()


# -- queued ------------------------------------------------------------------------------------------------


def ready() -> None:
    """There is nobody to wait for."""


def measure_queued(broker: Embedded, count: int) -> None:
    declare(broker)
    before = broker.memory
    with measured(broker, "queued: published and confirmed", count):
        publish_light(broker.url, count, ready)
    full = broker.memory
    say(f"  {(full - before) / _MIB:.0f} MiB for {count:,} messages, {(full - before) / count:.0f} bytes each")
    with measured(broker, "queued: delivered and acked", count):
        consume_light(broker.url, count, ready)
    say(f"  {(broker.memory - before) / _MIB:.0f} MiB are left when they are gone")


# -- figures -----------------------------------------------------------------------------------------------


def measure(broker: Embedded, what: str, count: int, *roles: Role) -> None:
    """Have each role in a process of its own; the time begins when all of them are connected."""
    start, spent = spawn.Barrier(len(roles) + 1), spawn.SimpleQueue()
    processes = [spawn.Process(target=play, args=(role, broker.url, count, start, spent)) for role in roles]
    for process in processes:
        process.start()
    start.wait(PATIENCE)
    with measured(broker, what, count):
        for process in processes:
            process.join()
    for name, seconds in sorted(spent.get() for _ in roles):
        tell_cpu(name, seconds, count)


def play(role: Role, url: str, count: int, start: Barrier, spent: "SimpleQueue[tuple[str, float]]") -> None:
    """In a process of its own."""
    begun = 0.0

    def begin() -> None:
        nonlocal begun
        start.wait(PATIENCE)
        begun = time.process_time()

    role(url, count, begin)
    spent.put((role.__name__, time.process_time() - begun))


@contextmanager
def measured(broker: Embedded, what: str, count: int) -> Generator[None]:
    cpu, started = broker.cpu, time.perf_counter()
    yield
    passed, spent = time.perf_counter() - started, broker.cpu - cpu
    say(f"{what}: {count / passed:,.0f} a second")
    tell_cpu("broker", spent, count)


def tell_cpu(name: str, seconds: float, count: int) -> None:
    say(f"  {name:16}{seconds / count * 1e6:5.0f} us of CPU each")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


PARTS = {"raw": measure_raw, "jobs": measure_jobs, "queued": measure_queued}
DEFAULTS = {"raw": 100_000, "jobs": 50_000, "queued": 1_000_000}

if __name__ == "__main__":
    main()
