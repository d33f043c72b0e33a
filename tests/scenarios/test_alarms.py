"""A broker short of memory or disk takes no publications. Nobody hangs, nobody reconnects, nothing is lost."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from amqpjobs import App, EnqueueError, EnqueueTimeoutError, JobContext, Retry, Worker
from amqpjobs.events import ConnectionBlocked, ConnectionLost, ConnectionUnblocked
from tests.conftest import MakeNode
from tests.scenarios.conftest import BenchOn, control, until_all_ran
from tests.support.apps import Bench, Note, record, watch
from tests.support.broker import PATIENCE, eventually, plain_client
from tests.support.faults import FaultyProxy
from tests.support.length import is_full
from tests.support.process import state_of_process
from tests.support.rabbitmq import Node

ALARM = 60.0 if is_full() else 5.0


async def test_who_enqueues_while_the_broker_blocks_is_told_so_and_the_connection_stays(
    url: str, unique: Callable[[], str]
) -> None:
    async with plain_client(url) as client, FaultyProxy(url).running() as proxy:
        bench = Bench(url, unique, client)
        app, kind = bench.app(), bench.kind()
        producer = bench.app(settings=bench.settings(url=proxy.url, connect_timeout=PATIENCE))
        ran, lost = record(app, kind), watch(producer.events, ConnectionLost)
        blocked, unblocked = watch(producer.events, ConnectionBlocked), watch(producer.events, ConnectionUnblocked)
        async with Worker(app):
            await producer.enqueue(kind(n=1))
            proxy.forge_blocked("low on memory")
            await blocked.until(1)
            proxy.forge_blocked("low on memory")
            with pytest.raises(EnqueueTimeoutError, match=r"short of memory or disk \(low on memory\)") as late:
                await producer.enqueue(kind(n=2), deadline=1.5)
            published = proxy.to_broker["basic.publish"]
            waiting = asyncio.create_task(producer.enqueue(kind(n=3), deadline=PATIENCE))
            await asyncio.wait([waiting], timeout=0.2)
            was_done = waiting.done()
            proxy.forge_unblocked()
            handle = await waiting
            await ran.until(2)
        await bench.close()

    assert "queued or not" in str(late.value)
    assert (published, was_done) == (1, False)
    assert handle.job_id == ran[1].envelope.job_id
    assert [run.n for run in ran] == [1, 3]
    assert [each.reason for each in blocked] == ["low on memory"]
    assert [each.seconds > 1 for each in unblocked] == [True]
    assert list(lost) == []


async def test_a_blocked_connection_that_is_lost_holds_up_nobody(url: str, unique: Callable[[], str]) -> None:
    async with plain_client(url) as client, FaultyProxy(url).running() as proxy:
        bench = Bench(url, unique, client)
        app, kind = bench.app(), bench.kind()
        producer = bench.app(settings=bench.settings(url=proxy.url))
        ran, blocked = record(app, kind), watch(producer.events, ConnectionBlocked)
        async with Worker(app):
            await producer.enqueue(kind(n=1))
            proxy.forge_blocked()
            await blocked.until(1)
            waiting = asyncio.create_task(producer.enqueue(kind(n=2), deadline=PATIENCE))
            await asyncio.wait([waiting], timeout=0.2)
            proxy.cut()
            await waiting
            await ran.until(2)
        await bench.close()

    assert [run.n for run in ran] == [1, 2]


async def test_nothing_confirmed_is_lost_through_a_memory_alarm(make_node: MakeNode, bench_on: BenchOn) -> None:
    node = await asyncio.to_thread(make_node)
    async with bench_on(node) as bench:
        patient = bench.settings(connect_timeout=PATIENCE)
        app, kind, producer = bench.app(settings=patient), bench.kind(), bench.app(settings=patient)
        lost = [watch(each.events, ConnectionLost) for each in (app, producer)]
        blocked = [watch(each.events, ConnectionBlocked) for each in (app, producer)]
        unblocked = [watch(each.events, ConnectionUnblocked) for each in (app, producer)]
        confirmed, refused = set[str](), list[EnqueueError]()

        async def fail_first(job: Note, context: JobContext[None]) -> None:
            if job.text == "wait" and context.attempt == 1:
                await gate.wait()
            if context.attempt == 1 and job.n % 3 == 0:
                raise Retry("once more", delay=0.1)

        async def produce(n: int, deadline: float = PATIENCE) -> None:
            try:
                confirmed.add((await producer.enqueue(kind(n=n), deadline=deadline)).job_id)
            except EnqueueError as error:
                refused.append(error)

        gate, ran = asyncio.Event(), record(app, kind, fail_first)
        async with Worker(app):
            await asyncio.gather(*(produce(n) for n in range(100)))
            await until_all_ran(confirmed, lambda: {run.envelope.job_id for run in ran if is_last(run.n, run.attempt)})
            before = len(ran)
            confirmed.add((await producer.enqueue(kind(n=0, text="wait"), deadline=PATIENCE)).job_id)
            await ran.until(before + 1)
            async with memory_alarm(node):
                await close_while_blocked(bench.app(settings=patient), kind)
                gate.set()
                await until_told(producer, kind)
                await asyncio.gather(*(produce(n, deadline=2) for n in range(100, 200)))
                await blocked[0].until(1)  # it retries the job that waited
                await asyncio.sleep(ALARM - 2)
            await asyncio.gather(*(each.until(1) for each in unblocked))
            await asyncio.gather(*(produce(n) for n in range(200, 300)))
            await until_all_ran(confirmed, lambda: {run.envelope.job_id for run in ran if is_last(run.n, run.attempt)})
        await producer.close()

    assert (len(confirmed), len(refused)) == (201, 100)
    assert all("low on memory" in str(each) for each in refused)
    assert [len(each) for each in blocked] == [1, 1]
    assert [list(each) for each in lost] == [[], []]


async def close_while_blocked(app: App[None], job: type[Note]) -> None:
    """A broker that blocks a connection does not even read that it is closed."""
    before, blocked = state_of_process(), watch(app.events, ConnectionBlocked)
    await until_told(app, job)
    await app.close()

    async def is_closed() -> bool:
        return all(now <= then for now, then in zip(state_of_process(), before, strict=True))

    await eventually(is_closed)
    assert len(blocked) == 1


async def until_told(app: App[None], job: type[Note]) -> None:
    """Until errors say why nothing is taken. A broker tells a publisher only what it makes of its first publication."""

    async def is_told() -> bool:
        with pytest.raises(EnqueueTimeoutError) as late:
            await app.enqueue(job(), deadline=2)
        return "low on memory" in str(late.value)

    await eventually(is_told)


def is_last(n: int, attempt: int) -> bool:
    return attempt == (2 if n % 3 == 0 else 1)


@asynccontextmanager
async def memory_alarm(node: Node) -> AsyncGenerator[None]:
    """The broker thinks that it uses too much memory."""
    await control(node, "set_vm_memory_high_watermark", "0.00001")
    try:
        yield
    finally:
        await control(node, "set_vm_memory_high_watermark", "0.6")
