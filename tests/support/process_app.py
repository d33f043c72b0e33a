"""An app with handlers in processes that do what a test asks of them, and note it in a file.

It is imported anew in every child, so what it needs to know comes from the environment.
"""

import asyncio
import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, SecretStr

from amqpjobs import App, Cancel, Job, JobContext, Retry, Snooze, current_context, fixed
from amqpjobs.settings import load_settings
from tests.support.lines import whole_lines

OPTIONS = "PROCESS_APP_OPTIONS"
options: dict[str, str] = json.loads(os.environ[OPTIONS])
folder = Path(options["folder"])
name = options["name"]


class Done(BaseModel):
    pid: int
    runs_of_this_process: int
    text: str
    secret: SecretStr


class Do(Job[Done], kind=f"{name}.do", max_attempts=2, timeout=60):
    what: str
    mark: str = ""
    text: str = ""


class Follow(Job[Done | None], kind=f"{name}.follow"):
    text: str = ""


class Tick(Job[None], kind=f"{name}.tick"):
    pass


@dataclass
class State:
    runs: int = 0


def note(line: str) -> None:
    """One line in the ledger; whole, also when many processes write."""
    with (folder / "ledger").open("a") as ledger:
        ledger.write(f"{line} {os.getpid()}\n")


def noted() -> list[str]:
    return whole_lines(folder / "ledger")


@asynccontextmanager
async def lifespan() -> AsyncGenerator[State]:
    note("enter")
    if (folder / "broken").exists() and str(os.getpid()) != options["worker"]:
        raise RuntimeError("the pool is empty")
    yield State()
    note("leave")


app = App(name, lifespan=lifespan, retry=fixed(0.1), settings=load_settings(**json.loads(options["settings"])))


def wait_for(file: str) -> None:
    while not (folder / file).exists():
        time.sleep(0.01)


def eat_memory(job: Do) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**31, hard))
    try:
        bytearray(2**32)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def meet(job: Do) -> None:
    """Each shows that it runs, and computes until it sees the other."""
    mine, other = job.text.split()
    (folder / mine).touch()
    while not (folder / other).exists():
        sum(range(1000))


def fork(job: Do) -> None:
    if os.fork() == 0:
        note("forked")
        while True:
            signal.pause()
    while not any(line.startswith("forked") for line in noted()):
        time.sleep(0.01)


def fork_and_return(job: Do) -> None:
    os.fork()


def say(job: Do) -> None:
    sys.stdout.write("said to stdout\n")
    sys.stderr.write("said to stderr\n")
    context = current_context()
    assert context is not None
    context.log.info("said %s", "in the log", extra={"colour": "teal"})


def spin(job: Do) -> None:
    while True:
        pass


def raising(make: Callable[[], BaseException]) -> Callable[[Do], None]:
    def behave(job: Do) -> None:
        raise make()

    return behave


BEHAVIOURS: dict[str, Callable[[Do], object]] = {
    "nothing": lambda job: None,
    "segfault": lambda job: ctypes.string_at(0),
    "kill": lambda job: os.kill(os.getpid(), signal.SIGKILL),
    "_exit": lambda job: os._exit(7),
    "exit": lambda job: sys.exit(3),
    "eat memory": eat_memory,
    "spin": spin,
    "meet": meet,
    "fork": fork,
    "fork and return": fork_and_return,
    "say": say,
    "hold the lock": lambda job: ctypes.PyDLL(None).sleep(600),
    "wait": lambda job: wait_for(job.mark),
    "retry": raising(lambda: Retry("not yet", delay=0.2)),
    "snooze": raising(lambda: Snooze(0.2, "later")),
    "cancel": raising(lambda: Cancel("no need")),
    "hopeless": raising(lambda: LookupError("no such thing")),
    "fail": raising(lambda: ValueError("as asked")),
}


@app.handler(Do, run_in="process", retry=fixed(0.1).on(LookupError, None))
def do(job: Do, ctx: JobContext[State]) -> Done:
    ctx.state.runs += 1
    note(f"{job.what}, attempt {ctx.attempt} of {ctx.max_attempts}")
    BEHAVIOURS[job.what](job)
    return Done(pid=os.getpid(), runs_of_this_process=ctx.state.runs, text=job.text, secret=SecretStr("hidden"))


@app.handler(Follow, run_in="process")
async def follow(job: Follow, ctx: JobContext[State]) -> Done | None:
    await asyncio.sleep(0)
    await ctx.enqueue(Tick())
    await app.enqueue(Tick())
    return None


@app.handler(Tick)
async def tick(job: Tick) -> None:
    pass
