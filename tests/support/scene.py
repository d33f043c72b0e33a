"""A story's stage: the killer app as a producer sees it, worker processes, and the ledger of what ran."""

import json
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from amqpjobs import Job
from tests.support.apps import NAMESPACE, dead_queue, work_queue
from tests.support.broker import Broker, Letter, plain_client
from tests.support.faults import FaultyProxy
from tests.support.fleet import Fleet, Ledger
from tests.support.proxy import Proxy

HOME = "tests.support.killer_app"
#: What a story may take at full length, on a machine that does other things too.
LONG = 180.0


class Scene:
    """The app as a producer sees it, and what its workers have done."""

    def __init__(self, url: str, home: Any, broker: Broker, folder: Path) -> None:
        self._url = url
        self.home = home
        self.broker = broker
        self.folder = folder
        self.ledger = Ledger(folder)

    def fleet(self, count: int, *, through: Proxy | FaultyProxy | None = None, **settings: object) -> Fleet:
        return Fleet(self._url if through is None else through.url, self.folder, count, **settings)

    @property
    def queue(self) -> str:
        return work_queue(self.home.app)

    async def enqueue(self, jobs: Sequence[Job[Any]], **options: Any) -> None:
        await self.home.app.enqueue_many(jobs, deadline=60, **options)

    def innocents(self, count: int, **fields: Any) -> list[Job[Any]]:
        return [self.home.Innocent(name=f"innocent-{number}", **fields) for number in range(count)]

    def touch(self, name: str) -> None:
        (self.folder / name).touch()

    async def dead(self, count: int = 1, *, within: float = LONG) -> list[Letter]:
        """Just so many dead letters."""
        queue = dead_queue(self.home.app)
        letters = await self.broker.take(queue, count, within=within) if count else []
        assert await self.broker.count(queue) == 0
        return letters

    async def until_empty(self) -> None:
        """Until the work queue has nothing, also nothing that is lent."""
        await self.broker.await_count(self.queue, 0)

    def paid(self) -> dict[str, set[int]]:
        """The innocents that saw another attempt than their first."""
        return {
            job: attempts
            for job, attempts in self.ledger.attempts().items()
            if job.startswith("innocent") and attempts != {1}
        }


@asynccontextmanager
async def open_scene(
    url: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *, prefetch: int
) -> AsyncGenerator[Scene]:
    """The app's queues are removed afterwards."""
    options = {"folder": str(folder), "name": name, "prefetch": str(prefetch)}
    monkeypatch.setenv("KILLER_APP_OPTIONS", json.dumps(options))
    monkeypatch.setenv("AMQPJOBS_URL", url)
    monkeypatch.setenv("AMQPJOBS_NAMESPACE", NAMESPACE)
    sys.modules.pop(HOME, None)
    async with plain_client(url) as broker:
        scene = Scene(url, import_module(HOME), broker, folder)
        yield scene
        await scene.home.app.close()
        await broker.delete_queue(scene.queue)
        await broker.delete_queue(dead_queue(scene.home.app))
