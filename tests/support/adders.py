"""A service that adds up, and its callers, each in a process of its own: `Adders`.

Run as a program, it is one of them: a line of JSON on its output for whatever happens there.
"""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from amqpjobs import App, Job, JobContext, Worker, fixed
from amqpjobs.events import JobEnded, ReplyUndelivered
from amqpjobs.settings import load_settings
from tests.support.apps import NAMESPACE
from tests.support.broker import PATIENCE, eventually

#: Calls at once, of those that are many.
TOGETHER = 100


class AddUp(Job[int]):
    numbers: list[int]
    #: A file to wait for.
    mark: str = ""


def adder(name: str, url: str, **settings: Any) -> tuple[App[None], type[AddUp]]:
    """The service as whoever needs it has it."""

    class Mine(AddUp, kind=f"{name}.add"):
        pass

    given = {"url": url, "namespace": NAMESPACE, "enqueue_timeout": PATIENCE, **settings}
    return App(name, retry=fixed(0.1), settings=load_settings(**given)), Mine


class Member:
    """One of the processes."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.lines: list[dict[str, Any]] = []

    @property
    def memory(self) -> int:
        """Its resident bytes."""
        return psutil.Process(self._process.pid).memory_info().rss

    async def says(self, word: str, *, within: float = PATIENCE) -> dict[str, Any]:
        """Its next line that begins with this word."""
        assert self._process.stdout is not None
        async with asyncio.timeout(within):
            while True:
                raw = await self._process.stdout.readline()
                assert raw, f"it ended, and had said {self.lines}"
                self.lines.append(json.loads(raw))
                if self.lines[-1]["say"] == word:
                    return self.lines[-1]

    async def kill(self) -> None:
        """By SIGKILL."""
        self._process.kill()
        await self._process.wait()

    async def end(self) -> None:
        with suppress(ProcessLookupError, BrokenPipeError, ConnectionResetError):
            await self._process.communicate(b"\n")
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


class Adders:
    """Processes of one service, in a folder that they share."""

    def __init__(self, url: str, name: str, folder: Path) -> None:
        self.url = url
        self.name = name
        self.folder = folder

    @asynccontextmanager
    async def worker(self) -> AsyncGenerator[Member]:
        async with self._member("work") as member:
            await member.says("ready")
            yield member

    @asynccontextmanager
    async def caller(self, **options: Any) -> AsyncGenerator[Member]:
        """Calls at once: `numbers` and `mark` are the job's, `calls` how many, `settings` its own."""
        async with self._member("call", **options) as member:
            yield member

    def touch(self, mark: str) -> None:
        (self.folder / mark).touch()

    @asynccontextmanager
    async def _member(self, role: str, **options: Any) -> AsyncGenerator[Member]:
        told = {"role": role, "url": self.url, "name": self.name, "folder": str(self.folder), **options}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, json.dumps(told), stdin=PIPE, stdout=PIPE
        )
        member = Member(process)
        try:
            yield member
        finally:
            await member.end()


def say(word: str, **more: object) -> None:
    sys.stdout.write(json.dumps({"say": word, **more}) + "\n")
    sys.stdout.flush()


async def until_told() -> None:
    """To end."""
    await asyncio.to_thread(sys.stdin.readline)


async def work(options: dict[str, Any]) -> None:
    app, kind = adder(options["name"], options["url"])

    @app.handler(kind)
    async def add(job: AddUp, context: JobContext[None]) -> int:
        if job.mark:
            say("started", pid=os.getpid())
            mark = Path(options["folder"]) / job.mark
            await eventually(lambda: asyncio.to_thread(mark.exists), within=600)
        return sum(job.numbers)

    @app.on(ReplyUndelivered)
    def undelivered(event: ReplyUndelivered) -> None:
        say("undelivered", job_id=event.envelope.job_id, why=event.why)

    @app.on(JobEnded)
    def ended(event: JobEnded) -> None:
        if json.loads(event.envelope.payload)["mark"]:
            say("ended", job_id=event.envelope.job_id, outcome=type(event.outcome).__name__)

    async with Worker(app, concurrency=TOGETHER):
        say("ready")
        await until_told()


async def call(options: dict[str, Any]) -> None:
    app, kind = adder(options["name"], options["url"], **options.get("settings", {}))
    job = kind(numbers=options["numbers"], mark=options.get("mark", ""))
    async with app:
        if "calls" in options:
            await call_many(app, job, options["calls"])
        else:
            handle = await app.enqueue(job, reply=True)
            say("enqueued", job_id=handle.job_id)
            say("result", result=await handle.result(timeout=600))
        await until_told()


async def call_many(app: App[None], job: AddUp, calls: int) -> None:
    """As many to warm up as there are at once, and then so many; what memory was before and is after."""
    process, total = psutil.Process(), 0
    for _ in range(10):
        await app.gather(*[job] * TOGETHER, timeout=600)
    before = process.memory_info().rss
    for _ in range(calls // TOGETHER):
        total += sum(await app.gather(*[job] * TOGETHER, timeout=600))
    say("done", total=total, growth=process.memory_info().rss - before)


ROLES: dict[str, Callable[[dict[str, Any]], Coroutine[Any, Any, None]]] = {"work": work, "call": call}

if __name__ == "__main__":
    told: dict[str, Any] = json.loads(sys.argv[1])
    asyncio.run(ROLES[told["role"]](told))
