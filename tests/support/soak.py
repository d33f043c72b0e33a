"""The processes of a soak, each of which tells its own figures: `Part`.

Run as a program it is such a process: a worker, or a producer that enqueues in a steady flow between "go" and
"stop", or one job of each sort at "each", on the event loop or in threads. To each line on its input it answers
by one line of JSON, its figures.
Only confirmed jobs are noted in the ledger: nobody promised anything for the others.
"""

import asyncio
import gc
import json
import os
import random
import sys
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiormq
import psutil

from amqpjobs import Job
from amqpjobs.handle import EnqueueOptions
from tests.support.apps import NAMESPACE
from tests.support.broker import PATIENCE

ROOT = Path(__file__).parents[2]
#: Lanes of a producer, and seconds between two jobs of one.
LANES, PACE = 4, 0.2
#: Seconds after which a worker's quarantine lets its children end; by itself it waits longer.
IDLE = 1.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What a process has of everything that could pile up."""

    memory: int
    tasks: int
    futures: int
    channels: int
    connections: int
    #: Channels that are closed and still known to somebody, as the last one served is to its connection's reader.
    closed: int
    sockets: int
    files: int
    threads: int
    children: int

    @property
    def counts(self) -> tuple[int, ...]:
        """What must end where it began."""
        return tuple(getattr(self, name) for name in COUNTS)

    def is_within(self, others: Self) -> bool:
        """Whether it has no more of anything."""
        return all(mine <= theirs for mine, theirs in zip(self.counts, others.counts, strict=True))


COUNTS = ("tasks", "futures", "channels", "connections", "sockets", "files", "threads", "children")


def measure() -> Figures:
    """Of this process. What is garbage is collected before, and does not count."""
    gc.collect()
    living = gc.get_objects()
    me = psutil.Process()
    descriptors = list(_descriptors())
    return Figures(
        memory=me.memory_info().rss,
        tasks=_count(living, asyncio.Task, lambda each: not each.done()),
        futures=_count(living, asyncio.Future, lambda each: not (isinstance(each, asyncio.Task) or each.done())),
        channels=_count(living, aiormq.Channel, lambda each: not each.is_closed),
        connections=_count(living, aiormq.Connection),
        closed=_count(living, aiormq.Channel, lambda each: each.is_closed),
        sockets=sum(each.startswith("socket:") for each in descriptors),
        files=len(descriptors),
        # The event loop's own pool grows to a bound of its own, whenever two want a thread at once.
        threads=sum(not each.name.startswith("asyncio_") for each in threading.enumerate()),
        children=len(me.children()),
    )


def explain() -> None:
    """Say to the log what all tasks wait for, and what files are open."""
    for task in (each for each in gc.get_objects() if issubclass(type(each), asyncio.Task)):
        if not task.done():
            task.print_stack(file=sys.stderr)
    sys.stderr.write("\n".join([*_descriptors(), ""]))


def _count(living: Iterable[object], kind: type[Any], counts: Callable[[Any], bool] = lambda each: True) -> int:
    return sum(issubclass(type(each), kind) and counts(each) for each in living)


def _descriptors() -> Iterable[str]:
    for number in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the one by which we look
            continue


class Part:
    """One of the processes, as a test sees it."""

    def __init__(self, role: str, url: str, folder: Path, seed: int) -> None:
        self.role = role
        self._arguments = [sys.executable, "-m", __name__, role, str(seed)]
        self._environment = os.environ | {
            "AMQPJOBS_URL": url,
            "AMQPJOBS_NAMESPACE": NAMESPACE,
            "AMQPJOBS_PROCESSES": "1",
        }
        self._log = folder / f"log-{role}"
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._arguments, cwd=ROOT, env=self._environment, stdin=PIPE, stdout=PIPE, stderr=log
            )
        await self.ask("hello")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        if error is not None and self._process.returncode is None:
            self._process.kill()
        await self._process.communicate(b"")  # closes its input, which ends it
        if error is None:
            assert self._process.returncode == 0, self.log

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def ask(self, word: str) -> Figures:
        """Tell it to do something; its figures when that is done."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word}\n".encode())
        async with asyncio.timeout(4 * PATIENCE):
            line = await self._process.stdout.readline()
        assert line, f"the {self.role} ended: {self.log}"
        return Figures(**json.loads(line))


def answer(word: str) -> None:
    if word == "explain\n":
        explain()
    figures = measure()
    sys.stdout.write(json.dumps({name: getattr(figures, name) for name in Figures.__slots__}) + "\n")
    sys.stdout.flush()


async def work() -> None:
    from amqpjobs import Worker
    from amqpjobs.events import JobEnded
    from amqpjobs.worker import quarantine
    from tests.support.soak_app import SLOTS, app, note_end

    quarantine.IDLE = IDLE
    app.events.subscribe(JobEnded, note_end)
    async with Worker(app, concurrency=SLOTS):
        while word := await asyncio.to_thread(sys.stdin.readline):
            answer(word)


async def produce(chance: random.Random) -> None:
    """From the event loop."""
    from amqpjobs import EnqueueError
    from tests.support.soak_app import app, chosen, meeting_ones, note, one_of_each

    async def enqueue(job: Job[None], given: EnqueueOptions) -> None:
        try:
            note("confirmed", (await app.enqueue(job, **given)).job_id)
        except EnqueueError:
            note("refused", "")

    async def lane() -> None:
        while not is_over.is_set():
            await enqueue(*chosen(chance))
            await asyncio.sleep(PACE)

    lanes, is_over = list[asyncio.Task[None]](), asyncio.Event()
    async with app:
        while word := await asyncio.to_thread(sys.stdin.readline):
            if word == "go\n":
                is_over.clear()
                lanes = [asyncio.create_task(lane()) for _ in range(LANES)]
            elif word == "stop\n":
                is_over.set()
                await asyncio.gather(*lanes)
                lanes.clear()
            elif word == "each\n":
                for handle in await app.enqueue_many(meeting_ones()):
                    note("confirmed", handle.job_id)
                for job, given in one_of_each():
                    await enqueue(job, given)
            answer(word)


def produce_blocking(chance: random.Random) -> None:
    """From threads."""
    from amqpjobs import BlockingClient, EnqueueError
    from tests.support.soak_app import app, chosen, meeting_ones, note, one_of_each

    def enqueue(job: Job[None], given: EnqueueOptions) -> None:
        try:
            note("confirmed", client.enqueue(job, **given).job_id)
        except EnqueueError:
            note("refused", "")

    def lane() -> None:
        while not is_over.is_set():
            enqueue(*chosen(chance))
            is_over.wait(PACE)

    lanes, is_over = list[threading.Thread](), threading.Event()
    with BlockingClient(app) as client:
        for word in sys.stdin:
            if word == "go\n":
                is_over.clear()
                lanes = [threading.Thread(target=lane) for _ in range(LANES)]
                for thread in lanes:
                    thread.start()
            elif word == "stop\n":
                is_over.set()
                for thread in lanes:
                    thread.join()
                lanes.clear()
            elif word == "each\n":
                for handle in client.enqueue_many(meeting_ones()):
                    note("confirmed", handle.job_id)
                for job, given in one_of_each():
                    enqueue(job, given)
            answer(word)


def main(role: str, seed: str) -> None:
    chance = random.Random(f"{seed} {role}")
    match role:
        case "worker":
            asyncio.run(work())
        case "producer":
            asyncio.run(produce(chance))
        case _:
            produce_blocking(chance)


if __name__ == "__main__":
    main(*sys.argv[1:])
