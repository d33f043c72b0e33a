from collections import Counter
from itertools import pairwise

from amqpjobs.topology import Queue
from amqpjobs.wire import Delivery
from amqpjobs.worker.run import Run
from amqpjobs.worker.slots import Slots
from tests.unit.making import FakeSettler, delivery


def filled(slots: Slots, *names: str, each: int = 100) -> None:
    for name in names:
        for tag in range(each):
            slots.add(delivery(queue=name, tag=tag))


def take(slots: Slots, number: int) -> list[Delivery]:
    taken = [slots.take() for _ in range(number)]
    return [each for each in taken if isinstance(each, Delivery)]


def test_no_more_run_at_once_than_there_are_slots() -> None:
    slots = Slots(2, [Queue("a")])
    filled(slots, "a", each=5)

    taken = take(slots, 5)
    slots.release()
    after_release = take(slots, 5)

    assert [each.tag for each in taken] == [0, 1]
    assert [each.tag for each in after_release] == [2]
    assert slots.waiting == 2


def test_nothing_is_taken_from_nothing() -> None:
    slots = Slots(2, [Queue("a")])

    assert slots.take() is None


def test_queues_share_the_slots_by_weight() -> None:
    slots = Slots(70, [Queue("a", weight=5), Queue("b", weight=1), Queue("c")])
    filled(slots, "a", "b", "c")

    names = [each.queue for each in take(slots, 70)]

    assert Counter(names) == {"a": 50, "b": 10, "c": 10}
    assert Counter(names[:7]) == {"a": 5, "b": 1, "c": 1}


def test_equal_queues_take_turns() -> None:
    slots = Slots(20, [Queue("a"), Queue("b")])
    filled(slots, "a", "b")

    names = [each.queue for each in take(slots, 20)]

    assert all(first != second for first, second in pairwise(names))


def test_an_empty_queue_leaves_its_share_to_the_others() -> None:
    slots = Slots(10, [Queue("a", weight=9), Queue("b")])
    filled(slots, "b")

    names = {each.queue for each in take(slots, 10)}

    assert names == {"b"}


def test_in_strict_order_an_earlier_queue_goes_first() -> None:
    slots = Slots(4, [Queue("a"), Queue("b", weight=100)], strict=True)
    filled(slots, "b", "a", each=2)

    names = [each.queue for each in take(slots, 4)]

    assert names == ["a", "a", "b", "b"]


def test_a_delivery_of_a_closed_channel_is_passed_over_and_takes_no_slot() -> None:
    slots = Slots(1, [Queue("a")])
    slots.add(delivery(queue="a", tag=1, settler=FakeSettler(is_open=False)))
    slots.add(delivery(queue="a", tag=2))

    taken = take(slots, 2)

    assert [each.tag for each in taken] == [2]
    assert slots.waiting == 0


def test_what_waits_can_be_taken_out_to_be_handed_back() -> None:
    slots = Slots(1, [Queue("a"), Queue("b")])
    filled(slots, "a", "b", each=2)
    take(slots, 1)

    waiting = slots.empty()

    assert len(waiting) == 3
    assert (slots.waiting, slots.empty()) == (0, [])


def test_a_run_begins_unread_and_unsettled() -> None:
    run = Run(delivery())

    assert (run.envelope, run.is_settling, run.task) == (None, False, None)


def test_what_was_lost_is_told_once_wherever_it_was_noticed() -> None:
    slots = Slots(1, [Queue("a")])
    waiting, passed_over = FakeSettler(), FakeSettler(is_open=False)
    slots.add(delivery(queue="a", tag=1, settler=passed_over))
    slots.add(delivery(queue="a", tag=2))
    slots.add(delivery(queue="a", tag=3, settler=waiting))
    take(slots, 1)
    waiting.is_open = False

    lost = slots.drop_lost()

    assert [each.tag for each in lost] == [1, 3]
    assert slots.drop_lost() == []
