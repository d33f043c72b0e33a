from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from amqpjobs.topology import Queue
from amqpjobs.wire import Delivery
from amqpjobs.worker.running import Run, Severed, Slots
from tests.unit.making import FakeSettler, delivery


def filled(slots: Slots, *names: str, each: int = 100) -> None:
    for name in names:
        for tag in range(each):
            slots.add(delivery(queue=name, tag=tag))


def take(slots: Slots, number: int) -> list[Delivery]:
    taken = [slots.take() for _ in range(number)]
    return [each for each in taken if each is not None]


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


def severed(message_id: str | None = "m-1", **properties: Any) -> Run:
    """A run whose channel is closed."""
    return Run(delivery(message_id=message_id, settler=FakeSettler(is_open=False), **properties))


def redelivered(message_id: str | None = "m-1", **properties: Any) -> Delivery:
    return replace(delivery(message_id=message_id, **properties), redelivered=True)


def kept(*runs: Run, limit: int = 10) -> Severed:
    made = Severed(limit)
    for run in runs:
        made.add(run)
    return made


def test_a_redelivery_finds_the_run_that_lost_its_channel_once() -> None:
    run = severed(headers={"a": 1})
    runs, again = kept(run), redelivered(headers={"a": 1, "x-delivery-count": 1})

    assert (runs.take(again), runs.take(again)) == (run, None)
    assert len(runs) == 0


@pytest.mark.parametrize(
    "other",
    [
        delivery(message_id="m-1"),
        redelivered("m-2"),
        redelivered(None),
        redelivered(queue="other"),
        redelivered(body=b'{"n": 1}'),
        redelivered(headers={"amqpjobs-attempt": 2}),
        redelivered(kind="other"),
        replace(redelivered(), routing_key="other"),
    ],
    ids=["first delivery", "message id", "no message id", "queue", "body", "headers", "kind", "routing key"],
)
def test_what_differs_in_anything_is_another_message(other: Delivery) -> None:
    runs = kept(severed())

    assert runs.take(other) is None
    assert len(runs) == 1


def test_a_run_whose_channel_is_open_shares_its_delivery_with_nobody() -> None:
    runs = kept(Run(delivery(message_id="m-1")))

    assert runs.take(redelivered()) is None


def test_a_message_without_an_id_is_run_again() -> None:
    assert len(kept(severed(None))) == 0


def test_of_more_severed_runs_than_there_may_be_the_oldest_goes() -> None:
    runs = kept(*(severed(f"m-{n}") for n in range(5)), limit=3)

    assert [runs.take(redelivered(f"m-{n}")) is not None for n in range(5)] == [False, False, True, True, True]


def test_of_two_runs_of_one_message_id_one_is_kept() -> None:
    first = severed()
    runs = kept(first, severed())

    assert (runs.take(redelivered()), runs.take(redelivered())) == (first, None)
