"""Which shards a worker gives up, and when. Channels and the broker's answers are fakes."""

import asyncio
from typing import Any, cast

import pytest

from amqpjobs.amqp import shard as shard_module
from amqpjobs.amqp.connection import Session
from amqpjobs.amqp.declare import Declarer
from amqpjobs.amqp.loans import OnDelivery
from amqpjobs.codec import SHARD_HEADER
from amqpjobs.comparison import QueueState
from amqpjobs.events import Events, ShardGivenUp
from amqpjobs.topology import Queue, Topology
from amqpjobs.wire import Delivery
from amqpjobs.worker import shards as module
from amqpjobs.worker.shards import Shards
from amqpjobs.worker.suspicion import Suspicion
from tests.support.broker import PATIENCE
from tests.unit.making import delivery

TOPOLOGY = Topology("tests")


class Link:
    """A session, open."""

    is_open = True


class Channel:
    """A consumer and its channel."""

    is_open = True

    def __init__(self, queue: str, deliver: OnDelivery) -> None:
        self.queue = queue
        self.deliver = deliver
        self.is_closed = False

    async def ack(self, tag: int) -> None: ...
    async def nack(self, tag: int) -> None: ...
    async def reject(self, tag: int) -> None: ...

    async def close(self) -> None:
        self.is_closed = True


class Stage:
    """The shards of one worker, and a broker that says how many workers there are."""

    def __init__(self) -> None:
        self.workers = 1
        #: Shards of a greater number before.
        self.former: set[str] = set()
        self.channels: list[Channel] = []
        self.begun: list[Delivery] = []
        self.given_up: list[str] = []
        events = Events()
        events.subscribe(ShardGivenUp, lambda event: self.given_up.append(event.shard))
        self.shards = Shards(
            topology=TOPOLOGY,
            declarer=cast("Declarer", self),
            events=events,
            suspicion=Suspicion(),
            prefetch={"orders": 10},
            on_delivery=self.begun.append,
            rejoins=lambda delivery: False,
        )

    async def consume(self, session: object, *, queue: str, on_delivery: OnDelivery, **rest: object) -> Channel:
        self.channels.append(Channel(queue, on_delivery))
        return self.channels[-1]

    async def look(self, session: object, queue: str) -> QueueState | None:
        if queue == TOPOLOGY.crew("orders"):
            return QueueState(0, self.workers)
        return QueueState(0, 1) if queue in self.former else None

    async def look_at(self, session: object, queues: list[str]) -> dict[str, QueueState | None]:
        return {queue: await self.look(session, queue) for queue in queues}

    async def open(self, shards: int) -> None:
        await self.shards.open(cast("Session", Link()), [Queue("orders", shards=shards)])

    def channel(self, number: int) -> Channel:
        """The one that a shard is consumed on."""
        queue = TOPOLOGY.shard("orders", number)
        return next(each for each in self.channels if each.queue == queue and not each.is_closed)

    def come(self, *numbers: int) -> None:
        """A delivery from each of these shards."""
        for number in numbers:
            channel = self.channel(number)
            made = delivery(headers={SHARD_HEADER: number})
            made.settler = cast("Any", channel)
            channel.deliver(made)


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage()
    monkeypatch.setattr(module, "consume", stage.consume)
    monkeypatch.setattr(shard_module, "consume", stage.consume)
    return stage


async def settle(stage: Stage) -> None:
    for each in stage.begun:
        await each.settler.ack(each.tag)
    stage.begun.clear()


async def test_a_worker_alone_keeps_all(stage: Stage) -> None:
    await stage.open(8)
    stage.come(*range(8))

    await stage.shards.look()

    assert stage.given_up == []


@pytest.mark.parametrize(
    ("workers", "active", "given_up"), [(2, 8, 2), (2, 5, 1), (2, 4, 0), (3, 4, 1), (3, 3, 0), (8, 2, 1), (100, 1, 0)]
)
async def test_half_of_what_is_more_than_its_share_is_given_up(
    stage: Stage, workers: int, active: int, given_up: int
) -> None:
    await stage.open(8)
    stage.come(*range(active))
    await settle(stage)
    stage.workers = workers

    await stage.shards.look()

    assert len(stage.given_up) == given_up
    assert sum(each.is_closed for each in stage.channels) == given_up
    assert len(stage.shards.consumers) == 9  # in line again for each, and counted


async def test_a_shard_is_given_up_only_when_what_runs_of_it_has_ended(stage: Stage) -> None:
    await stage.open(2)
    stage.come(0, 1)
    stage.workers = 2

    looking = asyncio.create_task(stage.shards.look())
    for _ in range(10):
        await asyncio.sleep(0)
    assert stage.given_up == []
    assert not any(each.is_closed for each in stage.channels)
    await settle(stage)
    await looking

    assert len(stage.given_up) == 1


async def test_those_are_given_up_first_of_which_least_runs(stage: Stage) -> None:
    await stage.open(4)
    stage.come(0, 1, 2, 3)
    await stage.begun[2].settler.ack(stage.begun[2].tag)
    stage.workers = 3

    async with asyncio.timeout(PATIENCE):
        await stage.shards.look()

    assert stage.given_up == [TOPOLOGY.shard("orders", 2)]


async def test_a_worker_that_stops_gives_up_nothing_for_others(stage: Stage) -> None:
    await stage.open(2)
    stage.come(0, 1)
    stage.workers = 2
    looking = asyncio.create_task(stage.shards.look())
    await asyncio.sleep(0)

    stage.shards.leave()
    closing = asyncio.create_task(stage.shards.close())
    await settle(stage)
    await asyncio.gather(looking, closing)

    assert stage.given_up == []
    assert sum(each.is_closed for each in stage.channels) == 2


async def test_shards_of_a_greater_number_before_are_worked_on_too(stage: Stage) -> None:
    stage.former = {TOPOLOGY.shard("orders", number) for number in (2, 3)}

    await stage.open(2)

    assert [each.queue for each in stage.channels] == [
        TOPOLOGY.crew("orders"),
        *(TOPOLOGY.shard("orders", number) for number in range(4)),
    ]


async def test_what_a_lost_connection_held_is_nobodys_any_more(stage: Stage) -> None:
    await stage.open(1)
    stage.come(0, 0)
    assert stage.shards.waiting == 1

    stage.shards.drop_lost()

    assert stage.shards.waiting == 0
