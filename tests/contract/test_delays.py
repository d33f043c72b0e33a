"""A delayed job takes no worker, comes when it is due, and is in nobody's way."""

import asyncio
import random
import sys
import time

import pytest

from amqpjobs import Worker
from amqpjobs.deadletters import UNROUTABLE, DeadLetters, Filter
from tests.support.apps import Bench, Ran, record
from tests.support.broker import PATIENCE, Broker, eventually
from tests.support.length import is_full

#: Delays from 0.2 s; with --full 1,000 of up to 10 s, as measured for the broker facts.
JOBS, SHORTEST, LONGEST, RATE = (1_000, 0.2, 10.0, 100.0) if is_full() else (200, 0.2, 3.0, 100.0)
#: Rounding costs up to 0.1 s, each level some milliseconds; the rest is for a machine that stands still for a while.
LATEST = PATIENCE


async def test_a_short_delay_does_not_wait_for_a_long_one(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    ran = record(app, kind)

    async with Worker(app):
        await app.enqueue(kind(n=1), delay=3600)
        await app.enqueue(kind(n=2), delay=1)
        await ran.until(1)

    assert [run.n for run in ran] == [2]
    assert 0 <= ran[0].lateness < LATEST


async def test_random_delays_all_come_once_and_none_early(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    ran = record(app, kind)
    chance = random.Random(4)

    async with Worker(app, concurrency=50):
        handles: list[str] = []
        started = time.monotonic()
        for n in range(JOBS):
            await asyncio.sleep(max(0.0, started + n / RATE - time.monotonic()))
            handle = await app.enqueue(kind(n=n), delay=chance.uniform(SHORTEST, LONGEST))
            handles.append(handle.job_id)
        await ran.until(JOBS, within=LONGEST + LATEST)

    assert sorted(run.envelope.job_id for run in ran) == sorted(handles)
    assert min(run.lateness for run in ran) >= 0
    tell("random delays", list(ran))
    assert max(run.lateness for run in ran) < LATEST


async def test_delayed_jobs_that_nobody_wants_when_due_are_kept_and_in_nobodys_way(
    bench: Bench, broker: Broker
) -> None:
    app, kind, unwanted = bench.app(), bench.kind(), bench.kind()
    ran = record(app, kind)
    await app.enqueue(kind(), on_unroutable="park")  # opens the connection and declares
    await broker.purge(app.topology.parked)

    # More than the 32 that the broker's own dead-lettering keeps under way for one queue.
    handles = await app.enqueue_many([unwanted(n=n) for n in range(40)], delay=0.3)
    ours = Filter(ids=frozenset(handle.job_id for handle in handles))  # jobs of others may come there at any time
    async with DeadLetters(app) as letters, Worker(app, concurrency=50):

        async def are_kept() -> bool:
            return len(await letters.find(UNROUTABLE, ours)) == 40

        await eventually(are_kept)
        await app.enqueue_many([kind(n=n) for n in range(60)], delay=0.3)
        await ran.until(60)
        kept = await letters.purge(UNROUTABLE, ours)

    assert kept.done == 40
    assert max(run.lateness for run in ran) < LATEST


async def test_a_delayed_job_survives_that_no_worker_runs_when_it_is_due(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    ran = record(app, kind)
    async with Worker(app):
        pass  # its queue and bindings exist from here on

    handle = await app.enqueue(kind(n=1), delay=0.2)
    later = await app.enqueue(kind(n=2), delay=0.6)
    async with Worker(app):
        await ran.until(2)

    assert [run.envelope.job_id for run in ran] == [handle.job_id, later.job_id]
    assert all(run.lateness >= 0 for run in ran)


@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.15, 0.3, 0.7, 1.5])
async def test_no_job_is_early_by_rounding(bench: Bench, seconds: float) -> None:
    app, kind = bench.app(), bench.kind()
    ran = record(app, kind)

    async with Worker(app):
        await app.enqueue(kind(), delay=seconds)
        await ran.until(1)

    assert 0 <= ran[0].lateness < LATEST


async def test_the_longest_delay_is_said_when_it_is_exceeded(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()

    with pytest.raises(ValueError, match=r"13\.6 years"):
        await app.enqueue(kind(), delay=14 * 366 * 86_400)


def tell(what: str, ran: list[Ran]) -> None:
    """The measured lateness; pytest -s shows it."""
    late = sorted(run.lateness * 1000 for run in ran)
    p50, p99 = late[len(late) // 2], late[len(late) * 99 // 100]
    sys.stdout.write(f"{what}: {len(late)} jobs, p50 {p50:.0f} ms, p99 {p99:.0f} ms, max {late[-1]:.0f} ms late\n")
