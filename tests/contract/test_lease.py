"""A lease has one holder, goes with its connection, and comes back to life whatever is done to its queue."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from amqpjobs import App, BrokerUnavailableError
from amqpjobs.amqp.connection import Link, OneSession, Session
from amqpjobs.amqp.declare import Declarer
from amqpjobs.amqp.lease import Lease
from amqpjobs.amqp.publisher import Publisher
from amqpjobs.wire import Properties, Publication
from tests.support.apps import Bench
from tests.support.broker import PATIENCE, Broker, eventually
from tests.support.faults import FaultyProxy, Way

#: Of candidates that are to lose the lease, so that a silent broker is noticed within a test's time.
SILENCE, SHORT_HEARTBEAT = 3.0, 1
#: Of all others: a machine that stands still for a while must not cost them the lease.
HEARTBEAT = 60


class Candidate:
    """A connection of its own that wants the lease of an app."""

    def __init__(self, app: App[None], url: str, heartbeat: int, patience: float) -> None:
        self._app = app
        topology = app.topology
        self.lease = Lease(
            topology.beat_lease(app.name), topology.to_beat_lease(app.name), patience=patience, pulse=0.05
        )
        settings = app.settings.model_copy(update={"heartbeat": heartbeat, "url": type(app.settings.url)(url)})
        self.link = Link("candidate", settings, app.events, self._prepare)

    async def won(self) -> Session:
        async with asyncio.timeout(2 * PATIENCE):
            return await self.lease.won()

    async def _prepare(self, session: Session) -> None:
        plan = self._app.topology.beat(self._app.name)
        await Declarer(self._app.topology, self._app.events).prepare(session, plan, declares=True)
        await self.lease.campaign(session)


@asynccontextmanager
async def candidate(
    app: App[None], url: str = "", *, heartbeat: int = HEARTBEAT, patience: float = PATIENCE
) -> AsyncGenerator[Candidate]:
    one = Candidate(app, url or app.settings.urls[0], heartbeat, patience)
    async with one.link:
        try:
            async with asyncio.timeout(PATIENCE):
                await one.link.session()
            yield one
        finally:
            await one.lease.withdraw()


@pytest.fixture
async def app(bench: Bench, broker: Broker) -> AsyncGenerator[App[None]]:
    app = bench.app()
    yield app
    for queue in app.topology.beat(app.name).queues:
        await broker.delete_queue(queue.name)


async def stays_held(one: Candidate, looks: int = 30) -> None:
    """It holds the lease each time it is looked at, over some pulses."""
    left = iter(range(looks))

    async def is_over() -> bool:
        assert one.lease.is_held
        return next(left, None) is None

    await eventually(is_over)


async def test_one_candidate_gets_the_lease_and_the_others_wait(app: App[None]) -> None:
    async with candidate(app) as first:
        await first.won()
        async with candidate(app) as second, candidate(app) as third:
            await stays_held(first)

            assert [one.lease.is_held for one in (first, second, third)] == [True, False, False]


async def test_when_the_holder_closes_its_connection_another_has_the_lease(app: App[None]) -> None:
    async with candidate(app) as second:
        await second.won()
        async with candidate(app) as third:
            async with candidate(app) as first:
                assert not first.lease.is_held
            (await second.lease.won()).fail(None)
            await third.won()

            assert not second.lease.is_held


async def test_what_a_former_holder_sends_goes_nowhere(app: App[None], broker: Broker, bench: Bench) -> None:
    queue = await bench.queue()
    await broker.declare_exchange(f"{queue}-in", "fanout")
    await broker.bind(queue, f"{queue}-in", "")
    something = Publication(exchange=f"{queue}-in", routing_key="", body=b"late", properties=Properties(message_id="1"))
    async with candidate(app) as first:
        session = await first.won()
        publisher = Publisher(OneSession(session), longest_body=1000)
        await publisher.send(something)
        session.fail(None)
        with pytest.raises(BrokerUnavailableError, match="nothing may be sent on another one"):
            await publisher.send(something)
        await first.won()  # again, on another connection
        with pytest.raises(BrokerUnavailableError):
            await publisher.send(something)

    assert await broker.count(queue) == 1
    await broker.delete_exchange(f"{queue}-in")


async def test_a_holder_that_no_longer_hears_the_broker_gives_up_and_another_takes_over(app: App[None]) -> None:
    async with (
        FaultyProxy(app.settings.urls[0]).running() as proxy,
        candidate(app, proxy.url, heartbeat=SHORT_HEARTBEAT, patience=SILENCE) as first,
    ):
        session = await first.won()
        async with candidate(app) as second:
            proxy.stall(Way.TO_BROKER)
            proxy.stall(Way.FROM_BROKER)
            async with asyncio.timeout(PATIENCE):
                await session.ended()
            await second.won()

            assert not first.lease.is_held
            assert not session.is_open
            proxy.resume()


@pytest.mark.parametrize("fault", ["no word comes or goes", "only its tokens do not come back"])
async def test_a_holder_gives_up_by_itself_long_before_its_heartbeats_tell(app: App[None], fault: str) -> None:
    async with (
        FaultyProxy(app.settings.urls[0]).running() as proxy,
        candidate(app, proxy.url, heartbeat=600, patience=SILENCE) as first,
    ):
        session = await first.won()
        if fault == "only its tokens do not come back":
            proxy.swallow(Way.FROM_BROKER, "basic.deliver", count=1_000_000)
        else:
            proxy.stall(Way.TO_BROKER)
            proxy.stall(Way.FROM_BROKER)
        async with asyncio.timeout(PATIENCE):
            await session.ended()

        assert not first.lease.is_held
        proxy.cut()


async def test_a_holder_whose_broker_takes_no_publications_stays_the_holder(app: App[None]) -> None:
    async with (
        FaultyProxy(app.settings.urls[0]).running() as proxy,
        candidate(app, proxy.url, patience=SILENCE) as first,
    ):
        session = await first.won()

        async def has_heard() -> bool:
            return bool(session.blocked)

        proxy.forge_blocked()
        await eventually(has_heard)
        await stays_held(first, looks=int(2 * SILENCE / 0.02))
        proxy.forge_unblocked()
        await stays_held(first, looks=10)  # over some pulses, and no longer: now it counts how long it hears nothing

        assert session.is_open


async def test_when_its_queue_is_purged_or_deleted_there_is_a_holder_again(app: App[None], broker: Broker) -> None:
    queue = app.topology.beat_lease(app.name)
    async with candidate(app) as first, candidate(app) as second:

        async def one_holds() -> bool:
            return [first.lease.is_held, second.lease.is_held].count(True) == 1

        session = await first.won()
        await broker.purge(queue)
        await stays_held(first)
        await broker.delete_queue(queue)
        async with asyncio.timeout(PATIENCE):
            await session.ended()  # with it, the old lease
        await eventually(one_holds)

        assert await broker.exists(queue)


async def test_the_queue_does_not_grow_with_candidates_and_time(app: App[None], broker: Broker) -> None:
    async with candidate(app) as first, candidate(app), candidate(app):
        await first.won()
        await stays_held(first, 60)

        assert await broker.count(app.topology.beat_lease(app.name)) <= 3
