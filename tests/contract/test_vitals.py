"""What is measured of what jobs need: slots, connections, confirms and beats."""

import asyncio
from collections.abc import Generator
from typing import Any

import pytest

from amqpjobs import App, Beat, JobContext, Worker
from amqpjobs.events import BeatLeading, ConnectionOpened, JobEnded, TickPublished
from amqpjobs.telemetry.vitals import LAGS
from tests.support.apps import Bench, Note, record, watch
from tests.support.broker import Broker, eventually
from tests.support.faults import FaultyProxy, Way
from tests.support.metrics import Read, measured
from tests.support.ticks import Each


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Generator[Read]:
    with measured(monkeypatch) as read:
        yield read


def level(read: Read, name: str, app: App[Any]) -> float | None:
    return read.values(name, "amqpjobs.app.name").get((app.name,))


async def test_a_worker_tells_its_slots_and_how_many_are_taken(bench: Bench, read: Read) -> None:
    app, kind, may_end = bench.app(), bench.kind(), asyncio.Event()
    ended = watch(app.events, JobEnded)

    async def wait(job: Note, context: JobContext[Any]) -> None:
        await may_end.wait()

    ran = record(app, kind, wait)
    async with Worker(app, concurrency=3):
        idle = level(read, "amqpjobs.worker.busy", app)
        await app.enqueue_many([kind() for _ in range(2)])
        await ran.until(2)
        busy, capacity = level(read, "amqpjobs.worker.busy", app), level(read, "amqpjobs.worker.capacity", app)
        may_end.set()
        await ended.until(2)

        async def is_idle() -> bool:
            return level(read, "amqpjobs.worker.busy", app) == 0

        await eventually(is_idle)

    assert (idle, busy, capacity) == (0, 2, 3)
    assert level(read, "amqpjobs.worker.capacity", app) is None


async def test_workers_of_one_app_are_added_up_and_apps_told_apart(bench: Bench, read: Read) -> None:
    one, other = bench.app(), bench.app()
    for app in (one, other):
        record(app, bench.kind())

    async with Worker(one, concurrency=3), Worker(one, concurrency=4), Worker(other, concurrency=1):
        capacities = read.values("amqpjobs.worker.capacity", "amqpjobs.app.name")

    assert capacities == {(one.name,): 7, (other.name,): 1}


@pytest.mark.parametrize("fast_lane", [True, False])
async def test_publishes_that_wait_for_their_confirm_are_known(bench: Bench, read: Read, fast_lane: bool) -> None:
    kind, home = bench.kind(), bench.app()
    record(home, kind)
    async with Worker(home), FaultyProxy(bench.url).running() as proxy:
        app = bench.app(settings=bench.settings(url=proxy.url, fast_lane=fast_lane))
        async with app:
            await app.enqueue(kind())
            rule = proxy.hold(Way.FROM_BROKER, "basic.ack", count=3)
            sending = [asyncio.create_task(app.enqueue(kind())) for _ in range(3)]
            await rule.met()

            async def are_under_way() -> bool:
                return level(read, "amqpjobs.publish.unconfirmed", app) == 3

            await eventually(are_under_way)
            proxy.release()
            await asyncio.gather(*sending)

            async def are_confirmed() -> bool:
                return level(read, "amqpjobs.publish.unconfirmed", app) == 0

            await eventually(are_confirmed)

    assert level(read, "amqpjobs.publish.unconfirmed", app) is None


async def test_only_connections_that_are_opened_again_count_as_reconnects(bench: Bench, read: Read) -> None:
    async with FaultyProxy(bench.url).running() as proxy:
        app = bench.app(settings=bench.settings(url=proxy.url))
        opened = watch(app.events, ConnectionOpened)
        record(app, bench.kind())
        for times in (1, 2):  # it is watched once, however often it connects
            async with Worker(app):
                await opened.until(2 * times)
        first = read.points("amqpjobs.connection.reconnects")
        async with Worker(app):
            await opened.until(6)
            proxy.cut()
            await opened.until(8)

    assert first == []
    assert read.values("amqpjobs.connection.reconnects", "amqpjobs.app.name", "amqpjobs.connection.role") == {
        (app.name, "worker"): 1,
        (app.name, "worker publisher"): 1,
    }


async def test_a_beat_tells_whether_it_leads_and_how_late_its_ticks_are(
    bench: Bench, broker: Broker, read: Read
) -> None:
    kind, worker = bench.kind(), bench.app()
    record(worker, kind)
    first, second = bench.app(worker.name), bench.app(worker.name)
    for app in (first, second):
        app.schedule(Each(0.2), job=kind(), name="tick")
    published = watch(first.events, TickPublished)
    leading = [watch(app.events, BeatLeading) for app in (first, second)]

    async with Worker(worker):
        async with Beat(first):
            await published.until(3)
            alone = level(read, "amqpjobs.beat.leading", first)
            async with Beat(second):  # in one process they are added up
                beside = level(read, "amqpjobs.beat.leading", first)
        after = level(read, "amqpjobs.beat.leading", first)
    for queue in worker.topology.beat(worker.name).queues:
        await broker.delete_queue(queue.name)

    assert (alone, beside, after) == (1, 1, None)
    assert sum(map(len, leading)) == 1
    ticks = read.values(
        "amqpjobs.tick.outcomes", "amqpjobs.app.name", "amqpjobs.schedule.name", "amqpjobs.tick.outcome"
    )
    assert ticks[first.name, "tick", "published"] >= 3
    [lag] = read.points("amqpjobs.tick.lag")
    assert lag.attributes == {"amqpjobs.app.name": first.name}
    assert getattr(lag, "explicit_bounds", None) == LAGS
    assert read.values("amqpjobs.tick.lag", "amqpjobs.app.name") == {
        (first.name,): ticks[first.name, "tick", "published"]
    }
