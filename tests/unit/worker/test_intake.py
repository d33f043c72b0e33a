"""The way of a delivery to its slot: past its batch when it is suspected, and after a pause when it came back often."""

from collections.abc import Mapping

from amqpjobs.batch import Batch
from amqpjobs.job import Job
from amqpjobs.registry import Registry
from amqpjobs.topology import Queue
from amqpjobs.wire import Delivery, HeaderValue
from amqpjobs.worker.intake import Intake, Pauses
from amqpjobs.worker.run import Run
from amqpjobs.worker.suspicion import Suspicion
from tests.support.clock import FakeClock
from tests.unit.making import FakeSettler, delivery


class Row(Job[None], kind="row"):
    pass


def nothing(jobs: object) -> None:
    return None


class Door:
    """An intake of rows by three, and the runs that begin as soon as they may."""

    def __init__(self, concurrency: int = 10) -> None:
        registry = Registry("work")
        registry.add(Row, nothing, {}, batch=Batch(size=3, seconds=5))
        self.clock = FakeClock()
        self.suspicion = Suspicion()
        self.begun: list[list[Run]] = []
        self.intake = Intake(
            registry=registry,
            clock=self.clock,
            queues=[Queue("work")],
            concurrency=concurrency,
            strict=False,
            suspicion=self.suspicion,
            on_ready=self.begin,
        )

    def begin(self) -> None:
        while runs := self.intake.take():
            self.begun.append(runs)

    @property
    def tags(self) -> list[list[int]]:
        return [[run.delivery.tag for run in runs] for runs in self.begun]


def row(tag: int, count: int = 0, headers: Mapping[str, HeaderValue] | None = None) -> Delivery:
    """A row that came back so often."""
    told = {**(headers or {}), **({"x-delivery-count": count} if count else {})}
    return delivery(kind="row", tag=tag, headers=told, redelivered=count > 0, message_id=f"m-{tag}")


async def test_suspects_and_convicts_take_no_innocent_batch_down_with_them() -> None:
    door = Door()
    for each in (row(1), row(2, count=1), row(3, headers={"amqpjobs-crashes": 1}), row(4), row(5)):
        door.intake.add(each)

    assert door.tags == [[2], [3], [1, 4, 5]]
    assert [[run.seat is None for run in runs] for runs in door.begun] == [[True], [True], [False] * 3]


async def test_what_came_back_because_we_lost_our_connection_is_batched_again() -> None:
    door = Door()
    door.suspicion.pardon([row(1), row(2), row(3)])
    for n in (1, 2, 3):
        door.intake.add(row(n, count=1))

    assert door.tags == [[1, 2, 3]]


async def test_what_came_back_often_waits_before_it_may_have_a_slot() -> None:
    door = Door()
    door.intake.add(delivery(tag=1, redelivered=True, headers={"x-delivery-count": 6}))

    await door.clock.advance(1.5)
    before = (list(door.tags), door.intake.waiting)
    await door.clock.advance(0.5)

    assert (before, door.tags) == (([], 1), [[1]])


async def test_all_that_waits_anywhere_is_counted_and_handed_back() -> None:
    door = Door(concurrency=1)
    for each in (delivery(tag=1), delivery(tag=2), row(3), delivery(tag=4, redelivered=True)):
        door.intake.add(each)
    door.intake.add(delivery(tag=5, redelivered=True, headers={"x-delivery-count": 9}))

    waiting = door.intake.waiting
    handed_back = door.intake.close()
    door.intake.add(row(6))

    assert waiting == 4
    assert {each.tag for each in handed_back} == {2, 3, 4, 5}
    assert door.tags == [[1]]
    assert [each.tag for each in door.intake.close()] == [6]


async def test_what_was_lost_while_it_waited_is_told_wherever_it_waited() -> None:
    door, gone = Door(concurrency=1), FakeSettler()
    door.intake.add(delivery(tag=1))
    for each in (
        delivery(tag=2, settler=gone),
        delivery(tag=3, kind="row", settler=gone),
        delivery(tag=4, redelivered=True, headers={"x-delivery-count": 9}, settler=gone),
    ):
        door.intake.add(each)
    gone.is_open = False

    assert {each.tag for each in door.intake.drop_lost()} == {2, 3, 4}
    assert (door.intake.drop_lost(), door.intake.waiting) == ([], 0)


async def test_a_pause_ends_with_a_call() -> None:
    clock, ready = FakeClock(), list[Delivery]()
    pauses = Pauses(clock)
    pauses.hold(held := delivery(), 5, ready.append)

    await clock.advance(4)
    before = list(ready)
    await clock.advance(1)

    assert (before, ready) == ([], [held])
    assert pauses.empty() == []


async def test_what_is_paused_can_be_taken_out_and_is_not_called_any_more() -> None:
    clock, ready = FakeClock(), list[Delivery]()
    pauses = Pauses(clock)
    lost, held = delivery(tag=1, settler=FakeSettler(is_open=False)), delivery(tag=2)
    for each in (lost, held):
        pauses.hold(each, 5, ready.append)

    dropped, handed_back = pauses.drop_lost(), pauses.empty()
    await clock.advance(10)

    assert (dropped, handed_back, ready) == ([lost], [held], [])
