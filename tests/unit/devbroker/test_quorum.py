"""Quorum queues: what they count, in which order they give, and the dead letters that must arrive."""

import pytest

from amqpjobs.devbroker.backlog import Entry
from amqpjobs.devbroker.queue import Queue
from amqpjobs.devbroker.returns import Return
from amqpjobs.devbroker.table import Table
from tests.unit.devbroker.rig import VERSIONS, Rig, deaths, properties, said

PRIORITIES = [None, 1, 5, 9, 0, 4, 200, 31, None, 5]
ORDERS = {
    "3.10": [None, 1, 5, 9, 0, 4, 200, 31, None, 5],
    "4.0": [5, 9, None, 200, 31, 1, 5, 0, 4, None],
    "4.3": [200, 31, 9, 5, 5, None, 4, None, 1, 0],
}


@pytest.mark.parametrize("version", VERSIONS)
def test_priorities_are_those_of_the_version(version: str) -> None:
    rig = Rig(version)
    queue = rig.quorum()
    for priority in PRIORITIES:
        rig.publish("q", str(priority), raw=properties(priority=priority))

    taker, _ = rig.consume(queue)

    assert taker.bodies == [str(priority) for priority in ORDERS[version]]


def try_out(rig: Rig, queue: Queue, why: Return) -> tuple[Entry, Table]:
    """Take the message, give it back, and take it again; the entry, and the headers it came with."""
    entry = queue.get(is_silent=False)
    assert entry is not None
    queue.give_back([entry], why)
    return entry, Table.of(_headers(queue.header_of(entry)))


def _headers(header: bytes) -> bytes:
    return b"" if header[12:14] == b"\x10\x00" else header[18 : 18 + int.from_bytes(header[14:18], "big")]


COUNTS = [
    ("3.10", Return.NACKED, 1, None),
    ("3.10", Return.REJECTED, 1, None),
    ("4.0", Return.NACKED, 1, None),
    ("4.0", Return.REJECTED, 1, None),
    ("4.0", Return.LOST, 1, None),
    ("4.3", Return.NACKED, None, 1),
    ("4.3", Return.REJECTED, 1, 1),
    ("4.3", Return.LOST, 1, 1),
]


@pytest.mark.parametrize(("version", "why", "deliveries", "acquired"), COUNTS)
def test_a_returned_message_says_how_often(
    version: str, why: Return, deliveries: int | None, acquired: int | None
) -> None:
    rig = Rig(version)
    queue = rig.quorum()
    rig.publish("q", "a")

    entry, headers = try_out(rig, queue, why)

    assert (said(headers, "x-delivery-count"), said(headers, "x-acquired-count")) == (deliveries, acquired)
    assert queue.is_redelivered(entry)


LIMITED = [
    ("3.10", Return.NACKED, 2),
    ("4.0", Return.NACKED, 2),
    ("4.3", Return.NACKED, None),
    ("4.3", Return.REJECTED, 2),
    ("4.3", Return.LOST, 2),
]


@pytest.mark.parametrize(("version", "why", "limit"), LIMITED)
def test_a_message_is_given_up_when_it_came_back_more_often_than_the_limit(
    version: str, why: Return, limit: int | None
) -> None:
    rig = Rig(version)
    rig.queue("dead")
    queue = rig.quorum(x_delivery_limit=2, x_dead_letter_exchange="", x_dead_letter_routing_key="dead")
    rig.publish("q", "a")

    tries = 0
    while queue.backlog and tries < 10:
        try_out(rig, queue, why)
        tries += 1

    assert tries == (10 if limit is None else limit + 1)
    letters = rig.messages("dead")
    assert len(letters) == (0 if limit is None else 1)
    assert [said(death, "reason") for letter in letters for death in deaths(letter)] == ["delivery_limit"] * len(
        letters
    )


@pytest.mark.parametrize(("version", "limit"), [("3.10", None), ("4.0", 20), ("4.3", 20)])
def test_the_default_limit_is_the_versions(version: str, limit: int | None) -> None:
    assert Rig(version).quorum().arguments.delivery_limit == limit


def test_a_negative_limit_is_none_at_all_since_4_0() -> None:
    assert Rig("4.0").quorum(x_delivery_limit=-1).arguments.delivery_limit is None
    assert Rig("3.10").quorum(x_delivery_limit=-1).arguments.delivery_limit == -1


@pytest.mark.parametrize(("limit", "order"), [(100, ["a", "b", "c", "d"]), (-1, ["c", "d", "a", "b"])])
def test_what_comes_back_goes_first_or_last_without_a_limit(limit: int, order: list[str]) -> None:
    rig = Rig("4.0")
    queue = rig.quorum(x_delivery_limit=limit)
    rig.publish("q", *"abcd")
    taker, _ = rig.consume(queue, prefetch=2)
    taker.is_open = False

    queue.give_back(taker.entries(0, 1), Return.NACKED)

    assert rig.bodies() == order


def test_what_a_lost_consumer_had_goes_first_even_without_a_limit() -> None:
    rig = Rig("3.10")
    queue = rig.quorum()
    rig.publish("q", *"abcd")
    taker, _ = rig.consume(queue, prefetch=2)
    taker.is_open = False

    queue.give_back(taker.entries(0, 1), Return.LOST)

    assert rig.bodies() == ["a", "b", "c", "d"]


def test_it_refuses_only_once_it_is_over_its_limit_and_until_it_is_well_below() -> None:
    rig = Rig()
    queue = rig.quorum(x_max_length=10, x_overflow="reject-publish")

    assert rig.publish("q", *"abcdefghijklm") == [True] * 11 + [False] * 2
    for _ in range(2):
        queue.get(is_silent=True)
    assert rig.publish("q", "n") == [False]
    queue.get(is_silent=True)
    assert rig.publish("q", "o") == [True]


def test_a_higher_priority_takes_over_once_the_active_consumer_has_finished() -> None:
    rig = Rig("4.0")
    queue = rig.quorum(x_single_active_consumer=True)
    first, consumer = rig.consume(queue, prefetch=1)
    rig.publish("q", "a")
    second, _ = rig.consume(queue, priority=1)

    rig.publish("q", "b")
    assert second.bodies == []
    consumer.lent -= 1
    queue.settle(first.entries(0))
    queue.dispatch()

    assert (first.bodies, second.bodies) == (["a"], ["b"])


def sure(rig: Rig, **arguments: str | int) -> Queue:
    """A queue whose dead letters must arrive in `dead`."""
    return rig.quorum(
        "q",
        x_dead_letter_exchange="",
        x_dead_letter_routing_key="dead",
        x_dead_letter_strategy="at-least-once",
        x_overflow="reject-publish",
        **arguments,
    )


def test_a_dead_letter_waits_for_a_queue_that_takes_it() -> None:
    rig = Rig()
    sure(rig, x_message_ttl=100)
    rig.publish("q", *"ab")

    rig.timers.advance(1)
    assert rig.memory.held > 0
    rig.queue("dead")
    rig.timers.advance(200)

    assert rig.bodies("dead") == ["a", "b"]
    assert [said(death, "count") for death in deaths(rig.messages("dead")[0])] == [1]


def test_a_full_target_holds_up_all_dead_letters_of_a_queue() -> None:
    rig = Rig()
    queue = sure(rig, x_message_ttl=100, x_max_length=1000)
    dead = rig.queue("dead", x_max_length=1, x_overflow="reject-publish")
    rig.publish("q", *(str(n) for n in range(50)))

    rig.timers.advance(1)
    assert rig.bodies("dead") == ["0"]
    rig.timers.advance(1000)
    assert rig.bodies("dead") == ["0"]
    for number in range(1, 50):
        dead.get(is_silent=True)
        rig.timers.advance(180)
        assert rig.bodies("dead") == [str(number)]

    assert len(queue.backlog) == 0
    dead.get(is_silent=True)
    assert rig.memory.held == 0


def test_without_all_three_arguments_dead_letters_may_be_lost() -> None:
    rig = Rig()
    queue = rig.quorum(x_dead_letter_exchange="nowhere", x_dead_letter_strategy="at-least-once", x_message_ttl=1)
    rig.publish("q", "a")

    rig.timers.advance(1)

    assert not queue.arguments.is_at_least_once
    assert rig.memory.held == 0


def test_who_holds_a_message_counts_as_a_consumer() -> None:
    rig = Rig()
    queue = rig.quorum()
    rig.publish("q", "a", "b")
    got = queue.get(is_silent=False)
    assert got is not None
    assert queue.consumer_count == 1

    _, consumer = rig.consume(queue)
    queue.remove_consumer(consumer)
    assert queue.consumer_count == 2

    queue.settle([got])
    assert queue.consumer_count == 1


def test_who_waits_to_be_the_single_active_consumer_does_not_count() -> None:
    rig = Rig()
    queue = rig.quorum(x_single_active_consumer=True)
    for _ in range(3):
        rig.consume(queue)

    assert queue.consumer_count == 1


def test_a_queue_does_not_expire_while_somebody_holds_a_message() -> None:
    rig = Rig()
    queue = rig.quorum(x_expires=1_000)
    rig.publish("q", "a")
    got = queue.get(is_silent=False)
    assert got is not None

    rig.timers.advance(60)
    assert not queue.is_deleted
    queue.settle([got])
    rig.timers.advance(1.1)

    assert queue.is_deleted


def test_a_message_without_time_is_first_of_all_too_many() -> None:
    rig = Rig()
    rig.queue("dead")
    rig.quorum(x_message_ttl=0, x_max_length=0, x_dead_letter_exchange="", x_dead_letter_routing_key="dead")
    rig.publish("q", "a")

    assert [said(death, "reason") for death in deaths(rig.messages("dead")[0])] == ["maxlen"]


def test_4_3_expires_the_first_of_each_priority() -> None:
    rig = Rig("4.3")
    rig.quorum()
    rig.publish("q", "high", raw=properties(priority=9))
    rig.publish("q", "low", raw=properties(priority=1, expiration="40"))

    rig.timers.advance(1)

    assert rig.bodies() == ["high"]


@pytest.mark.parametrize(("version", "fits"), [("4.0", True), ("4.3", False)])
def test_4_3_weighs_properties_too(version: str, fits: bool) -> None:
    rig = Rig(version)
    rig.quorum(x_max_length_bytes=4)
    rig.publish("q", "ab")  # with three bytes of properties

    assert rig.bodies() == (["ab"] if fits else [])


def test_4_3_gives_what_came_back_first_also_without_a_limit() -> None:
    rig = Rig("4.3")
    queue = rig.quorum(x_delivery_limit=-1)
    rig.publish("q", "a", "b")
    got = queue.get(is_silent=False)
    assert got is not None

    queue.give_back([got], Return.REJECTED)

    assert rig.bodies() == ["a", "b"]
