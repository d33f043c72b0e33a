"""amqpjobs."""

import asyncio
import os
import sys

from amqpjobs import App, Job, Worker
from amqpjobs.settings import load_settings
from benchmarks.contenders.pace import Took, Watch, one_by_one, sent_at
from benchmarks.contenders.place import QUEUE, TEXT, URL, WAIT, Kind
from benchmarks.tally import ran

#: Jobs handed to one enqueue_many.
AT_ONCE = 5_000
app = App[None]("benchmark", settings=load_settings(url=URL or "amqp://localhost", namespace=QUEUE))


class Nothing(Job[None], kind="nothing"):
    number: int
    text: str = TEXT
    sent_at: float = 0.0


class Waiting(Nothing, kind="waiting"):
    """Waits as long as all others' do."""


class Timed(Nothing, kind="timed"):
    """Tells how late it began."""


KINDS: dict[Kind, type[Nothing]] = {"nothing": Nothing, "waiting": Waiting, "timed": Timed}


@app.handler(Nothing)
async def do_nothing(job: Nothing) -> None:
    ran()


@app.handler(Waiting)
async def wait(job: Waiting) -> None:
    await asyncio.sleep(WAIT)
    ran()


@app.handler(Timed)
async def tell(job: Timed) -> None:
    ran(job.sent_at)


def prepare() -> None:
    async def declare() -> None:
        async with Worker(app):
            pass

    asyncio.run(declare())


def enqueue(kind: Kind, count: int) -> Took:
    async def send() -> Took:
        async with app:
            await app.enqueue(KINDS[kind](number=0))
            watch = Watch()
            for first in range(0, count, AT_ONCE):
                await app.enqueue_many(KINDS[kind](number=each) for each in range(first, min(count, first + AT_ONCE)))
            return watch.took(count)

    return asyncio.run(send())


def enqueue_each(kind: Kind, count: int, rate: float) -> Took:
    async def send() -> Took:
        async with app:
            return await one_by_one(lambda n: app.enqueue(KINDS[kind](number=n, sent_at=sent_at(kind))), count, rate)

    return asyncio.run(send())


def work(kind: Kind, processes: int, concurrency: int) -> None:
    os.environ["AMQPJOBS_LOG_LEVEL"] = "WARNING"  # as for all others: no line for each job
    several = ["--processes", str(processes)] if processes > 1 else []
    command = [sys.executable, "-m", "amqpjobs", "run", f"{__name__}:app", "--concurrency", str(concurrency), *several]
    os.execv(command[0], command)
