"""Results between processes of which some die, and through brokers that restart."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import pytest

from amqpjobs import App, JobContext, RefusedError, ResultTimeoutError, Worker
from amqpjobs.events import ConnectionLost, JobEnded, MailboxOpened
from amqpjobs.permissions import Permissions, calling_permissions, producer_permissions
from amqpjobs.topology import Topology
from tests.conftest import MakeNode
from tests.scenarios.conftest import BenchOn, control
from tests.scenarios.test_permissions import make_users, url_of, without
from tests.support.adders import Adders, AddUp, adder
from tests.support.apps import NAMESPACE, watch, work_queue
from tests.support.broker import PATIENCE, Broker, eventually
from tests.support.length import is_full
from tests.support.rabbitmq import Cluster, Node

TOPOLOGY = Topology(NAMESPACE)
CALLS = 100_000 if is_full() else 2_000
#: Callers that are killed together.
KILLED = 5
MEGABYTE = 1_000_000
#: A cluster that lost a node needs a while.
LONG = 4 * PATIENCE


@pytest.fixture
async def adders(url: str, unique: Callable[[], str], tmp_path: Path, broker: Broker) -> AsyncGenerator[Adders]:
    adders = Adders(url, unique(), tmp_path)
    yield adders
    await broker.delete_queue(TOPOLOGY.work_queue(adders.name))
    await broker.delete_queue(TOPOLOGY.dead_queue(adders.name))


async def test_a_result_goes_from_one_process_to_another(adders: Adders) -> None:
    async with adders.worker(), adders.caller(numbers=[1, 2, 3]) as caller:
        answer = await caller.says("result")

    assert answer["result"] == 6


async def test_callers_that_are_killed_leave_no_queue_and_no_job_behind(
    make_node: MakeNode, bench_on: BenchOn, unique: Callable[[], str], tmp_path: Path
) -> None:
    node = await asyncio.to_thread(make_node)
    adders = Adders(node.url, unique(), tmp_path)
    async with bench_on(node) as bench, adders.worker() as worker:
        for _ in range(KILLED):
            async with adders.caller(numbers=[1], mark="go", settings={"reply_expires": 1}) as caller:
                await caller.says("enqueued")
                await worker.says("started")
                await caller.kill()
        await eventually(lambda: has_no_reply_queue(node))

        adders.touch("go")
        undelivered = [await worker.says("undelivered") for _ in range(KILLED)]
        await eventually(lambda: has_ended(worker.lines))
        await bench.broker.await_count(TOPOLOGY.work_queue(adders.name), 0)

    assert {each["why"] for each in undelivered} == {"its caller is gone"}


async def has_no_reply_queue(node: Node) -> bool:
    return ".replies." not in await control(node, "list_queues", "name")


async def has_ended(lines: list[dict[str, object]]) -> bool:
    """Whether as many were acked as began. The last line may be still to come."""
    return sum(each["say"] == "undelivered" for each in lines) == KILLED


async def test_a_worker_that_is_killed_amid_the_job_costs_no_result(adders: Adders) -> None:
    async with adders.worker() as first, adders.caller(numbers=[4, 5], mark="go") as caller:
        await caller.says("enqueued")
        await first.says("started")
        async with adders.worker() as second:
            await first.kill()
            await second.says("started")
            adders.touch("go")
            answer = await caller.says("result")
            await second.says("ended")

    assert answer["result"] == 9
    assert [each["say"] for each in caller.lines].count("result") == 1


async def test_an_answer_survives_a_restart_of_the_broker(
    make_node: MakeNode, bench_on: BenchOn, unique: Callable[[], str]
) -> None:
    node = await asyncio.to_thread(make_node)
    async with bench_on(node):
        (app, kind), (caller, _) = (adder(name, node.url, reconnect_cap=1) for name in [unique()] * 2)
        started, gate = asyncio.Event(), asyncio.Event()

        @app.handler(kind)
        async def add(job: AddUp, context: JobContext[None]) -> int:
            started.set()
            await gate.wait()
            return sum(job.numbers)

        opened, lost = watch(caller.events, MailboxOpened), watch(caller.events, ConnectionLost)
        async with Worker(app), caller:
            handle = await caller.enqueue(kind(numbers=[1, 2]), reply=True)
            await started.wait()
            await asyncio.to_thread(node.stop)
            await lost.until(1)
            gate.set()
            await asyncio.to_thread(node.start)
            result = await handle.result(timeout=120)
            await opened.until(2)

    assert result == 3
    assert len({each.queue for each in opened}) == 1


async def test_a_caller_whose_node_dies_with_its_queue_calls_by_another_one(
    make_cluster: Callable[[], Cluster], unique: Callable[[], str]
) -> None:
    cluster, name = await asyncio.to_thread(make_cluster), unique()
    first, second, third = cluster.nodes
    app, kind = adder(name, third.url, heartbeat=2, reconnect_cap=1)
    caller, _ = adder(name, f"{first.url},{second.url}", heartbeat=2, reconnect_cap=1)
    started, gate = asyncio.Event(), asyncio.Event()
    opened, ended = watch(caller.events, MailboxOpened), watch(app.events, JobEnded)

    @app.handler(kind)
    async def add(job: AddUp, context: JobContext[None]) -> int:
        if job.mark:
            started.set()
            await gate.wait()
        return sum(job.numbers)

    async with Worker(app), caller:
        lost = await caller.enqueue(kind(numbers=[1], mark="wait"), reply=True)
        await started.wait()
        await asyncio.to_thread(first.kill)
        await opened.until(2, within=LONG)
        gate.set()
        result = await caller.call(kind(numbers=[1, 2]), timeout=LONG, deadline=LONG)
        with pytest.raises(ResultTimeoutError):
            await lost.result(timeout=1)
        await ended.until(2, within=LONG)

    assert result == 3
    assert opened[0].queue != opened[1].queue


async def test_a_hundred_thousand_calls_take_one_queue_and_no_memory(
    make_node: MakeNode, unique: Callable[[], str], tmp_path: Path
) -> None:
    node = await asyncio.to_thread(make_node)
    adders = Adders(node.url, unique(), tmp_path)
    async with adders.worker() as worker, adders.caller(numbers=[1, 2], calls=CALLS) as caller:
        await eventually(lambda: has_one_reply_queue(node))
        before = worker.memory
        done = await caller.says("done", within=3_600)
        grown = worker.memory - before
        queues = await control(node, "list_queues", "name")

    sys.stdout.write(
        f"{CALLS} calls: caller grew by {done['growth'] / MEGABYTE:.1f} MB, worker by {grown / MEGABYTE:.1f} MB\n"
    )
    assert done["total"] == 3 * CALLS
    assert queues.count(".replies.") == 1
    assert done["growth"] < 10 * MEGABYTE
    assert grown < 20 * MEGABYTE  # it warms up in this time, too


async def has_one_reply_queue(node: Node) -> bool:
    return (await control(node, "list_queues", "name")).count(".replies.") == 1


async def test_who_calls_needs_what_is_printed_and_one_less_is_told(
    make_node: MakeNode, bench_on: BenchOn, unique: Callable[[], str]
) -> None:
    node, name = await asyncio.to_thread(make_node), unique()
    producing = producer_permissions(TOPOLOGY, [""], declares=False)
    calling = calling_permissions(TOPOLOGY)
    own = TOPOLOGY.reply_queue("*")
    lost = [("configure", own), ("write", own), ("read", own), ("read", TOPOLOGY.queues)]
    users: dict[str, Permissions] = {"caller": producing | calling, "producer": producing}
    users |= {f"without {what} on {place}": without(producing | calling, what, place) for what, place in lost}
    async with bench_on(node):
        app, kind = adder(name, node.url)

        @app.handler(kind)
        async def add(job: AddUp) -> int:
            return sum(job.numbers)

        def as_user(user: str) -> App[None]:
            return adder(name, url_of(node, user), declare=False)[0]

        async with Worker(app):
            await make_users(node, users)
            result = await called(as_user("caller"), lambda caller: caller.call(kind(numbers=[1, 2]), timeout=PATIENCE))
            told = {
                user: await refused(as_user(user), kind(numbers=[1])) for user in users if user.startswith("without")
            }
            await called(as_user("producer"), lambda producer: producer.enqueue(kind(numbers=[1])))
            refusal = await refused(as_user("producer"), kind(numbers=[1]))

    assert result == 3
    for (what, place), text in zip(lost, told.values(), strict=True):
        assert what in text
        assert place.removesuffix("*") in text
    assert "topology permissions" in refusal


async def called(app: App[None], call: Callable[[App[None]], Awaitable[object]]) -> object:
    async with app:
        return await call(app)


async def refused(app: App[None], job: AddUp) -> str:
    """Why it cannot call; it can go on enqueuing all the same, on the same connection."""
    lost, told = watch(app.events, ConnectionLost), list[str]()
    async with app:
        for _ in range(2):
            with pytest.raises(RefusedError) as caught:
                await app.call(job, timeout=PATIENCE)
            told.append(str(caught.value))
        await app.enqueue(job)
    assert len(lost) == 0
    return told[-1]


async def test_a_plain_producer_has_no_queue(adders: Adders, broker: Broker) -> None:
    app, kind = adder(adders.name, adders.url)
    opened = watch(app.events, MailboxOpened)

    async with adders.worker(), app:
        await app.enqueue_many([kind(numbers=[n]) for n in range(100)])
        await broker.await_count(work_queue(app), 0)

    assert len(opened) == 0
