"""The broker takes a job away that is held too long; that costs neither the worker nor the job."""

import asyncio

from amqpjobs import JobContext, Worker
from amqpjobs.events import ConnectionLost, ConnectionOpened, JobEnded
from tests.conftest import MakeNode
from tests.scenarios.conftest import BenchOn
from tests.support.apps import Note, record, watch, work_queue

#: The broker of these tests loses patience after 5 s, and looks every second. It takes away, too, what a process that
#: stands still for so long has ended, and no ack comes to it.
IMPATIENT = "[{rabbit, [{consumer_timeout, 5000}, {channel_tick_interval, 1000}]}]."


async def test_a_job_that_outlasts_the_brokers_patience_ends_once_and_others_run_meanwhile(
    make_node: MakeNode, bench_on: BenchOn
) -> None:
    node = await asyncio.to_thread(make_node, advanced=IMPATIENT)
    async with bench_on(node) as bench:
        app, kind = bench.app(settings=bench.settings(reconnect_cap=1)), bench.kind()
        gate = asyncio.Event()

        async def wait_if_long(job: Note, context: JobContext[None]) -> None:
            if job.text == "long":
                await gate.wait()

        ran = record(app, kind, wait_if_long)
        lost, opened = watch(app.events, ConnectionLost), watch(app.events, ConnectionOpened)
        ended = watch(app.events, JobEnded)
        async with Worker(app, concurrency=2):
            long = await app.enqueue(kind(text="long"))
            await lost.until(1)
            await opened.until(3)
            short = await app.enqueue_many(kind(n=n) for n in range(20))
            await ran.until(21)
            await lost.until(2)
            gate.set()
            await ended.until(21)
        assert await bench.broker.count(work_queue(app)) == 0

    runs = [run.envelope.job_id for run in ran]
    assert sorted(runs) == sorted([long.job_id, *(each.job_id for each in short)])
    assert {run.attempt for run in ran} == {1}
