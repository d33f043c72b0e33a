"""Declaring and not declaring: what is compared, what is only looked for, what is deleted."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from amqpjobs import App, EnqueueError, Queue, TopologyMismatchError, Worker
from amqpjobs.amqp.connection import Session, open_session
from amqpjobs.amqp.declare import Declarer
from amqpjobs.job import options_of
from amqpjobs.topology import Plan, Subscription
from tests.support.apps import Bench, dead_queue, record, work_queue
from tests.support.broker import Broker
from tests.support.clock import settle
from tests.support.faults import FaultyProxy, Way

#: As the proxy calls it.
CLOSE_OK = "method 20.41"


@asynccontextmanager
async def connected(app: App[None]) -> AsyncGenerator[tuple[Session, Declarer]]:
    session = await open_session(app.settings.urls[0], app.settings, "test")
    try:
        yield session, Declarer(app.topology, app.events)
    finally:
        await session.close()


async def declare(app: App[None]) -> None:
    async with connected(app) as (session, declarer):
        await declarer.prepare(session, app.plan(), declares=True)


async def test_who_is_cancelled_while_its_channel_closes_does_not_cost_the_others_their_connection(
    bench: Bench,
) -> None:
    async with FaultyProxy(bench.url).running() as proxy:
        app = bench.app(settings=bench.settings(url=proxy.url))
        async with connected(app) as (session, declarer):
            rule = proxy.hold(Way.FROM_BROKER, CLOSE_OK)
            looking = asyncio.create_task(declarer.exchange_exists(session, "amq.topic"))
            await rule.met()
            looking.cancel()
            await settle()
            proxy.release()
            await asyncio.wait([looking])

            assert looking.cancelled()
            assert await declarer.exchange_exists(session, "amq.topic")


async def test_with_declaring_off_a_worker_names_what_is_missing_and_makes_nothing(
    bench: Bench, broker: Broker
) -> None:
    app, kind = bench.app(settings=bench.settings(declare=False)), bench.kind()
    record(app, kind)
    await declare(bench.app())

    with pytest.raises(TopologyMismatchError) as caught:
        async with Worker(app):
            pass

    for part in (work_queue(app), dead_queue(app), "amqpjobs topology apply", "amqpjobs topology export"):
        assert part in str(caught.value)
    assert not await broker.exists(work_queue(app))


async def test_with_declaring_off_a_missing_exchange_of_others_is_named_and_not_made(bench: Bench) -> None:
    exchange = bench.unique()
    app = bench.app(settings=bench.settings(declare=False))
    record(app, bench.kind(exchange=exchange))
    await declare(bench.app())

    with pytest.raises(TopologyMismatchError, match=f"exchange '{exchange}'"):
        async with Worker(app):
            pass

    async with connected(app) as (session, declarer):
        assert not await declarer.exchange_exists(session, exchange)


async def test_with_declaring_off_a_producer_in_an_empty_namespace_says_what_to_do(bench: Bench) -> None:
    app = bench.app(settings=bench.settings(declare=False, namespace=bench.unique()))

    with pytest.raises(EnqueueError, match="amqpjobs topology apply") as caught:
        await app.enqueue(bench.kind()(), deadline=20)
    await app.close()

    assert app.topology.marker.name in str(caught.value)


async def test_with_declaring_off_jobs_run_where_others_have_declared(bench: Bench) -> None:
    app, kind = bench.app(settings=bench.settings(declare=False)), bench.kind()
    ran = record(app, kind)
    await declare(app)

    async with Worker(app):
        await app.enqueue(kind(n=1))
        await app.enqueue(kind(n=2), delay=0.1)
        runs = await ran.until(2)

    assert [run.n for run in runs] == [1, 2]


async def test_a_comparison_tells_what_is_missing_and_makes_nothing(bench: Bench, broker: Broker) -> None:
    app = bench.app()
    record(app, bench.kind(exchange=bench.unique()))
    await declare(bench.app())

    async with connected(app) as (session, declarer):
        found = await declarer.compare(session, app.plan())

    assert found.missing_queues == [work_queue(app), dead_queue(app)]
    assert found.missing_exchanges == [each.name for each in app.plan().exchanges]
    assert set(found.missing_bindings) == set(app.plan().bindings)
    assert not found.is_complete
    assert not await broker.exists(work_queue(app))


async def test_a_comparison_tells_every_difference_and_which_are_safe(bench: Bench, broker: Broker) -> None:
    app = bench.app()
    await declare(bench.app())
    (work, dead) = app.plan().queues
    await broker.declare_queue(work.name, {**work.arguments, "x-delivery-limit": 50, "x-max-length": 5})
    await broker.declare_queue(dead.name, {"x-queue-type": "classic"})

    async with connected(app) as (session, declarer):
        found = await declarer.compare(session, app.plan())

    told = {(each.name, each.argument): (each.theirs, each.is_safe) for each in found.drifts}
    assert told[work.name, "x-delivery-limit"] == (50, True)
    assert told[work.name, "x-max-length"] == (5, False)
    assert told[dead.name, "x-queue-type"] == ("classic", False)
    assert found.is_complete
    assert not found.missing_bindings


async def test_a_comparison_tells_an_exchange_of_another_type(bench: Bench, broker: Broker) -> None:
    app = bench.app(settings=bench.settings(namespace=bench.unique()))
    await broker.declare_exchange(app.topology.jobs, "direct")

    async with connected(app) as (session, declarer):
        plan = Plan(exchanges=app.topology.infrastructure().exchanges[:1])
        found = await declarer.compare(session, plan)
    await broker.delete_exchange(app.topology.jobs)

    assert [(each.argument, each.ours, each.theirs) for each in found.unsafe] == [("type", "topic", "direct")]


@pytest.mark.parametrize("type_", ["quorum", "classic"])
async def test_a_queue_is_only_deleted_empty_unless_asked_to(bench: Bench, broker: Broker, type_: str) -> None:
    name = bench.unique()
    app = bench.app(queues=[Queue(name, type="classic" if type_ == "classic" else "quorum")])
    queue = work_queue(app, name)
    await declare(app)
    await broker.publish(app.topology.queues, queue)
    await broker.await_count(queue, 1)

    async with connected(app) as (session, declarer):
        with pytest.raises(TopologyMismatchError, match="was not deleted"):
            await declarer.delete_queue(session, queue, only_if_empty=True)
        await broker.await_count(queue, 1)
        gone = await declarer.delete_queue(session, queue, only_if_empty=False)
        again = await declarer.delete_queue(session, queue, only_if_empty=True)

    assert (gone, again) == (1, 0)
    assert not await broker.exists(queue)


@pytest.mark.parametrize("type_", ["quorum", "classic"])
async def test_a_queue_with_a_consumer_is_not_deleted(bench: Bench, broker: Broker, type_: str) -> None:
    name = bench.unique()
    app = bench.app(queues=[Queue(name, type="classic" if type_ == "classic" else "quorum")])
    ran = record(app, kind := bench.kind(), queue=name)

    async with Worker(app), connected(app) as (session, declarer):
        with pytest.raises(TopologyMismatchError, match="1 consumers"):
            await declarer.delete_queue(session, work_queue(app, name), only_if_empty=False)
        await app.enqueue(kind(n=3))
        runs = await ran.until(1)

    assert runs[0].n == 3


async def test_an_unbound_kind_is_unroutable_and_the_others_are_not(bench: Bench) -> None:
    app, kept, gone = bench.app(), bench.kind(), bench.kind()
    record(app, kept)
    record(app, gone)
    await declare(app)

    async with connected(app) as (session, declarer):
        (kind,) = [each for each in app.registry.subscriptions() if each.kind != options_of(kept).kind]
        wanted = [Subscription(kind=kind.kind, queue=app.name)]
        await declarer.unbind(session, app.topology.app([], wanted).bindings)
        await declarer.unbind(session, app.topology.app([], wanted).bindings)

    await app.enqueue(kept())
    with pytest.raises(EnqueueError, match="No queue is bound"):
        await app.enqueue(gone())
