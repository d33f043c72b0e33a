"""Jobs that take longer than the interval of their schedule, in workers that are killed in the midst of them."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from amqpjobs import Beat
from amqpjobs.beat.plan import Overlap
from tests.support.apps import NAMESPACE, Bench
from tests.support.broker import PATIENCE, Broker, eventually
from tests.support.length import is_full
from tests.support.ticks import Each

HOME = "tests.support.long_app"
ROOT = Path(__file__).parents[2]
#: Workers that are killed, and jobs that end before each kill.
KILLS, ENDS = (10, 3) if is_full() else (1, 1)


class Workshop:
    """One worker of `long_app` at a time, and what its jobs have noted."""

    def __init__(self, url: str, name: str, folder: Path) -> None:
        self._ledger = folder / "ledger"
        own = {"AMQPJOBS_URL": url, "AMQPJOBS_NAMESPACE": NAMESPACE, "LONG_APP": name}
        self._environment = os.environ | own | {"LONG_APP_LEDGER": str(self._ledger)}
        self._log = folder / "log"
        self._worker: subprocess.Popen[bytes] | None = None

    @asynccontextmanager
    async def working(self) -> AsyncGenerator[None]:
        self._start()
        try:
            yield
        finally:
            assert self._worker is not None
            self._worker.terminate()
            await asyncio.to_thread(self._worker.wait, 2 * PATIENCE)

    async def kill(self) -> set[str]:
        """Kill the worker while something runs, and start another one; the ticks that ran."""

        async def is_running() -> bool:
            return bool(self.running())

        while True:
            await eventually(is_running, within=4 * PATIENCE)
            assert self._worker is not None
            self._worker.kill()
            await asyncio.to_thread(self._worker.wait)
            running = self.running()
            self._start()
            if running:  # what had run may have ended just before
                return running

    def lines(self) -> list[tuple[str, str]]:
        """What was noted: start or end, and of which tick."""
        text = self._ledger.read_text() if self._ledger.exists() else ""
        noted = [line.partition(" ") for line in text.rpartition("\n")[0].splitlines()]
        return [(word, tick) for word, _, tick in noted]

    def running(self) -> set[str]:
        """The ticks that began and have not ended."""
        return self.begun() - self.over()

    def begun(self) -> set[str]:
        return {tick for word, tick in self.lines() if word == "start"}

    def over(self) -> set[str]:
        return {tick for word, tick in self.lines() if word == "end"}

    async def until_over(self, count: int) -> None:
        async def are_over() -> bool:
            return len(self.over()) >= count

        await eventually(are_over, within=4 * PATIENCE)

    async def until_these_are_over(self, ticks: set[str]) -> None:
        async def are_over() -> bool:
            return ticks <= self.over()

        await eventually(are_over, within=4 * PATIENCE)

    def overlaps(self) -> list[tuple[str, str]]:
        """Which ticks began while others had not ended."""
        found, running = list[tuple[str, str]](), set[str]()
        for word, tick in self.lines():
            if word == "start":
                found += [(each, tick) for each in running if each != tick]
                running.add(tick)
            else:
                running.discard(tick)
        return found

    def _start(self) -> None:
        with self._log.open("ab") as output:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "amqpjobs", "run", HOME],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )


@pytest.fixture
async def bench(url: str, unique: Callable[[], str], broker: Broker) -> AsyncGenerator[Bench]:
    bench = Bench(url, unique, broker)
    yield bench
    await bench.close()


@pytest.mark.parametrize("overlap", ["allow", "skip", "queue"])
async def test_jobs_longer_than_their_interval_run_as_the_policy_says_also_when_their_worker_is_killed(
    bench: Bench, tmp_path: Path, overlap: Overlap
) -> None:
    app = bench.app()
    app.schedule(Each(1), job=bench.kind(f"{app.name}.long")(), name="long", overlap=overlap)
    workshop = Workshop(bench.url, app.name, tmp_path)
    killed = set[str]()
    async with workshop.working(), Beat(app):
        for _ in range(KILLS):
            await workshop.until_over(len(workshop.over()) + ENDS)
            killed |= await workshop.kill()
        await workshop.until_over(len(workshop.over()) + ENDS + 1)
        await workshop.until_these_are_over(killed)  # those that others overtake come again, too
    for queue in app.topology.beat(app.name).queues:
        await bench.broker.delete_queue(queue.name)

    assert killed
    if overlap == "allow":
        assert workshop.overlaps()
    else:
        assert workshop.overlaps() == []
