"""Thousands of jobs from another process, through connections that are cut and workers that are killed."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from tests.conftest import announce
from tests.support.broker import eventually
from tests.support.faults import FaultyProxy, Way
from tests.support.fleet import Fleet
from tests.support.length import is_full
from tests.support.scene import LONG, Scene, open_scene
from tests.support.stream import Stream

JOBS, FAULTS = (10_000, 50) if is_full() else (300, 4)
WORKERS, PREFETCH, CONCURRENCY = 2, 20, 10


@pytest.fixture
async def scene(
    url: str, unique: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Scene]:
    async with open_scene(url, unique(), tmp_path, monkeypatch, prefetch=PREFETCH) as scene:
        yield scene


async def test_every_confirmed_job_ends_through_cuts_and_kills_and_once_without_them(
    scene: Scene, url: str, pytestconfig: pytest.Config
) -> None:
    confirmed = set[str]()
    async with (
        FaultyProxy(url).running() as proxy,
        scene.fleet(WORKERS, through=proxy, concurrency=CONCURRENCY, reconnect_cap=1) as fleet,
        Stream(proxy.url) as stream,
    ):
        for _ in range(FAULTS):
            enqueuing = asyncio.create_task(stream.enqueue(JOBS // FAULTS))
            proxy.cut_at(proxy.random.choice(list(Way)), proxy.random.randint(1, 20_000))
            await kill_one(fleet, proxy.random.randrange(WORKERS))
            confirmed |= await enqueuing
        await scene.ledger.until_done(confirmed, within=LONG)
        proxy.calm()
        calm = await stream.enqueue(100, deadline=60)
        await scene.ledger.until_done(calm, within=LONG)
        await scene.until_empty()

    done = scene.ledger.done()
    twice = sorted(name for name, count in done.items() if count > 1)
    announce(
        pytestconfig,
        f"seed {proxy.seed}: {len(confirmed)} of {JOBS} confirmed, {FAULTS} cuts, {fleet.deaths} kills; "
        f"{len(twice)} ended more than once: {', '.join(twice[:20])}",
    )
    assert len(calm) == 100
    assert {done[name] for name in calm} == {1}
    # A kill repeats what ran on that worker; a cut may lose the acks of all that a worker held.
    assert len(twice) <= fleet.deaths * CONCURRENCY + FAULTS * WORKERS * PREFETCH
    assert await scene.dead(0) == []


async def kill_one(fleet: Fleet, position: int) -> None:
    """A worker dies of SIGKILL; return when another one has its place and all consume."""
    deaths = fleet.deaths
    os.kill(fleet.pids[position], signal.SIGKILL)

    async def is_noticed() -> bool:
        return fleet.deaths > deaths

    await eventually(is_noticed)
    await fleet.until_all_ready()
