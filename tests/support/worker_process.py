"""A worker in a process of its own, whose memory a test can measure: `WorkerProcess`.

Run as a program, it is that process: a line on its output for each run, and for each lost connection.
"""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from types import TracebackType
from typing import Self

import psutil

from amqpjobs import App, JobContext, Worker
from amqpjobs.events import ConnectionLost
from amqpjobs.settings import load_settings
from tests.support.apps import SOON, Note
from tests.support.broker import PATIENCE


class WorkerProcess:
    """The app `name` handling one kind of `Note`; a note that says "fail" fails."""

    def __init__(self, url: str, namespace: str, name: str, kind: str) -> None:
        self._options = {"url": url, "namespace": namespace, "name": name, "kind": kind}
        self._process: Process | None = None
        self.runs: list[int] = []
        self.lost: list[str] = []

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, json.dumps(self._options), stdin=PIPE, stdout=PIPE
        )
        assert await self._line() == "ready"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError, BrokenPipeError, ConnectionResetError):
            await self._process.communicate(b"\n")
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    @property
    def memory(self) -> int:
        """Its resident bytes."""
        assert self._process is not None
        return psutil.Process(self._process.pid).memory_info().rss

    async def ran(self, count: int, *, within: float = PATIENCE) -> list[int]:
        """Wait until it has run so many; their numbers in order."""
        async with asyncio.timeout(within):
            while len(self.runs) < count:
                word, rest = (await self._line()).split(" ", 1)
                if word == "ran":
                    self.runs.append(int(rest))
                else:
                    self.lost.append(rest)
        return list(self.runs)

    async def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, "the worker's process ended"
        return line.decode().strip()


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def main(options: dict[str, str]) -> None:
    settings = load_settings(url=options["url"], namespace=options["namespace"], unknown_window=0)
    app = App(options["name"], retry=SOON, settings=settings)

    class Mine(Note, kind=options["kind"]):
        pass

    @app.handler(Mine, max_attempts=2)
    async def handle(job: Mine, context: JobContext[None]) -> None:
        if job.text == "fail":
            raise ValueError("as asked")
        say(f"ran {job.n}")

    @app.on(ConnectionLost)
    def tell(event: ConnectionLost) -> None:
        say(f"lost {event.error!r}")

    async with Worker(app):
        say("ready")
        await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
