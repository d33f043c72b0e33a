"""The order in which a shard begins its deliveries. The consumer is a fake."""

import asyncio
from typing import cast

import pytest

from amqpjobs.amqp import shard as module
from amqpjobs.amqp.connection import Session
from amqpjobs.amqp.loans import OnDelivery
from amqpjobs.amqp.shard import Shard
from amqpjobs.codec import SHARD_HEADER
from amqpjobs.wire import Delivery
from tests.unit.making import delivery


class Channel:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int]] = []
        self.is_open = True
        self.is_closed = False

    async def ack(self, tag: int) -> None:
        self.said.append(("ack", tag))

    async def nack(self, tag: int) -> None:
        self.said.append(("nack", tag))

    async def reject(self, tag: int) -> None:
        self.said.append(("reject", tag))

    async def close(self) -> None:
        self.is_closed = True


class Stage:
    """A shard, its channel, and what has begun."""

    def __init__(self) -> None:
        self.channel = Channel()
        self.begun: list[Delivery] = []
        self.running: set[int] = set()
        self.shard = Shard(
            queue="q", name="orders", on_delivery=self.begun.append, rejoins=lambda each: each.tag in self.running
        )
        self._arrive: OnDelivery = self.begun.append
        self._tag = 0

    async def open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def consume(session: Session, *, on_delivery: OnDelivery, **rest: object) -> Channel:
            self._arrive = on_delivery
            return self.channel

        monkeypatch.setattr(module, "consume", consume)
        await self.shard.open(cast("Session", None), prefetch=10)

    def come(self, *keys: object) -> list[Delivery]:
        return [self._come(key) for key in keys]

    def _come(self, key: object) -> Delivery:
        self._tag += 1
        made = delivery(headers={} if key is None else {SHARD_HEADER: key})
        made.tag, made.settler = self._tag, self.channel
        self._arrive(made)
        return made

    @property
    def tags(self) -> list[int]:
        return [each.tag for each in self.begun]


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage()
    await stage.open(monkeypatch)
    return stage


async def test_one_of_each_key_begins_and_the_next_when_it_is_settled(stage: Stage) -> None:
    stage.come(1, 2, 1, 1, None, None)
    assert stage.tags == [1, 2, 5, 6]
    assert (stage.shard.waiting, stage.shard.under_way) == (2, 4)

    await stage.begun[0].settler.ack(1)
    assert stage.tags[4:] == [3]
    await stage.shard.reject(3)

    assert stage.tags[4:] == [3, 4]
    assert stage.channel.said == [("ack", 1), ("reject", 3)]
    assert stage.shard.waiting == 0


async def test_a_key_that_is_done_is_forgotten(stage: Stage) -> None:
    for tag in range(1, 4):
        stage.come(1)
        await stage.shard.ack(tag)

    assert stage.tags == [1, 2, 3]
    assert stage.shard.under_way == 0


async def test_a_shard_that_is_left_begins_nothing_and_is_over_when_what_had_begun_is(stage: Stage) -> None:
    stage.come(1, 1, 2)
    stage.shard.leave()
    stage.come(3)
    over = asyncio.create_task(stage.shard.over())

    await stage.shard.ack(1)
    await asyncio.sleep(0)
    assert not over.done()
    await stage.shard.nack(3)

    await over
    assert stage.tags == [1, 3]
    assert [each.tag for each in stage.shard.held] == [2, 4]
    assert stage.channel.said == [("ack", 1)]  # what has not begun goes back with the channel, in its order


async def test_a_shard_without_anything_under_way_is_over_at_once(stage: Stage) -> None:
    stage.shard.leave()

    await stage.shard.over()


async def test_a_lost_connection_is_waited_for_by_nobody(stage: Stage) -> None:
    stage.come(1)
    stage.shard.leave()
    stage.shard.lose()

    await stage.shard.over()


async def test_what_went_on_while_the_connection_was_lost_has_its_key(stage: Stage) -> None:
    stage.running = {1}
    stage.come(1, 1)
    assert stage.tags == []

    await stage.shard.ack(1)

    assert stage.tags == [2]


async def test_a_key_that_is_no_number_keeps_no_order(stage: Stage) -> None:
    stage.come("one", "one")

    assert stage.tags == [1, 2]
