"""An app with a job of each sort, for a soak: those that end well, late, at a second try, or as dead letters.

Workers, their children and producers import it, so what it needs to know comes from the environment. Which
sort the next job is, chance says, from a seed.
"""

import asyncio
import json
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

from amqpjobs import App, Job, JobContext, Queue, Snooze, fixed
from amqpjobs.events import JobEnded
from amqpjobs.handle import EnqueueOptions
from amqpjobs.outcome import Completed

OPTIONS = "SOAK_APP_OPTIONS"
options: dict[str, str] = json.loads(os.environ[OPTIONS])
folder = Path(options["folder"])
name = options["name"]
SLOTS = 10
#: Where sync jobs meet, and how many seconds they wait for the others there.
meeting, PATIENCE = threading.Barrier(SLOTS), 20.0


class Plain(Job[None], kind=f"{name}.plain"):
    text: str = "x" * 1_000


class InThread(Job[None], kind=f"{name}.thread"):
    meets: bool = False


class InProcess(Job[None], kind=f"{name}.process"):
    pass


class FailsOnce(Job[None], kind=f"{name}.once"):
    pass


class Snoozes(Job[None], kind=f"{name}.snoozes"):
    pass


class Dies(Job[None], kind=f"{name}.dies"):
    pass


app = App(name, retry=fixed(0.1), queues=[Queue(name, prefetch=2 * SLOTS)])


@app.handler(Plain)
async def plain(job: Plain) -> None:
    await asyncio.sleep(0.01)


@app.handler(InThread)
def in_thread(job: InThread) -> None:
    if not job.meets:
        return
    try:
        meeting.wait(PATIENCE)
    except threading.BrokenBarrierError:  # one of them came twice, or not in time
        meeting.reset()


@app.handler(InProcess, run_in="process")
def in_process(job: InProcess) -> None:
    pass


@app.handler(FailsOnce)
async def fail_once(job: FailsOnce, ctx: JobContext[None]) -> None:
    if ctx.attempt == 1:
        raise ValueError("once")


@app.handler(Snoozes)
async def snooze(job: Snoozes, ctx: JobContext[None]) -> None:
    if ctx.envelope.first_at is None:
        raise Snooze(0.2, "not yet")


@app.handler(Dies, max_attempts=2)
async def die(job: Dies) -> None:
    raise LookupError("as always")


#: How jobs are made, with what they are enqueued with, and how many of a hundred.
SORTS: list[tuple[Callable[[], Job[None]], EnqueueOptions, int]] = [
    (Plain, {}, 50),
    (Plain, {"delay": 1.0}, 15),
    (InThread, {}, 10),
    (FailsOnce, {}, 8),
    (Snoozes, {}, 7),
    (Dies, {}, 5),
    (InProcess, {}, 5),
]


def one_of_each() -> list[tuple[Job[None], EnqueueOptions]]:
    return [(make(), given) for make, given, _ in SORTS]


def meeting_ones() -> list[Job[None]]:
    """So many at once that all threads are needed that there may ever be."""
    return [InThread(meets=True) for _ in range(SLOTS)]


def chosen(chance: random.Random) -> tuple[Job[None], EnqueueOptions]:
    """The next job, and with what it is enqueued."""
    make, given, _ = chance.choices(SORTS, weights=[weight for _, _, weight in SORTS])[0]
    return make(), given


def note(file: str, line: str) -> None:
    """One line in a ledger; whole, also when many threads write."""
    with (folder / file).open("a") as ledger:
        ledger.write(f"{line}\n")


def note_end(event: JobEnded) -> None:
    """For a worker's ledger: what ended well. Dead letters are seen in the broker."""
    if isinstance(event.outcome, Completed):
        note("ended", event.envelope.job_id)
