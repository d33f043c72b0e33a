"""What waits, and what is garbage, takes no memory of a worker for good."""

import asyncio
import sys
from collections.abc import Callable

import pytest

from tests.conftest import MakeNode
from tests.contract.test_garbage import BODIES, PROPERTIES
from tests.scenarios.conftest import BenchOn, control
from tests.support.apps import NAMESPACE, dead_queue, work_queue
from tests.support.broker import Foreign, eventually
from tests.support.rabbitmq import Node
from tests.support.worker_process import WorkerProcess

MEGABYTE = 1_000_000


@pytest.mark.parametrize("delayed", [5_000, pytest.param(100_000, marks=pytest.mark.slow)])
async def test_jobs_of_an_hour_from_now_are_in_no_workers_way(
    make_node: MakeNode, bench_on: BenchOn, unique: Callable[[], str], delayed: int
) -> None:
    node = await asyncio.to_thread(make_node)
    name, kind_name = unique(), unique()
    async with bench_on(node) as bench, WorkerProcess(node.url, NAMESPACE, name, kind_name) as worker:
        app, kind = bench.app(), bench.kind(kind_name)
        await app.enqueue_many([kind(n=n) for n in range(1_000)], deadline=60)
        await worker.ran(1_000)
        before = worker.memory

        for start in range(0, delayed, 5_000):
            batch = [kind(n=n) for n in range(start, min(delayed, start + 5_000))]
            await app.enqueue_many(batch, delay=3_600, deadline=300)
        await eventually(lambda: has_none_lent(node, name))
        await app.enqueue_many([kind(n=n) for n in range(100)], deadline=60)
        runs = await worker.ran(1_100)
        growth = worker.memory - before
        await app.close()

    sys.stdout.write(f"{delayed} delayed jobs: the worker grew by {growth / MEGABYTE:.1f} MB\n")
    assert sorted(runs[1_000:]) == list(range(100))
    assert growth < 10 * MEGABYTE


async def has_none_lent(node: Node, name: str) -> bool:
    """Whether no message is unacked. A quorum queue tells what it knew some seconds ago."""
    told = await control(node, "list_queues", "name", "messages_unacknowledged")
    return f"{NAMESPACE}.queue.{name}\t0" in told.splitlines()


async def test_garbage_leaves_no_memory_behind(
    make_node: MakeNode, bench_on: BenchOn, unique: Callable[[], str]
) -> None:
    node = await asyncio.to_thread(make_node)
    name, kind_name = unique(), unique()
    async with bench_on(node) as bench, WorkerProcess(node.url, NAMESPACE, name, kind_name) as worker:
        app, kind = bench.app(name), bench.kind(kind_name)
        messages: list[tuple[bytes, Foreign]] = []
        for _, body, properties, _, _ in (BODIES + PROPERTIES) * 3:
            given: Foreign = {"kind": kind_name, **properties}
            messages.append((body, given))
        large: Foreign = {"kind": kind_name, "headers": {"big": "x" * 120_000}}
        messages += [(b"{}", large)] * 20
        largest = max(len(body) for body, _ in messages)
        await app.enqueue_many([kind(n=n) for n in range(1_000)], deadline=60)
        await worker.ran(1_000)
        before = worker.memory

        await bench.broker.publish_all(app.topology.jobs, kind_name, messages)
        await bench.broker.await_count(dead_queue(app), len(messages) - 20)
        await app.enqueue_many([kind(n=n) for n in range(100)], deadline=60)
        await worker.ran(1_120)
        await bench.broker.await_count(work_queue(app), 0)
        growth = worker.memory - before
        await app.close()

    sys.stdout.write(f"{len(messages)} pieces of garbage: the worker grew by {growth / MEGABYTE:.1f} MB\n")
    assert growth < 10 * MEGABYTE + largest
    assert not worker.lost
