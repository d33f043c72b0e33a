"""Nodes of a cluster die, one after the other; workers and producers go on with the others."""

import asyncio
from collections.abc import Callable

import pytest

from amqpjobs import EnqueueError, Worker
from tests.support.apps import Bench, Ran, Seen, record
from tests.support.broker import PATIENCE, eventually, plain_client
from tests.support.rabbitmq import Cluster

#: A node that comes back has 37 queues to catch up with.
LONG = 4 * PATIENCE


@pytest.mark.parametrize("deaths", [1, pytest.param(6, marks=pytest.mark.slow)])
async def test_a_cluster_that_loses_one_node_after_the_other_loses_no_confirmed_job(
    make_cluster: Callable[[], Cluster], unique: Callable[[], str], deaths: int
) -> None:
    cluster = await asyncio.to_thread(make_cluster)
    async with plain_client(cluster.nodes[2].url) as client:
        bench = Bench(cluster.url, unique, client)
        settings = bench.settings(heartbeat=2, reconnect_cap=1)
        kind, name, confirmed = bench.kind(), unique(), set[str]()
        apps = [bench.app(name, settings=settings) for _ in range(2)]
        ran = [record(app, kind) for app in apps]
        producer, is_over = bench.app(settings=settings), asyncio.Event()

        async def produce() -> None:
            n = 0
            while not is_over.is_set():
                try:
                    handle = await producer.enqueue(kind(n=n), deadline=20, delay=0.2 * (n % 2))
                    confirmed.add(handle.job_id)
                except EnqueueError:  # while a queue has no leader, the broker refuses at once
                    await asyncio.sleep(0.1)
                n += 1

        async def have_all_run() -> bool:
            return confirmed <= {run.envelope.job_id for each in ran for run in each}

        async with Worker(apps[0]) as one, Worker(apps[1]) as other:

            async def both_consume() -> bool:
                return one.is_consuming and other.is_consuming

            producing = asyncio.create_task(produce())
            for death in range(deaths):
                node = cluster.nodes[death % 3]
                await each_runs_more(ran)
                await asyncio.to_thread(node.kill)
                await each_runs_more(ran)
                await eventually(both_consume)
                await asyncio.to_thread(node.start)
            is_over.set()
            await producing
            await eventually(have_all_run, within=LONG)
        await producer.close()

    assert len(confirmed) > 10 * deaths


async def each_runs_more(ran: list[Seen[Ran]]) -> None:
    """Both workers run new jobs."""
    for each in ran:
        await each.until(len(each) + 20, within=LONG)
