"""An app with jobs that kill the process they run in, and innocent ones; each run is noted in a file.

Workers and their children import it, so what it needs to know comes from the environment.
"""

import asyncio
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from amqpjobs import App, Job, JobContext, Queue, current_context, fixed
from amqpjobs.middleware import RunNext
from amqpjobs.outcome import Outcome
from tests.support.broker import eventually

OPTIONS = "KILLER_APP_OPTIONS"
options: dict[str, str] = json.loads(os.environ[OPTIONS])
folder = Path(options["folder"])
name = options["name"]


class Innocent(Job[None], kind=f"{name}.innocent"):
    name: str
    #: Seconds of work, and a file to wait for after it.
    seconds: float = 0.0
    mark: str = ""


class Killer(Job[None], kind=f"{name}.killer"):
    name: str
    how: str = "kill"
    #: A file that makes it harmless.
    unless: str = "no such file"


class KillerInThread(Killer, kind=f"{name}.thread"):
    pass


def note(word: str, job: str) -> None:
    """One line in the ledger; whole, also when many processes write."""
    context = current_context()
    attempt = context.attempt if context else 0
    with (folder / "ledger").open("a") as ledger:
        ledger.write(f"{word} {job} {attempt} {os.getpid()}\n")


def is_child() -> bool:
    """Whether this is a child of a worker: those are told their work by a pipe, and not by a command line."""
    return "amqpjobs.worker.child" in sys.modules


@asynccontextmanager
async def lifespan() -> AsyncGenerator[None]:
    if is_child() and (folder / "broken").exists():
        raise RuntimeError("the pool is empty")
    yield


app = App(name, lifespan=lifespan, retry=fixed(0.1), queues=[Queue(name, prefetch=int(options["prefetch"]))])


@app.run_middleware
async def around(context: JobContext[None], proceed: RunNext) -> Outcome:
    note("around", json.loads(context.envelope.payload)["name"])
    return await proceed(context)


DEATHS: dict[str, Callable[[], object]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
    "block": lambda: time.sleep(600),
}


def die(job: Killer) -> None:
    note("run", job.name)
    if not (folder / job.unless).exists():
        DEATHS[job.how]()
    note("done", job.name)


@app.handler(Innocent)
async def innocent(job: Innocent, ctx: JobContext[None]) -> None:
    note("run", job.name)
    await asyncio.sleep(job.seconds)
    if job.mark:
        await eventually(lambda: asyncio.to_thread((folder / job.mark).exists), within=600)
    note("done", job.name)


@app.handler(Killer)
async def kill(job: Killer) -> None:
    die(job)


@app.handler(KillerInThread)
def kill_from_thread(job: KillerInThread) -> None:
    die(job)
