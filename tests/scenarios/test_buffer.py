"""A buffer through a broker that is stopped, a network that is cut, forks, and the end of the interpreter."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from amqpjobs import BlockingClient, BufferFullError, FlushError, Worker
from amqpjobs.events import ConnectionLost, JobDropped
from tests.conftest import MakeNode
from tests.scenarios.conftest import BenchOn, control
from tests.support import enqueuers
from tests.support.apps import record, watch, work_queue
from tests.support.broker import PATIENCE, eventually, plain_client
from tests.support.ledger import open_ledger
from tests.support.rabbitmq import HOST, free_ports

ROOT = Path(__file__).parents[2]
COUNT = 500


async def test_jobs_put_while_the_broker_is_stopped_arrive_once_in_their_order_when_it_is_back(
    make_node: MakeNode, bench_on: BenchOn
) -> None:
    node = await asyncio.to_thread(make_node)
    async with bench_on(node) as bench:
        app, kind = bench.app(settings=bench.settings(reconnect_cap=1)), bench.kind()
        record(app, kind)
        async with Worker(app):
            pass
    lost = watch(app.events, ConnectionLost)
    async with app, app.buffer(limit=COUNT, timeout=4 * PATIENCE) as buffer:
        first = buffer.enqueue(kind(n=0))
        await buffer.flush(PATIENCE)
        await asyncio.to_thread(node.stop)
        await lost.until(1)
        handles = [buffer.enqueue(kind(n=n)) for n in range(1, COUNT + 1)]
        with pytest.raises(BufferFullError, match="No connection to the broker") as full:
            buffer.enqueue(kind())
        with pytest.raises(FlushError, match="No connection to the broker") as late:
            await buffer.flush(0.5)
        await asyncio.to_thread(node.start)
        await buffer.flush(4 * PATIENCE)
    async with plain_client(node.url) as broker:
        letters = await broker.take(work_queue(app), COUNT + 1, within=2 * PATIENCE)
        left = await broker.count(work_queue(app))

    assert full.value.waiting == COUNT
    assert [each.job_id for each in late.value.errors] == [handle.job_id for handle in handles]
    assert [json.loads(letter.body)["n"] for letter in letters] == list(range(COUNT + 1))
    assert [letter.text("amqpjobs-id") for letter in letters] == [each.job_id for each in [first, *handles]]
    assert left == 0
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("amqpjobs")] == []


async def test_a_broker_that_cuts_connections_and_stops_among_puts_loses_none(
    make_node: MakeNode, bench_on: BenchOn
) -> None:
    node = await asyncio.to_thread(make_node)
    async with bench_on(node) as bench:
        app, kind = bench.app(settings=bench.settings(reconnect_cap=1)), bench.kind()
        record(app, kind)
        async with Worker(app):
            pass
    dropped, ids, is_over = watch(app.events, JobDropped), list[str](), asyncio.Event()

    async with app, app.buffer(timeout=4 * PATIENCE) as buffer:

        async def put() -> None:
            while not is_over.is_set():
                ids.extend(buffer.enqueue(kind()).job_id for _ in range(5) if len(buffer) < 2_000)
                await asyncio.sleep(0.05)

        putting = asyncio.create_task(put())
        for _ in range(3):
            await control(node, "close_all_connections", "a test")
            await buffer.flush(PATIENCE)
        await asyncio.to_thread(node.stop)
        await asyncio.to_thread(node.start)
        await buffer.flush(2 * PATIENCE)
        await app.close()  # in the midst of sending
        is_over.set()
        await putting
    arrived, wanted = Counter[str](), set(ids) - {each.envelope.job_id for each in dropped}
    async with plain_client(node.url) as broker:

        async def have_all() -> bool:
            # A count may be of a moment ago, and 0 of a queue that does not answer in time.
            letters = await broker.take(work_queue(app), await broker.count(work_queue(app)), within=4 * PATIENCE)
            arrived.update(letter.text("amqpjobs-id") for letter in letters)
            return arrived.keys() >= wanted and not letters

        await eventually(have_all, within=4 * PATIENCE)

    assert arrived.keys() == wanted
    assert list(dropped) == []
    assert max(arrived.values()) <= 6  # only what was under way at one of five faults is repeated


async def test_jobs_put_while_the_broker_blocks_publishers_arrive_once_when_it_no_longer_does(
    make_node: MakeNode, bench_on: BenchOn
) -> None:
    node = await asyncio.to_thread(make_node)
    async with bench_on(node) as bench:
        app, kind = bench.app(), bench.kind()
        record(app, kind)
        async with Worker(app):
            pass
        async with app, app.buffer(limit=50, timeout=4 * PATIENCE) as buffer:
            await control(node, "set_vm_memory_high_watermark", "0.0000001")
            handles = [buffer.enqueue(kind()) for _ in range(50)]

            async def is_told() -> bool:
                with pytest.raises(FlushError) as late:
                    await buffer.flush(1)
                return "short of" in str(late.value)

            await eventually(is_told)
            with pytest.raises(BufferFullError, match="short of"):
                buffer.enqueue(kind())
            await control(node, "set_vm_memory_high_watermark", "0.9")
        await bench.broker.await_count(work_queue(app), 50)
        letters = await bench.broker.take(work_queue(app), 50)

    assert [letter.text("amqpjobs-id") for letter in letters] == [handle.job_id for handle in handles]


async def test_threads_put_while_the_broker_is_stopped(make_node: MakeNode, bench_on: BenchOn) -> None:
    node = await asyncio.to_thread(make_node)
    async with bench_on(node) as bench:
        app, kind = bench.app(settings=bench.settings(reconnect_cap=1)), bench.kind()
        record(app, kind)
        async with Worker(app):
            pass

    def script() -> list[str]:
        node.stop()
        with BlockingClient(app) as client, client.buffer(limit=COUNT, timeout=4 * PATIENCE) as buffer:
            ids = [buffer.enqueue(kind()).job_id for _ in range(COUNT)]
            with pytest.raises(BufferFullError):
                buffer.enqueue(kind())
            node.start()
            buffer.flush(4 * PATIENCE)
        return ids

    ids = await asyncio.to_thread(script)
    async with plain_client(node.url) as broker:
        letters = await broker.take(work_queue(app), COUNT, within=2 * PATIENCE)

    assert [letter.text("amqpjobs-id") for letter in letters] == ids


async def test_the_end_of_the_interpreter_sends_what_waits(url: str, unique: Callable[[], str]) -> None:
    async with open_ledger(url, unique) as ledger:
        said, complaint = await asyncio.to_thread(run_program, "buffer_at_exit", url, ledger.kind)
        arrived = await ledger.arrived(len(said))

    assert len(said) == enqueuers.BUFFERED
    assert arrived == said
    assert complaint == ""


def test_the_end_of_the_interpreter_says_what_it_could_not_send() -> None:
    (port,) = free_ports(1)

    said, complaint = run_program("buffer_at_exit", f"amqp://guest:guest@{HOST}:{port}/", "nobody")

    assert len(said) == enqueuers.BUFFERED
    assert f"{enqueuers.BUFFERED} jobs of the buffer are not confirmed: {said[0]}" in complaint
    assert str(port) in complaint


async def test_a_forked_child_has_an_empty_buffer_and_the_parent_sends_its_own(
    url: str, unique: Callable[[], str]
) -> None:
    async with open_ledger(url, unique) as ledger:
        said, _ = await asyncio.to_thread(run_program, "fork_with_a_buffer", url, ledger.kind)
        arrived = await ledger.arrived(len(said))

    assert len(said) > enqueuers.BUFFERED
    assert sorted(arrived) == sorted(said)


def run_program(name: str, url: str, kind: str) -> tuple[list[str], str]:
    """The ids of what it put, and what it complained of."""
    ran = subprocess.run(
        [sys.executable, "-W", "always", "-m", enqueuers.__name__, name],
        cwd=ROOT,
        env=enqueuers.environment(url, kind),
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines = (line.split() for line in ran.stdout.splitlines())
    return [rest for word, rest in lines if word == "id"], ran.stderr
