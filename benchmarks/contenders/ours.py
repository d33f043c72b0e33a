"""amqpjobs."""

import asyncio
import os
import sys

from amqpjobs import App, Job, Worker
from amqpjobs.settings import load_settings
from benchmarks.contenders.pace import Took, Watch, one_by_one, sent_at
from benchmarks.contenders.place import QUEUE, TEXT, URL, WAIT, Kind, compute
from benchmarks.tally import ran

#: Jobs handed to one enqueue_many: of large ones not so many that they fill the memory.
AT_ONCE = max(1, min(5_000, 50_000_000 // len(TEXT)))
#: What `benchmarks.growth` varies: kinds that jobs which do nothing are spread over, and seconds until all are due.
SPREAD = int(os.environ.get("BENCHMARK_KINDS", "1"))
DELAY = float(os.environ.get("BENCHMARK_DELAY", "0")) or None
app = App[None]("benchmark", settings=load_settings(url=URL or "amqp://localhost", namespace=QUEUE))


class Nothing(Job[None], kind="nothing"):
    number: int
    text: str = TEXT
    sent_at: float = 0.0


class Waiting(Nothing, kind="waiting"):
    """Waits as long as all others' do."""


class Computing(Nothing, kind="computing"):
    """Computes as much as all others' do."""


class Timed(Nothing, kind="timed"):
    """Tells how late it began."""


KINDS: dict[Kind, type[Nothing]] = {
    "nothing": Nothing,
    "waiting": Waiting,
    "computing": Computing,
    "timed": Timed,
}


async def do_nothing(job: Nothing) -> None:
    ran()


def all_that_do_nothing() -> list[type[Nothing]]:
    classes = [Nothing]
    for number in range(1, SPREAD):

        class Another(Nothing, kind=f"nothing-{number}"):
            pass

        classes.append(Another)
    for each in classes:
        app.handler(each)(do_nothing)
    return classes


NOTHINGS = all_that_do_nothing()


@app.handler(Waiting)
async def wait(job: Waiting) -> None:
    await asyncio.sleep(WAIT)
    ran()


@app.handler(Computing)
async def work_out(job: Computing) -> None:
    compute()
    ran()


@app.handler(Timed)
async def tell(job: Timed) -> None:
    ran(job.sent_at)


def prepare() -> None:
    async def declare() -> None:
        async with Worker(app):
            pass

    asyncio.run(declare())


def make(kind: Kind, number: int) -> Nothing:
    of = NOTHINGS[number % SPREAD] if kind == "nothing" else KINDS[kind]
    return of(number=number, sent_at=sent_at(kind))


def enqueue(kind: Kind, count: int) -> Took:
    async def send() -> Took:
        async with app:
            await app.enqueue(KINDS[kind](number=0))
            watch = Watch()
            for first in range(0, count, AT_ONCE):
                numbers = range(first, min(count, first + AT_ONCE))
                await app.enqueue_many((make(kind, each) for each in numbers), delay=DELAY)
            return watch.took(count)

    return asyncio.run(send())


def enqueue_each(kind: Kind, count: int, rate: float) -> Took:
    async def send() -> Took:
        async with app:
            return await one_by_one(lambda each: app.enqueue(make(kind, each)), count, rate)

    return asyncio.run(send())


def command(kind: Kind, processes: int, concurrency: int) -> list[str]:
    several = ["--processes", str(processes)] if processes > 1 else []
    run = [sys.executable, "-m", "amqpjobs", "run", f"{__name__}:app", "--concurrency", str(concurrency), *several]
    return ["env", "AMQPJOBS_LOG_LEVEL=WARNING", *run]  # as for all others: no line for each job
