"""A work queue is deleted under its workers. They make it again, and all that was confirmed is accounted for:
it has run, it died with the queue, or it waits in `unroutable` and comes back by a command."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from amqpjobs import JobContext, Retry, Worker
from amqpjobs.events import ConnectionOpened, JobEnded
from amqpjobs.outcome import Retrying
from tests.conftest import MakeNode
from tests.scenarios.conftest import BenchOn, until_all_ran, until_enqueued
from tests.support.apps import NAMESPACE, Bench, Note, Ran, record, watch, work_queue
from tests.support.broker import eventually
from tests.support.faults import FaultyProxy
from tests.support.length import is_full
from tests.support.terminal import Terminal

ROUNDS = 10 if is_full() else 2
#: Seconds until a retry: longer than a machine stands still, for the queue must be gone before.
LATER = 12.0
#: Of each round: jobs that wait for their retry, jobs that run, and jobs that wait for a slot.
RETRIES, RUNNING, WAITING = 5, 7, 6


async def test_what_a_deleted_queue_held_is_accounted_for(
    make_node: MakeNode, bench_on: BenchOn, tmp_path: Path
) -> None:
    node = await asyncio.to_thread(make_node)
    async with bench_on(node) as bench, FaultyProxy(node.url).running() as proxy:
        app = bench.app(settings=bench.settings(url=proxy.url, reconnect_cap=1))
        producer, kind, broker = bench.app(), bench.kind(), bench.broker
        unroutable = app.topology.unroutable
        tried, gate = set[str](), asyncio.Event()
        confirmed, died = set[str](), set[str]()

        async def work(job: Note, context: JobContext[None]) -> None:
            if job.text == "hold":
                await gate.wait()
            if job.text == "retry" and context.job_id not in tried:
                tried.add(context.job_id)
                raise Retry("once more", delay=LATER)

        async def enqueue(text: str, count: int) -> set[str]:
            ids = {handle.job_id for handle in await producer.enqueue_many([kind(text=text)] * count)}
            confirmed.update(ids)
            return ids

        ran, ended = record(app, kind, work), watch(app.events, JobEnded)
        opened = watch(app.events, ConnectionOpened)

        def ran_ids() -> set[str]:
            return {run.envelope.job_id for run in ran}

        def retrying_ids() -> set[str]:
            return {each.envelope.job_id for each in ended if isinstance(each.outcome, Retrying)}

        async with Worker(app, concurrency=RUNNING) as worker:
            for _ in range(ROUNDS):
                gate.clear()
                retried = await enqueue("retry", RETRIES)
                await until_all_ran(retried, retrying_ids)  # among what ends of the round before
                started = len(ran)
                held = await enqueue("hold", RUNNING + WAITING)
                await ran.until(started + RUNNING)

                await proxy.refuse()
                await broker.delete_queue(work_queue(app))
                died |= held - ran_ids()
                await broker.await_count(unroutable, RETRIES)
                gate.set()
                connections = len(opened)
                await proxy.accept()
                await opened.until(connections + 1)
                confirmed.add(await until_enqueued(producer, kind(text="after")))
                said = await type_command(bench, tmp_path, "amqpjobs dead requeue --place unroutable")
                assert f"{RETRIES} requeued of {RETRIES}" in said
                await until_all_ran(confirmed - died, ran_ids)
                await eventually(run_twice(ran, retried))
                assert await broker.count(unroutable) == 0
            running = worker.running

        await producer.close()
    assert len(died) == ROUNDS * WAITING
    assert confirmed == ran_ids() | died
    assert not ran_ids() & died
    assert running <= RUNNING


async def test_a_queue_deleted_again_and_again_under_two_workers_is_worked_on_each_time(
    make_node: MakeNode, bench_on: BenchOn
) -> None:
    node = await asyncio.to_thread(make_node)
    async with bench_on(node) as bench:
        first, kind, producer = bench.app(), bench.kind(), bench.app()
        second = bench.app(first.name)
        seen = [record(app, kind) for app in (first, second)]
        queue = work_queue(first)

        async def both_consume() -> bool:
            # Not told by what they opened: who is late at its declare may open twice.
            return await bench.broker.exists(queue) and await bench.broker.consumers(queue) == 2

        async with Worker(first), Worker(second):
            for _ in range(ROUNDS):
                await eventually(both_consume)
                await bench.broker.delete_queue(queue)
                await eventually(both_consume)
                handles = await producer.enqueue_many([kind() for _ in range(50)])
                ids = {handle.job_id for handle in handles}
                await until_all_ran(ids, lambda: {run.envelope.job_id for ran in seen for run in ran})
        await producer.close()


def run_twice(ran: Iterable[Ran], ids: set[str]) -> Callable[[], Awaitable[bool]]:
    """Whether each of these has run a second time."""

    async def have() -> bool:
        return sum(run.envelope.job_id in ids for run in ran) >= 2 * len(ids)

    return have


async def type_command(bench: Bench, folder: Path, command: str) -> str:
    """What it printed; it must end well."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AMQPJOBS_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    environment = clean | {"PATH": path, "AMQPJOBS_URL": bench.url, "AMQPJOBS_NAMESPACE": NAMESPACE, "COLUMNS": "200"}

    def run() -> str:
        with Terminal(command, folder, environment) as terminal:
            assert terminal.end() == 0, terminal.text
            return terminal.text

    return await asyncio.to_thread(run)
