"""Worker processes as a service manager keeps them: whoever dies is started again."""

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.support.apps import NAMESPACE
from tests.support.broker import PATIENCE, eventually
from tests.support.lines import whole_lines

HOME = "tests.support.killer_app"
ROOT = Path(__file__).parents[2]
#: Seconds for a worker's end: it lets finish what runs, and hands back the rest.
ENDED_WITHIN = 2 * PATIENCE


class Fleet:
    """So many workers of an app, entered with all of them consuming."""

    def __init__(self, url: str, folder: Path, count: int, home: str = HOME, /, **settings: object) -> None:
        self._home = home
        given = {f"AMQPJOBS_{key.upper()}": str(value) for key, value in settings.items()}
        own = {"AMQPJOBS_URL": url, "AMQPJOBS_NAMESPACE": NAMESPACE, "AMQPJOBS_LOG_FORMAT": "json"}
        self._environment = os.environ | own | given
        self._folder = folder
        self._count = count
        self._workers: list[subprocess.Popen[bytes]] = []
        self._logs: dict[int, Path] = {}
        self._keeper: asyncio.Task[None] | None = None
        #: Workers that died without having been asked to.
        self.deaths = 0

    async def __aenter__(self) -> Self:
        for _ in range(self._count):
            self._workers.append(self._start())
        await asyncio.gather(*(self.until_ready(worker) for worker in self._workers))
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._keeper is not None
        self._keeper.cancel()
        await asyncio.wait([self._keeper])
        for worker in self._workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        try:
            await asyncio.gather(*(asyncio.to_thread(worker.wait, ENDED_WITHIN) for worker in self._workers))
        finally:
            for worker in self._workers:
                worker.kill()

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._workers]

    @property
    def children(self) -> list[psutil.Process]:
        """The children of all workers."""
        return [child for pid in self.pids if psutil.pid_exists(pid) for child in psutil.Process(pid).children()]

    @property
    def text(self) -> str:
        """All that all of them have logged."""
        return "".join(log.read_text() for log in self._logs.values())

    async def replace(self, position: int, number: signal.Signals) -> None:
        """End one worker by a signal; return when another one has its place and consumes."""
        old = self._workers[position]
        self._workers[position] = self._start()
        old.send_signal(number)
        await asyncio.to_thread(old.wait, ENDED_WITHIN)
        await self.until_ready(self._workers[position])

    async def until_all_ready(self) -> None:
        await asyncio.gather(*(self.until_ready(worker) for worker in self._workers))

    async def until_ready(self, worker: "subprocess.Popen[bytes]") -> None:
        async def is_ready() -> bool:
            return '"working"' in self._logs[worker.pid].read_text() or worker.poll() is not None

        await eventually(is_ready, within=2 * PATIENCE)

    async def _keep(self) -> None:
        while True:
            for position, worker in enumerate(self._workers):
                if worker.poll() is not None:
                    self.deaths += 1
                    self._workers[position] = self._start()
            await asyncio.sleep(0.05)

    def _start(self) -> "subprocess.Popen[bytes]":
        log = self._folder / f"log-{len(self._logs)}"
        with log.open("wb") as output:
            worker = subprocess.Popen(
                [sys.executable, "-m", "amqpjobs", "run", self._home],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._logs[worker.pid] = log
        return worker


class Ledger:
    """What the jobs have noted, outside of the broker."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "ledger"

    def runs(self, job: str, what: str = "run") -> list[tuple[int, int]]:
        """Attempt and process of each start of a job."""
        return [(attempt, pid) for word, name, attempt, pid in self._lines() if (word, name) == (what, job)]

    def firsts(self) -> list[tuple[str, int]]:
        """Each job with the process in which it first ran, in the order in which they did."""
        first = dict[str, int]()
        for word, name, _, pid in self._lines():
            if word == "run":
                first.setdefault(name, pid)
        return list(first.items())

    def story(self) -> list[tuple[str, str]]:
        """What was noted of which job, in its order."""
        return [(word, name) for word, name, _, _ in self._lines()]

    def attempts(self) -> dict[str, set[int]]:
        """The attempts each job has seen."""
        seen = dict[str, set[int]]()
        for _, name, attempt, _ in self._lines():
            seen.setdefault(name, set()).add(attempt)
        return seen

    def done(self) -> Counter[str]:
        """How often each job came to its end."""
        return Counter(name for word, name, _, _ in self._lines() if word == "done")

    async def until_done(self, jobs: set[str], *, within: float) -> None:
        async def are_done() -> bool:
            return jobs <= set(self.done())

        await eventually(are_done, within=within)

    async def until_run(self, *jobs: str, count: int = 1, within: float = 2 * PATIENCE) -> None:
        async def have_run() -> bool:
            return all(len(self.runs(job)) >= count for job in jobs)

        await eventually(have_run, within=within)

    def _lines(self) -> list[tuple[str, str, int, int]]:
        fields = [line.split() for line in whole_lines(self._file)]
        return [(word, name, int(attempt), int(pid)) for word, name, attempt, pid in fields]
