"""A sharded queue and several worker processes, some of which die: nothing is lost, and keys keep their order."""

import json
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from amqpjobs.sharding import key_of
from tests.support.apps import NAMESPACE
from tests.support.broker import Broker, eventually
from tests.support.fleet import Fleet, Ledger
from tests.support.length import is_full
from tests.support.scene import LONG

KEYS = range(1, 101)
#: Jobs of each key in one round, and how often a worker is killed.
STEPS, KILLS = (20, 6) if is_full() else (3, 1)
WORKERS = 3
HOME, OPTIONS = "tests.support.sharded_app", "SHARDED_APP_OPTIONS"


@pytest.fixture
async def home(
    url: str, unique: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broker: Broker
) -> AsyncGenerator[Any]:
    """The app as a producer sees it. Its queues are removed afterwards."""
    monkeypatch.setenv(OPTIONS, json.dumps({"folder": str(tmp_path), "name": unique()}))
    monkeypatch.setenv("AMQPJOBS_URL", url)
    monkeypatch.setenv("AMQPJOBS_NAMESPACE", NAMESPACE)
    sys.modules.pop(HOME, None)
    home = import_module(HOME)
    yield home
    await home.app.close()
    app, topology = home.app, home.app.topology
    for name in (*topology.parts(app.queues[0]), topology.crew(app.name), topology.dead_queue(app.name)):
        await broker.delete_queue(name)
    for exchange in topology.app(app.queues, []).exchanges:
        await broker.delete_exchange(exchange.name)


async def test_keys_keep_their_order_while_workers_are_killed_and_nothing_is_lost(
    home: Any, url: str, tmp_path: Path, broker: Broker
) -> None:
    ledger, number, rounds = Ledger(tmp_path), 0, 0

    async def enqueue() -> None:
        nonlocal number, rounds
        rounds += 1
        await home.app.enqueue_many(
            (home.Step(key=key, n=number + step) for key in KEYS for step in range(STEPS)), deadline=60
        )
        number += STEPS

    async with Fleet(url, tmp_path, WORKERS, HOME) as fleet:

        async def is_spread() -> bool:
            """New jobs run in several processes, and those of a shard in one."""
            before = len(ledger.firsts())
            await enqueue()
            await eventually(has_all_begun, within=LONG)
            by_shard = dict[int, set[int]]()
            for job, pid in ledger.firsts()[before:]:
                by_shard.setdefault(key_of(int(job.split("-")[0])) % home.SHARDS, set()).add(pid)
            owners = [next(iter(pids)) for pids in by_shard.values() if len(pids) == 1]
            return len(owners) == home.SHARDS and max(map(owners.count, owners)) <= 3

        async def has_all_begun() -> bool:
            return len(ledger.firsts()) == number * len(KEYS)

        for kill in range(KILLS):
            await enqueue()
            await eventually(is_spread, within=LONG)
            await enqueue()
            await fleet.replace(kill % WORKERS, signal.SIGKILL)
        await enqueue()
        everything = {f"{key}-{n}" for key in KEYS for n in range(number)}
        await ledger.until_done(everything, within=LONG)

    twice = sum(count - 1 for count in ledger.done().values())
    sys.stdout.write(f"\n{len(everything)} jobs, {KILLS} killed workers, {twice} ran twice to their end\n")
    assert set(ledger.done()) == everything
    assert_one_after_another(ledger.story())
    assert await broker.count(home.app.topology.dead_queue(home.app.name)) == 0


async def test_delayed_retried_and_foreign_jobs_come_to_a_worker_of_their_shard(
    home: Any, url: str, tmp_path: Path, broker: Broker
) -> None:
    ledger = Ledger(tmp_path)
    async with Fleet(url, tmp_path, 2, HOME):
        await home.app.enqueue_many([home.Step(key=key, n=0) for key in KEYS], delay=0.5)
        await home.app.enqueue_many([home.Step(key=key, n=1, fails=True) for key in KEYS])
        await broker.publish(NAMESPACE, f"{home.name}.step", b'{"key": 1000, "n": 0}', kind=f"{home.name}.step")
        expected = {f"{key}-{n}" for key in KEYS for n in range(2)} | {"1000-0"}
        await ledger.until_done(expected, within=LONG)

    assert set(ledger.done()) == expected
    assert {len(ledger.runs(f"{key}-1")) for key in KEYS} == {2}


def assert_one_after_another(story: list[tuple[str, str]]) -> None:
    """Of each key a job first begins when the one before it has come to its end."""
    begun, done = set[str](), set[str]()
    for word, job in story:
        key, n = job.split("-")
        if word == "done":
            done.add(job)
        elif job not in begun:
            begun.add(job)
            assert n == "0" or f"{key}-{int(n) - 1}" in done, f"{job} did not wait for the one before it"
