"""The broker goes away under load and comes back: so do the workers, by themselves, and nothing confirmed is lost."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest

from amqpjobs import EnqueueError, JobContext, Worker
from amqpjobs.events import ConnectionLost
from tests.conftest import MakeNode, announce
from tests.scenarios.conftest import BenchOn, control, until_all_ran
from tests.support.apps import Bench, Note, Ran, Seen, record, watch, work_queue
from tests.support.broker import PATIENCE, eventually
from tests.support.length import is_full
from tests.support.rabbitmq import Node

CLOSES = 50 if is_full() else 5
RESTARTS = 5 if is_full() else 1
#: Seconds; more than three heartbeats of 2 s and what the client library adds.
FROZEN = 60.0 if is_full() else 12.0
PREFETCH = 7
#: Promised are 15 s after the broker's return. A machine that stands still may take long to see that, too.
BACK_WITHIN = 60.0


class Load:
    """Two workers on one queue, and somebody who enqueues all the time."""

    def __init__(self, node: Node, bench: Bench) -> None:
        settings = bench.settings(heartbeat=2)
        self.node = node
        self.kind = bench.kind()
        self.first = bench.app(settings=settings)
        self.second = bench.app(self.first.name, settings=settings)
        self.producer = bench.app(settings=settings)
        self.ran = [record(self.first, self.kind, self._work), record(self.second, self.kind, self._work)]
        self.lost = [watch(app.events, ConnectionLost) for app in (self.first, self.second)]
        self.confirmed = set[str]()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[tuple[Worker, Worker]]:
        """All that was confirmed has run when it ends."""
        async with Worker(self.first, concurrency=PREFETCH) as one, Worker(self.second, concurrency=PREFETCH) as two:
            producing = asyncio.create_task(self._produce())
            await self.more_ran()
            yield one, two
            producing.cancel()
            await asyncio.wait([producing])
            await until_all_ran(self.confirmed, self.ids, within=4 * PATIENCE)
        await self.producer.close()

    def ids(self) -> set[str]:
        return {run.envelope.job_id for seen in self.ran for run in seen}

    def copies(self) -> int:
        """Runs beyond the first of a job."""
        return sum(len(seen) for seen in self.ran) - len(self.ids())

    async def more_ran(self) -> None:
        """Both workers run jobs."""
        await asyncio.gather(*(_grown(seen) for seen in self.ran))

    async def until_both_consume(self) -> float:
        """Seconds until the broker has both consumers, each with its full prefetch."""
        started, queue = time.monotonic(), work_queue(self.first)

        async def is_back() -> bool:
            said = await control(self.node, "list_consumers", "queue_name", "prefetch_count")
            return [line.split() for line in said.splitlines()].count([queue, str(PREFETCH)]) == 2

        await eventually(is_back, within=4 * PATIENCE)
        return time.monotonic() - started

    async def _work(self, job: Note, context: JobContext[None]) -> None:
        await asyncio.sleep(0.05)

    async def _produce(self) -> None:
        while True:
            with suppress(EnqueueError):
                self.confirmed.add((await self.producer.enqueue(self.kind(), deadline=5)).job_id)
            await asyncio.sleep(0.02)


async def _grown(seen: Seen[Ran]) -> None:
    await seen.until(len(seen) + 10, within=2 * PATIENCE)


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_two_workers_are_back_soon_after_their_broker(
    make_node: MakeNode, bench_on: BenchOn, pytestconfig: pytest.Config, how: str
) -> None:
    node = await asyncio.to_thread(make_node)
    took = list[float]()
    end: Callable[[], None] = node.stop if how == "stop" else node.kill
    async with bench_on(node) as bench:
        load = Load(node, bench)
        async with load.running() as workers:
            for _ in range(RESTARTS):
                # A quorum queue whose broker is killed right after it was declared may stay without a leader.
                await asyncio.sleep(1)
                await asyncio.to_thread(end)
                await asyncio.gather(*(_grown_by(lost, 2) for lost in load.lost))
                were_consuming = [worker.is_consuming for worker in workers]
                await asyncio.to_thread(node.start)
                took.append(await load.until_both_consume())
                await load.more_ran()
                assert were_consuming == [False, False]
                # With heartbeats of 2 s, a machine that stands still loses connections of its own accord.
                await eventually(partial(both_consume, workers))

    announce(pytestconfig, f"back after {how}: {shown(took)}; copies: {load.copies()}")
    assert max(took) < BACK_WITHIN


async def test_workers_outlive_that_all_connections_are_closed_again_and_again(
    make_node: MakeNode, bench_on: BenchOn, pytestconfig: pytest.Config
) -> None:
    node = await asyncio.to_thread(make_node)
    took = list[float]()
    async with bench_on(node) as bench:
        load = Load(node, bench)
        async with load.running():
            for _ in range(CLOSES):
                await control(node, "close_all_connections", "a test")
                took.append(await load.until_both_consume())
                await load.more_ran()

    announce(pytestconfig, f"back after all connections were closed: {shown(took)}; copies: {load.copies()}")
    assert max(took) < BACK_WITHIN


async def test_workers_notice_a_frozen_broker_and_are_back_when_it_thaws(
    make_node: MakeNode, bench_on: BenchOn, pytestconfig: pytest.Config
) -> None:
    node = await asyncio.to_thread(make_node)
    async with bench_on(node) as bench:
        load = Load(node, bench)
        async with load.running() as workers:
            await asyncio.to_thread(node.freeze)
            started = time.monotonic()
            await asyncio.gather(*(_grown_by(lost, 1) for lost in load.lost))

            async def nobody_consumes() -> bool:
                return not any(worker.is_consuming for worker in workers)

            await eventually(nobody_consumes)
            noticed = time.monotonic() - started
            await asyncio.sleep(max(0.0, FROZEN - noticed))
            await asyncio.to_thread(node.thaw)
            took = await load.until_both_consume()
            await load.more_ran()

    announce(pytestconfig, f"noticed after {noticed:.1f} s, back {took:.1f} s after the thaw; copies: {load.copies()}")
    assert took < BACK_WITHIN


async def both_consume(workers: tuple[Worker, Worker]) -> bool:
    return all(worker.is_consuming for worker in workers)


async def _grown_by(seen: Seen[ConnectionLost], count: int) -> None:
    await seen.until(len(seen) + count, within=2 * PATIENCE)


def shown(seconds: list[float]) -> str:
    return ", ".join(f"{each:.1f} s" for each in seconds)
