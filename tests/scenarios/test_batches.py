"""A connection that is lost while a batch collects."""

import asyncio

from amqpjobs import Batch, Worker
from amqpjobs.events import ConnectionOpened, JobEnded
from tests.conftest import MakeNode
from tests.contract.test_batches import NEVER, record_batches
from tests.scenarios.conftest import BenchOn, control
from tests.support.apps import watch, work_queue
from tests.support.broker import plain_client


async def test_what_was_collected_on_a_lost_connection_is_collected_anew(
    make_node: MakeNode, bench_on: BenchOn
) -> None:
    node = await asyncio.to_thread(make_node)
    async with bench_on(node) as bench:
        app, kind, producer = bench.app(), bench.kind(), bench.app()
        ran, ended = record_batches(app, kind, Batch(size=4, seconds=NEVER)), watch(app.events, JobEnded)
        opened = watch(app.events, ConnectionOpened)

        async with Worker(app):
            await producer.enqueue_many([kind(n=n) for n in range(3)])
            await bench.broker.await_count(work_queue(app), 0)
            await control(node, "close_all_connections", "a test")
            await opened.until(4)
            async with plain_client(node.url) as broker:
                await broker.await_count(work_queue(app), 0)
            await producer.enqueue(kind(n=3), deadline=20)
            await ended.until(4)
        await producer.close()

    assert [sorted(batch) for batch in ran] == [[0, 1, 2, 3]]
