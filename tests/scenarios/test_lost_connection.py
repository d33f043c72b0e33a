"""Connections get lost; what was confirmed runs all the same."""

import asyncio
import time
from contextlib import suppress

import pytest

from amqpjobs import BrokerUnavailableError, EnqueueError, EnqueueTimeoutError, JobContext, Worker
from amqpjobs.events import ConnectionLost, ConnectionOpened, JobEnded
from tests.conftest import MakeNode
from tests.scenarios.conftest import BenchOn, control, until_all_ran, until_enqueued
from tests.support.apps import Bench, Note, record, watch, work_queue
from tests.support.broker import PATIENCE, Broker, plain_client
from tests.support.proxy import Proxy
from tests.support.rabbitmq import free_ports


async def test_enqueue_says_in_time_that_no_broker_answers() -> None:
    (port,) = free_ports(1)
    bench = Bench(f"amqp://guest:guest@127.0.0.1:{port}/", lambda: "nobody", Broker.__new__(Broker))
    app, kind = bench.app(), bench.kind("nobody")

    started = time.monotonic()
    with pytest.raises(EnqueueTimeoutError) as caught:
        await app.enqueue(kind(), deadline=0.7)
    took = time.monotonic() - started
    await app.close()

    assert 0.6 < took < PATIENCE
    assert "within 0.7 s" in str(caught.value)
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "guest:guest" not in str(caught.value)


async def test_a_worker_with_the_default_url_says_at_once_that_no_broker_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (port,) = free_ports(1)
    url = f"amqp://guest:guest@127.0.0.1:{port}/"
    monkeypatch.setattr("amqpjobs.settings.DEFAULT_URL", url)
    bench = Bench(url, lambda: "nobody", Broker.__new__(Broker))
    app = bench.app()

    with pytest.raises(BrokerUnavailableError, match=str(port)):
        async with Worker(app):
            pass


async def test_a_wrong_password_is_said_and_not_waited_for(url: str) -> None:
    bench = Bench(url.replace("guest:guest", "guest:wrong"), lambda: "nobody", Broker.__new__(Broker))
    app, kind = bench.app(), bench.kind("nobody")

    started = time.monotonic()
    with pytest.raises(EnqueueError, match="refused us") as caught:
        await app.enqueue(kind(), deadline=10 * PATIENCE)
    await app.close()

    assert time.monotonic() - started < 2 * PATIENCE
    assert "AMQPJOBS_URL" in str(caught.value)
    assert "wrong" not in str(caught.value)


async def test_a_worker_whose_connections_are_closed_consumes_again(make_node: MakeNode, bench_on: BenchOn) -> None:
    node = await asyncio.to_thread(make_node)
    async with bench_on(node) as bench:
        app, kind, producer = bench.app(), bench.kind(), bench.app()
        ran = record(app, kind)
        opened, lost = watch(app.events, ConnectionOpened), watch(app.events, ConnectionLost)
        confirmed = set[str]()
        is_over = asyncio.Event()

        async def produce() -> None:
            while not is_over.is_set():
                with suppress(EnqueueError):
                    handle = await producer.enqueue(kind(), deadline=20)
                    confirmed.add(handle.job_id)
                await asyncio.sleep(0.01)

        async with Worker(app, concurrency=5) as worker:
            producing = asyncio.create_task(produce())
            for round_ in range(3):
                await ran.until(len(ran) + 20)
                await control(node, "close_all_connections", "a test")
                await opened.until(2 * (round_ + 2))
            await ran.until(len(ran) + 20)
            is_over.set()
            await producing
            await until_all_ran(confirmed, lambda: {run.envelope.job_id for run in ran})
            is_consuming = worker.is_consuming
        await producer.close()

    assert len(lost) >= 6
    assert is_consuming


async def test_a_broker_that_restarts_loses_no_confirmed_job(make_node: MakeNode, bench_on: BenchOn) -> None:
    node = await asyncio.to_thread(make_node)
    async with bench_on(node) as bench:
        settings = bench.settings(reconnect_cap=1)
        app, kind = bench.app(settings=settings), bench.kind()
        producer = bench.app(settings=settings)

        async def fail_first(job: Note, context: JobContext[None]) -> None:
            if context.attempt == 1 and job.n % 5 == 0:
                raise ValueError("no")

        ended, lost = watch(app.events, JobEnded), watch(app.events, ConnectionLost)
        ran = record(app, kind, fail_first)
        async with Worker(app, concurrency=5):
            handles = await producer.enqueue_many([kind(n=n) for n in range(100)])
            handles += await producer.enqueue_many([kind(n=n) for n in range(100, 150)], delay=1)
            await ended.until(20)
            await asyncio.to_thread(node.stop)
            with pytest.raises(EnqueueTimeoutError):
                await producer.enqueue(kind(), deadline=0.5)
            await asyncio.to_thread(node.start)
            handles.append(await producer.enqueue(kind(n=150), deadline=60))
            wanted = {handle.job_id for handle in handles}
            await until_all_ran(wanted, lambda: {run.envelope.job_id for run in ran})
        await producer.close()

    assert list(lost)


async def test_a_job_whose_channel_is_lost_while_it_runs_is_settled_on_the_next_one(
    make_node: MakeNode, bench_on: BenchOn
) -> None:
    node = await asyncio.to_thread(make_node)
    async with bench_on(node) as bench:
        app, kind = bench.app(), bench.kind()
        gate = asyncio.Event()

        async def wait_once(job: Note, context: JobContext[None]) -> None:
            if len(ran) == 1:
                await gate.wait()

        ran, ended = record(app, kind, wait_once), watch(app.events, JobEnded)
        opened = watch(app.events, ConnectionOpened)
        async with Worker(app):
            handle = await app.enqueue(kind())
            await ran.until(1)
            await control(node, "close_all_connections", "a test")
            await opened.until(4)
            gate.set()
            await ended.until(1)

        assert [(run.envelope.job_id, run.attempt) for run in ran] == [(handle.job_id, 1)]
        assert len(ended) == 1
        async with plain_client(node.url) as client:
            assert await client.count(work_queue(app)) == 0


async def test_a_queue_deleted_under_a_worker_is_made_again(make_node: MakeNode, bench_on: BenchOn) -> None:
    node = await asyncio.to_thread(make_node)
    async with bench_on(node) as bench:
        app, kind = bench.app(), bench.kind()
        ran, lost = record(app, kind), watch(app.events, ConnectionLost)
        opened = watch(app.events, ConnectionOpened)
        async with Worker(app):
            await app.enqueue(kind(n=1))
            await ran.until(1)
            await bench.broker.delete_queue(work_queue(app))
            await opened.until(3)
            await until_enqueued(app, kind(n=2))
            await ran.until(2)

    assert "cancelled the consumer" in str(lost[0].error)


async def test_an_app_can_be_closed_at_any_moment_of_its_opening(url: str) -> None:
    async with plain_client(url) as client, Proxy(url).running() as proxy:
        for moment in range(60):
            bench = Bench(proxy.url, lambda: "opening", client)
            app, kind = bench.app(), bench.kind("opening")
            enqueuing = asyncio.create_task(app.enqueue(kind(), deadline=20))
            await asyncio.sleep(moment / 2_000)

            async with asyncio.timeout(PATIENCE):
                await app.close()

            with pytest.raises(EnqueueError):
                await enqueuing
