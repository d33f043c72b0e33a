"""A buffer sends what it was given in its order, once, and tells of each job that it could not."""

import asyncio
import json
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from amqpjobs import (
    App,
    BlockingClient,
    BufferFullError,
    EnqueueError,
    EnqueueTimeoutError,
    FlushError,
    UnroutableError,
    Worker,
)
from amqpjobs.envelope import Envelope
from amqpjobs.events import JobDropped, JobEnqueued
from amqpjobs.middleware import EnqueueNext
from tests.support.apps import Bench, Note, record, watch, work_queue
from tests.support.broker import Broker, eventually
from tests.support.process import our_threads


async def bound(app: App[Any], kind: type[Note]) -> None:
    """A queue that takes the kind, and no worker that empties it."""
    record(app, kind)
    async with Worker(app):
        pass


@asynccontextmanager
async def held_up(app: App[Any]) -> AsyncGenerator[asyncio.Event]:
    """Nothing is sent before the event is set."""
    gate = asyncio.Event()

    async def wait(envelope: Envelope, send: EnqueueNext) -> Envelope:
        await gate.wait()
        return await send(envelope)

    app.enqueue_middleware(wait)
    async with app:
        yield gate
        gate.set()


async def test_jobs_arrive_in_the_order_they_were_put_each_once(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    await bound(app, kind)
    told = watch(app.events, JobEnqueued)

    async with app, app.buffer() as buffer:
        handles = [buffer.enqueue(kind(n=n)) for n in range(1_000)]
        waiting = len(buffer)
        await buffer.flush(30)
        left = len(buffer)

    letters = await broker.take(work_queue(app), 1_000)
    assert (waiting, left) == (1_000, 0)
    assert [json.loads(letter.body)["n"] for letter in letters] == list(range(1_000))
    assert [letter.text("amqpjobs-id") for letter in letters] == [handle.job_id for handle in handles]
    assert len(told) == 1_000
    assert await broker.count(work_queue(app)) == 0


async def test_jobs_are_sent_without_anybody_waiting_for_them(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    ran = record(app, kind)

    async with Worker(app), app.buffer() as buffer:
        buffer.enqueue(kind(n=1))
        await ran.until(1)
        buffer.enqueue(kind(n=2), max_attempts=3)
        await ran.until(2)

        assert [run.n for run in ran] == [1, 2]
        assert ran[1].envelope.max_attempts == 3


async def test_what_a_handler_puts_has_its_job_as_parent(bench: Bench) -> None:
    app, first, second = bench.app(), bench.kind(), bench.kind()
    ran = record(app, second)

    async with Worker(app), app.buffer() as buffer:

        async def handle(job: Note) -> None:
            buffer.enqueue(second())

        app.handler(first)(handle)
        buffer.enqueue(second())
        await ran.until(1)
        assert ran[0].envelope.parent is None

    async with app.buffer() as buffer, Worker(app):
        parent = await app.enqueue(first())
        await ran.until(2)

    assert ran[1].envelope.parent == parent.job_id


async def test_a_full_buffer_refuses_and_takes_again_when_there_is_room(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    await bound(app, kind)

    async with held_up(app) as gate, app.buffer(limit=10) as buffer:
        for _ in range(10):
            buffer.enqueue(kind())
        with pytest.raises(BufferFullError, match="10 jobs") as caught:
            buffer.enqueue(kind())
        gate.set()
        await buffer.flush()
        buffer.enqueue(kind())

    assert isinstance(caught.value, EnqueueError)
    assert caught.value.waiting == 10
    assert await broker.count(work_queue(app)) == 11


async def test_a_job_that_nobody_takes_is_dropped_and_told_and_holds_up_nobody(bench: Bench, broker: Broker) -> None:
    app, kind, nobody = bench.app(), bench.kind(), bench.kind()
    await bound(app, kind)
    dropped = watch(app.events, JobDropped)

    async with app, app.buffer() as buffer:
        handles = [buffer.enqueue(each()) for each in (kind, nobody, kind)]
        with pytest.raises(FlushError) as caught:
            await buffer.flush(30)
        await buffer.flush()  # told once

    (error,) = caught.value.errors
    assert isinstance(error, UnroutableError)
    assert error.job_id == handles[1].job_id
    assert [each.envelope.job_id for each in dropped] == [error.job_id]
    assert await broker.count(work_queue(app)) == 2


async def test_a_job_that_nobody_takes_yet_is_parked_where_that_is_wanted(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()

    async with app, app.buffer() as buffer:
        handle = buffer.enqueue(kind(n=1), on_unroutable="park")
        await buffer.flush(30)
        ran = record(app, kind)
        async with Worker(app):
            await ran.until(1)

    assert ran[0].envelope.job_id == handle.job_id


async def test_delay_and_expires_count_from_the_put(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    ran = record(app, kind)

    async with Worker(app), held_up(app) as gate, app.buffer() as buffer:
        before = datetime.now(UTC)
        buffer.enqueue(kind(), delay=1, expires=60)
        after = datetime.now(UTC)
        await until(before + timedelta(seconds=0.3))
        gate.set()
        (run,) = await ran.until(1)

    rounding = timedelta(milliseconds=1)
    assert run.envelope.run_at is not None
    assert run.envelope.expires_at is not None
    assert before - rounding <= run.envelope.run_at - timedelta(seconds=1) <= after + rounding
    assert before - rounding <= run.envelope.expires_at - timedelta(seconds=60) <= after + rounding
    assert run.lateness >= 0


async def test_a_job_that_expired_while_it_waited_is_dropped_and_told(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    await bound(app, kind)
    dropped = watch(app.events, JobDropped)

    async with held_up(app) as gate, app.buffer() as buffer:
        buffer.enqueue(kind(n=1))
        old = buffer.enqueue(kind(n=2), expires=0.1)
        buffer.enqueue(kind(n=3))
        await until(datetime.now(UTC) + timedelta(seconds=0.2))
        gate.set()
        with pytest.raises(FlushError, match="expired while it waited") as caught:
            await buffer.flush(30)

    letters = await broker.take(work_queue(app), 2)
    assert [each.job_id for each in caught.value.errors] == [old.job_id]
    assert [each.envelope.job_id for each in dropped] == [old.job_id]
    assert [json.loads(letter.body)["n"] for letter in letters] == [1, 3]


async def test_the_end_of_the_block_tells_what_was_not_confirmed(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    await bound(app, kind)

    async with held_up(app):
        with pytest.raises(FlushError, match="never sent") as caught:
            async with app.buffer(timeout=0.2) as buffer:
                buffer.enqueue(kind(), job_id="mine")

    assert [each.job_id for each in caught.value.errors] == ["mine"]
    assert isinstance(caught.value.errors[0], EnqueueTimeoutError)
    assert await broker.count(work_queue(app)) == 0


async def test_an_app_that_is_closed_meanwhile_connects_again(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    await bound(app, kind)

    async with app.buffer(timeout=30) as buffer:
        for n in range(5):
            buffer.enqueue(kind(n=n))
            await app.close()

    assert await broker.count(work_queue(app)) == 5


# From threads


async def test_threads_share_a_buffer(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    await bound(app, kind)
    before = our_threads()

    async def have_ended() -> bool:
        return set(our_threads()) <= set(before)

    def script() -> list[str]:
        with BlockingClient(app) as client, client.buffer() as buffer, ThreadPoolExecutor(8) as pool:
            puts = [pool.submit(buffer.enqueue, kind(n=n)) for n in range(400)]
            ids = [put.result().job_id for put in puts]
            buffer.flush(30)
            assert len(buffer) == 0
            buffer.enqueue(kind(), job_id="last")
            return [*ids, "last"]

    ids = await asyncio.to_thread(script)

    letters = await broker.take(work_queue(app), 401)
    assert sorted(letter.text("amqpjobs-id") for letter in letters) == sorted(ids)
    assert await broker.count(work_queue(app)) == 0
    await eventually(have_ended)


async def test_a_thread_with_a_running_loop_may_put_and_not_flush(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    await bound(app, kind)
    client = BlockingClient(app)
    buffer = client.buffer()

    buffer.enqueue(kind())
    with pytest.raises(RuntimeError, match="to_thread"):
        buffer.flush()
    await asyncio.to_thread(buffer.close)
    await asyncio.to_thread(client.close)

    assert await broker.count(work_queue(app)) == 1


async def test_a_blocking_flush_tells_as_the_apps_own(bench: Bench) -> None:
    app, kind, nobody = bench.app(), bench.kind(), bench.kind()
    await bound(app, kind)

    def script() -> FlushError:
        with BlockingClient(app) as client, client.buffer() as buffer:
            buffer.enqueue(kind())
            buffer.enqueue(nobody(), job_id="mine")
            with pytest.raises(FlushError) as caught:
                buffer.flush(30)
            return caught.value

    error = await asyncio.to_thread(script)

    assert [(each.job_id, type(each)) for each in error.errors] == [("mine", UnroutableError)]


async def test_a_closed_blocking_buffer_takes_nothing_and_closes_twice(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()

    def script() -> None:
        with BlockingClient(app) as client:
            buffer = client.buffer()
            buffer.close()
            buffer.close()
            with pytest.raises(EnqueueError, match="closed"):
                buffer.enqueue(kind())

    await asyncio.to_thread(script)


async def test_a_blocking_buffer_outlives_the_end_of_its_clients_thread(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    await bound(app, kind)

    def script() -> None:
        client = BlockingClient(app)
        with client.buffer(timeout=30) as buffer:
            for n in range(20):
                buffer.enqueue(kind(n=n))
                client.close()
        client.close()

    await asyncio.to_thread(script)

    assert await broker.count(work_queue(app)) == 20


async def until(time: datetime) -> None:
    """Let that time pass."""

    async def has_passed() -> bool:
        return datetime.now(UTC) >= time

    await eventually(has_passed)
