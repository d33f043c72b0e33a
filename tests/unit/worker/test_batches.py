"""Deliveries are collected into packs, by number and by time."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from amqpjobs.batch import Batch
from amqpjobs.job import Job
from amqpjobs.registry import Registry
from amqpjobs.topology import Queue
from amqpjobs.worker.batches import Batches, Pack, prefetch_of
from amqpjobs.worker.slots import Slots
from tests.support.clock import FakeClock, settle
from tests.unit.making import FakeSettler, delivery


class Row(Job[None], kind="row", aliases=["line"]):
    pass


class Pixel(Job[None], kind="pixel"):
    pass


class Alone(Job[None], kind="alone"):
    pass


def nothing(jobs: Any) -> None:
    return None


class Bench:
    """A collector of rows by three and pixels by two, and what became ready."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.registry = Registry("work")
        self.registry.add(Row, nothing, {}, batch=Batch(size=3, seconds=5))
        self.registry.add(Pixel, nothing, {"queue": "fast"}, batch=Batch(size=2, seconds=1))
        self.registry.add(Alone, nothing, {})
        self.ready: list[Pack] = []
        self.batches = Batches(self.registry, self.clock, self.ready.append)
        self._tag = 0

    def add(self, *kinds: str | None, queue: str = "work", settler: FakeSettler | None = None) -> list[bool]:
        added = list[bool]()
        for kind in kinds:
            added.append(self.batches.add(delivery(kind=kind, tag=self._tag, queue=queue, settler=settler)))
            self._tag += 1
        return added

    @property
    def tags(self) -> list[list[int]]:
        return [[each.tag for each in pack.deliveries] for pack in self.ready]


@pytest.fixture
async def bench() -> AsyncGenerator[Bench]:
    made = Bench()
    yield made
    made.batches.empty()


async def test_a_pack_is_ready_when_it_is_full(bench: Bench) -> None:
    bench.add("row", "row", "row", "row")

    assert bench.tags == [[0, 1, 2]]


async def test_a_pack_is_ready_so_long_after_its_first_delivery(bench: Bench) -> None:
    bench.add("row")
    await bench.clock.advance(4)
    bench.add("row")
    await bench.clock.advance(0.9)
    before = bench.tags
    await bench.clock.advance(0.1)

    assert (before, bench.tags) == ([], [[0, 1]])


async def test_the_time_of_a_pack_begins_with_its_own_first_delivery(bench: Bench) -> None:
    bench.add("row", "row", "row")
    await bench.clock.advance(4)
    bench.add("row")
    await bench.clock.advance(4)
    before = len(bench.ready)
    await bench.clock.advance(1)

    assert (before, bench.tags) == (1, [[0, 1, 2], [3]])
    assert bench.clock.waits == []


async def test_a_ready_pack_goes_on_filling_until_it_has_a_slot(bench: Bench) -> None:
    bench.add("row")
    await bench.clock.advance(5)
    bench.add("row")
    seated = bench.batches.seats(bench.ready[0])
    bench.add("row")

    assert [each.tag for each, _ in seated] == [0, 1]
    assert bench.tags == [[0, 1]]
    assert [each.tag for each in bench.batches.empty()] == [2]


async def test_only_what_is_not_ready_counts_as_collecting(bench: Bench) -> None:
    bench.add("row")
    before = bench.batches.collecting
    await bench.clock.advance(5)

    assert (before, bench.batches.collecting) == (1, 0)


async def test_a_ready_pack_that_fills_up_is_not_ready_twice(bench: Bench) -> None:
    bench.add("row")
    await bench.clock.advance(5)
    bench.add("row", "row", "row")
    await bench.clock.advance(5)

    assert bench.tags == [[0, 1, 2], [3]]


async def test_kinds_and_queues_are_collected_apart_and_an_alias_is_its_kind(bench: Bench) -> None:
    bench.add("row", "pixel", "line")
    bench.add("row", "row", queue="fast")
    bench.add("pixel", "row")

    assert bench.tags == [[1, 5], [0, 2, 6]]
    assert [each.tag for each in bench.batches.empty()] == [3, 4]


async def test_what_no_batch_handler_takes_is_not_collected(bench: Bench) -> None:
    added = bench.add("alone", "unknown", None, "row")

    assert added == [False, False, False, True]


async def test_what_is_not_ready_can_be_taken_out_and_its_time_is_over(bench: Bench) -> None:
    bench.add("row", "row", "pixel")

    left = bench.batches.empty()
    await settle()

    assert [each.tag for each in left] == [0, 1, 2]
    assert (bench.batches.empty(), bench.clock.waits) == ([], [])


async def test_what_is_ready_is_handed_back_by_the_slots_and_not_twice(bench: Bench) -> None:
    slots = Slots(1, [Queue("work")])
    bench.add("row")
    await bench.clock.advance(5)
    slots.add(bench.ready[0])
    bench.add("row")

    assert slots.waiting == 2
    assert [each.tag for each in [*slots.empty(), *bench.batches.empty()]] == [0, 1]


async def test_what_came_on_a_closed_channel_is_dropped_and_its_time_is_over(bench: Bench) -> None:
    lost = FakeSettler()
    bench.add("row", "row", settler=lost)
    bench.add("pixel")
    lost.is_open = False

    bench.batches.drop_lost()
    bench.add("row")
    await bench.clock.advance(4.9)
    before = bench.tags
    await bench.clock.advance(0.1)

    assert (before, bench.tags) == ([[2]], [[2], [3]])


async def test_a_ready_pack_whose_channel_was_lost_fills_no_more(bench: Bench) -> None:
    slots, lost = Slots(1, [Queue("work")]), FakeSettler()
    bench.add("row", settler=lost)
    await bench.clock.advance(5)
    slots.add(bench.ready[0])
    lost.is_open = False

    slots.drop_lost()
    bench.batches.drop_lost()
    bench.add("row", "row", "row")

    assert slots.take() is None
    assert bench.tags[1:] == [[1, 2, 3]]


async def test_a_batch_takes_one_slot(bench: Bench) -> None:
    slots = Slots(2, [Queue("work")])
    bench.add("row", "row", "row", "row", "row", "row", "row", "row", "row")
    for pack in bench.ready:
        slots.add(pack)

    taken = [slots.take() for _ in range(3)]

    assert taken == [*bench.ready[:2], None]


@pytest.mark.parametrize(
    ("queue", "concurrency", "expected"),
    [
        (Queue("fast"), 10, 20),  # all slots hold two pixels
        (Queue("work"), 10, 30),  # all slots hold three rows; ordinary ones fit in
        (Queue("both"), 10, 10 * 5 + 4 + 2),  # the largest in all slots, and one of each other kind
        (Queue("both"), 1, 5 + 4 + 2),
        (Queue("other"), 10, 10),
        (Queue("work", prefetch=7), 10, 7),
        (Queue("huge"), 10, 65_535),
    ],
)
def test_a_queue_holds_as_many_as_its_batches_need(queue: Queue, concurrency: int, expected: int) -> None:
    registry = Bench().registry
    for number, size in enumerate([4, 5, 2]):
        job = type(f"Both{number}", (Job[None],), {})
        registry.add(job, nothing, {"queue": "both"}, batch=Batch(size=size, seconds=1))
    registry.add(type("Huge", (Job[None],), {}), nothing, {"queue": "huge"}, batch=Batch(size=10_000, seconds=1))

    held = prefetch_of(queue, registry.handlers, concurrency)

    assert held == expected
