"""How late the ticks of many schedules are, and what they cost a beat.

    .venv/bin/python -m benchmarks.beats

`spread` are 10,000 schedules that are each due once a minute, one after the other; `together`, all in the same
second, which is how crons are written. The broker is a RabbitMQ node, the one that comes first on PATH; a queue is
there for the jobs. `failover` is the time from a SIGKILL to the process of the leader until another beat leads.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import time
from datetime import UTC, datetime, timedelta

import psutil

from amqpjobs import App, Beat, Job, Worker, every
from amqpjobs.events import BeatLeading, TickPublished
from amqpjobs.settings import load_settings
from benchmarks.embedded_broker import say
from tests.support.rabbitmq import Node

#: Seconds between the ticks of one schedule.
INTERVAL = 60
#: Ticks of the first seconds of a term are late because the schedules were taken up; they are told apart.
WARM_UP = 5.0
#: Seconds for what has to happen at all.
PATIENCE = 120.0
_MIB = 1024 * 1024

spawn = multiprocessing.get_context("spawn")


class Nothing(Job[None], kind="benchmark.tick"):
    """A job without arguments."""


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--schedules", type=int, default=10_000, help="(default: %(default)s)")
    words.add_argument("--seconds", type=float, default=INTERVAL, help="to measure `spread` (default: %(default)s)")
    given = words.parse_args()
    with Node() as node:
        asyncio.run(measure(node.url, given.schedules, given.seconds))


async def measure(url: str, count: int, seconds: float) -> None:
    async with Worker(taker(url)):
        pass  # declares the queue
    await spread(url, count, seconds)
    await together(url, count)
    await failover(url, count)


def taker(url: str) -> App[None]:
    app = App[None]("taker", settings=load_settings(url=url))

    @app.handler(Nothing)
    async def take(job: Nothing) -> None: ...

    return app


def beater(name: str, url: str, instants: list[datetime]) -> App[None]:
    app = App[None](name, settings=load_settings(url=url))
    for number, instant in enumerate(instants):
        app.schedule(every(INTERVAL, start=instant), job=Nothing(), name=f"schedule-{number}")
    return app


async def spread(url: str, count: int, seconds: float) -> None:
    process = psutil.Process()
    memory = process.memory_info().rss
    app, late = beater("spread", url, evenly(count)), list[float]()
    leading = asyncio.Event()
    app.on(BeatLeading)(lambda _: leading.set())

    began = time.monotonic()
    async with Beat(app):
        await asyncio.wait_for(leading.wait(), PATIENCE)
        say(f"spread: {count:,} schedules, leading after {time.monotonic() - began:.2f} s")
        await asyncio.sleep(WARM_UP)
        before = process.cpu_times()
        app.on(TickPublished)(lambda tick: late.append(tick.late))
        await asyncio.sleep(seconds)
        after = process.cpu_times()
        tell(late)
        used = after.user + after.system - before.user - before.system
        say(f"  {1e6 * used / len(late):.0f} us of CPU a tick, {used / seconds:.3f} of a core")
        say(f"  {(process.memory_info().rss - memory) / _MIB:.0f} MiB for app and beat")


async def failover(url: str, count: int) -> None:
    """The leader is killed in the middle of its work."""
    leader = spawn.Process(target=_lead, args=(url, count), daemon=True)
    app, leading = beater("failover", url, evenly(count)), asyncio.Event()
    app.on(BeatLeading)(lambda _: leading.set())
    ticks = asyncio.Event()
    receiver = App("receiver", settings=load_settings(url=url))

    @receiver.handler(Nothing)
    async def receive(job: Nothing) -> None:
        ticks.set()

    leader.start()
    async with Worker(receiver):
        await asyncio.wait_for(ticks.wait(), PATIENCE)  # the leader leads
        async with Beat(app):
            leader.kill()
            killed = time.monotonic()
            await asyncio.wait_for(leading.wait(), PATIENCE)
            say(f"failover: {time.monotonic() - killed:.2f} s from SIGKILL until another leads {count:,} schedules")
    leader.join()


def _lead(url: str, count: int) -> None:
    async def lead() -> None:
        async with Beat(beater("failover", url, evenly(count))) as beat:
            await beat.run()

    asyncio.run(lead())


def evenly(count: int) -> list[datetime]:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return [start + timedelta(seconds=INTERVAL * number / count) for number in range(count)]


async def together(url: str, count: int) -> None:
    due = datetime.now(UTC) + timedelta(seconds=10 + count / 1000)
    app = beater("together", url, [due] * count)
    late, is_done = list[float](), asyncio.Event()

    def note(tick: TickPublished) -> None:
        late.append(tick.late)
        if len(late) == count:
            is_done.set()

    app.on(TickPublished)(note)
    async with Beat(app):
        await asyncio.wait_for(is_done.wait(), PATIENCE)
    say(f"together: {count:,} schedules due at one instant")
    tell(late)


def tell(late: list[float]) -> None:
    p99 = statistics.quantiles(late, n=100)[98]
    say(f"  {len(late):,} ticks late by p50 {_ms(statistics.median(late))}, p99 {_ms(p99)}, max {_ms(max(late))}")


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


if __name__ == "__main__":
    main()
