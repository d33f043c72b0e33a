"""Classic queues: order, prefetch, limits and time."""

import pytest

from amqpjobs.devbroker.errors import RefusedError
from amqpjobs.devbroker.queue import Attributes
from amqpjobs.devbroker.returns import Return
from tests.unit.devbroker.rig import Rig, Taker, Value, properties


def test_messages_go_out_in_the_order_they_came_in_and_no_more_than_the_prefetch() -> None:
    rig = Rig()
    queue = rig.queue()
    rig.publish("q", *"abcd")

    taker, consumer = rig.consume(queue, prefetch=2)
    assert taker.bodies == ["a", "b"]
    consumer.lent -= 1
    queue.settle(taker.entries(0))
    queue.dispatch()

    assert taker.bodies == ["a", "b", "c"]
    assert rig.bodies() == ["d"]


def test_consumers_take_turns_and_higher_priorities_come_first() -> None:
    rig = Rig()
    queue = rig.queue()
    low = [rig.consume(queue, prefetch=2)[0] for _ in range(2)]
    high, _ = rig.consume(queue, prefetch=1, priority=5)

    rig.publish("q", *"abcde")

    assert high.bodies == ["a"]
    assert [taker.bodies for taker in low] == [["b", "d"], ["c", "e"]]


def test_a_channel_that_is_full_is_passed_over_until_it_is_not() -> None:
    rig = Rig()
    queue = rig.queue()
    slow, _ = rig.consume(queue)
    slow.is_open = False

    rig.publish("q", "a")
    assert slow.bodies == []
    slow.is_open = True
    queue.dispatch()

    assert slow.bodies == ["a"]


def test_what_comes_back_takes_its_old_place() -> None:
    rig = Rig()
    queue = rig.queue()
    rig.publish("q", *"abcde")
    taker, _ = rig.consume(queue, prefetch=3)
    taker.is_open = False

    queue.give_back(taker.entries(2), Return.NACKED)
    queue.give_back(taker.entries(0), Return.NACKED)

    assert rig.bodies() == ["a", "c", "d", "e"]
    assert queue.is_redelivered(next(iter(queue.backlog)))


def test_what_is_settled_or_given_back_twice_counts_once() -> None:
    rig = Rig()
    queue = rig.queue()
    rig.publish("q", "a")
    taker, consumer = rig.consume(queue)
    queue.remove_consumer(consumer)

    queue.give_back(taker.entries(0), Return.NACKED)
    queue.give_back(taker.entries(0), Return.NACKED)
    queue.settle(taker.entries(0))

    assert rig.bodies() == ["a"]


def test_priorities_above_the_highest_are_the_highest() -> None:
    rig = Rig()
    rig.queue(x_max_priority=5)
    for body, priority in (("none", None), ("one", 1), ("nine", 9), ("five", 5), ("zero", 0)):
        rig.publish("q", body, raw=properties(priority=priority))

    assert rig.bodies() == ["nine", "five", "one", "none", "zero"]


def test_without_a_highest_priority_there_is_none() -> None:
    rig = Rig()
    rig.queue()
    rig.publish("q", "low", raw=properties(priority=1))
    rig.publish("q", "high", raw=properties(priority=9))

    assert rig.bodies() == ["low", "high"]


def test_the_head_is_dropped_from_a_queue_that_is_too_long() -> None:
    rig = Rig()
    rig.queue(x_max_length=3)

    assert rig.publish("q", *"abcde") == [True] * 5

    assert rig.bodies() == ["c", "d", "e"]


def test_a_limit_of_bytes_counts_bodies() -> None:
    rig = Rig()
    rig.queue(x_max_length_bytes=10)

    rig.publish("q", "aaaa", "bbbb", "cccc")

    assert rig.bodies() == ["bbbb", "cccc"]


def test_a_full_queue_refuses_what_comes_next() -> None:
    rig = Rig()
    rig.queue(x_max_length=2, x_overflow="reject-publish")

    assert rig.publish("q", *"abcd") == [True, True, False, False]

    assert rig.bodies() == ["a", "b"]


def test_a_full_queue_with_an_idle_consumer_is_not_full() -> None:
    rig = Rig()
    queue = rig.queue(x_max_length=1, x_overflow="reject-publish")
    taker, _ = rig.consume(queue)

    assert rig.publish("q", *"abc") == [True] * 3
    assert taker.bodies == ["a", "b", "c"]


def test_messages_expire_at_the_head_only() -> None:
    rig = Rig()
    queue = rig.queue()
    rig.publish("q", "long", raw=properties(expiration="600"))
    rig.publish("q", "short", raw=properties(expiration="50"))

    rig.timers.advance(0.5)
    assert rig.bodies() == ["long", "short"]
    rig.timers.advance(0.11)

    assert rig.bodies() == []
    assert rig.memory.held == 0
    assert queue.ready_bytes == 0


def test_a_ttl_is_the_shorter_of_the_queues_and_the_messages() -> None:
    rig = Rig()
    rig.queue(x_message_ttl=100)
    rig.publish("q", "its own", raw=properties(expiration="40"))
    rig.publish("q", "the queue's", raw=properties(expiration="4000"))

    rig.timers.advance(0.05)
    assert rig.bodies() == ["the queue's"]
    rig.timers.advance(0.05)
    assert rig.bodies() == []


def test_a_ttl_of_zero_reaches_only_who_waits_for_it() -> None:
    rig = Rig()
    queue = rig.queue(x_message_ttl=0)

    rig.publish("q", "nobody")
    taker, _ = rig.consume(queue)
    rig.publish("q", "somebody")

    assert taker.bodies == ["somebody"]
    assert rig.bodies() == []


def test_a_queue_expires_when_nobody_uses_it() -> None:
    rig = Rig()
    queue = rig.queue(x_expires=1000)
    taker, consumer = rig.consume(queue)

    rig.timers.advance(5)
    assert "q" in rig.vhost.queues
    queue.remove_consumer(consumer)
    rig.timers.advance(0.9)
    queue.get(is_silent=True)
    rig.timers.advance(0.9)
    assert "q" in rig.vhost.queues
    rig.timers.advance(0.2)

    assert "q" not in rig.vhost.queues
    assert taker.ended == []


def test_the_consumers_of_a_deleted_queue_are_told() -> None:
    rig = Rig()
    queue = rig.queue()
    taker, consumer = rig.consume(queue)
    rig.publish("q", "a")

    rig.vhost.remove_queue(queue)
    queue.give_back(taker.entries(0), Return.LOST)

    assert taker.ended == [consumer]
    assert rig.memory.held == 0


def test_an_auto_delete_queue_goes_with_its_last_consumer() -> None:
    rig = Rig()
    queue = rig.queue(attributes=Attributes(is_auto_delete=True))
    (_, first), (_, second) = rig.consume(queue), rig.consume(queue)

    queue.remove_consumer(first)
    assert "q" in rig.vhost.queues
    queue.remove_consumer(second)

    assert "q" not in rig.vhost.queues


def test_one_active_consumer_gets_everything_until_it_goes() -> None:
    rig = Rig()
    queue = rig.queue(x_single_active_consumer=True)
    first, consumer = rig.consume(queue)
    second, _ = rig.consume(queue, priority=9)

    rig.publish("q", *"ab")
    queue.remove_consumer(consumer)
    rig.publish("q", "c")

    assert (first.bodies, second.bodies) == (["a", "b"], ["c"])


def test_an_exclusive_consumer_wants_to_be_alone() -> None:
    rig = Rig()
    queue = rig.queue()
    rig.consume(queue)

    with pytest.raises(RefusedError, match="ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use"):
        queue.check_consume(is_exclusive=True, is_limited=False, is_silent=False, prefetch=0)


def test_who_acks_nothing_is_lent_nothing() -> None:
    rig = Rig()
    queue = rig.queue()
    taker, consumer = rig.consume(queue, prefetch=1, silent=True)

    rig.publish("q", *"abc")

    assert taker.bodies == ["a", "b", "c"]
    assert consumer.lent == 0
    assert rig.memory.held == 0


def test_a_purge_leaves_what_is_lent() -> None:
    rig = Rig()
    queue = rig.queue()
    rig.publish("q", *"abc")
    taker, _ = rig.consume(queue, prefetch=1)

    assert queue.purge() == 2

    queue.give_back(taker.entries(0), Return.NACKED)
    assert taker.bodies == ["a"]
    assert rig.bodies() == ["a"]


def test_memory_is_held_until_messages_are_settled_and_who_waits_is_told() -> None:
    rig = Rig(memory=1_500)
    queue, calls = rig.queue(), list[str]()
    rig.publish("q", *("x" * 400 for _ in range(3)))
    assert rig.memory.is_short

    rig.memory.wait(lambda: calls.append("go on"))
    taker = Taker()
    rig.consume(queue, taker=taker)
    queue.settle(taker.entries(0))
    assert calls == []
    queue.settle(taker.entries(1))

    assert calls == ["go on"]
    assert not rig.memory.is_short


DIFFERENT: list[tuple[dict[str, Value], dict[str, Value], str]] = [
    ({"x_message_ttl": 5}, {"x_message_ttl": 6}, "arg 'x-message-ttl' .* received '6' but current is '5'"),
    ({"x_message_ttl": 5}, {}, "received none but current is the value '5' of type 'long'"),
    ({}, {"x_max_length": 5}, "received the value '5' of type 'long' but current is none"),
    ({}, {"x_queue_type": "quorum"}, "arg 'x-queue-type'"),
]


@pytest.mark.parametrize(("first", "second", "words"), DIFFERENT)
def test_a_queue_is_declared_again_only_as_it_is(first: dict[str, Value], second: dict[str, Value], words: str) -> None:
    rig = Rig()
    queue = rig.declare(first)
    assert rig.declare(first) is queue

    with pytest.raises(RefusedError, match=words):
        rig.declare(second)


def test_an_exclusive_queue_belongs_to_its_connection() -> None:
    rig = Rig()
    mine, yours = object(), object()
    rig.queue(attributes=Attributes(is_durable=False, owner=mine))

    assert rig.vhost.queue("q", mine) is rig.vhost.queues["q"]
    with pytest.raises(RefusedError, match="RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q'"):
        rig.vhost.queue("q", yours)


def test_a_message_that_expires_waits_for_those_of_higher_priority() -> None:
    rig = Rig()
    queue = rig.queue(x_max_priority=5)
    rig.publish("q", "low", raw=properties(priority=0, expiration="40"))
    rig.publish("q", "high", raw=properties(priority=5))

    rig.timers.advance(1)
    assert rig.bodies() == ["high", "low"]
    queue.get(is_silent=True)

    assert rig.bodies() == []


def test_what_comes_back_to_a_full_queue_is_dropped_before_it_is_delivered_again() -> None:
    rig = Rig()
    queue = rig.queue(x_max_length=1)
    taker, _ = rig.consume(queue, prefetch=1)
    rig.publish("q", "first", "second")

    taker.got[0][0].lent -= 1
    queue.give_back(taker.entries(0), Return.NACKED)

    assert taker.bodies == ["first", "second"]
    assert rig.bodies() == []


def test_who_was_passed_over_is_the_last_to_have_a_turn_again() -> None:
    rig = Rig()
    queue = rig.queue()
    takers = [rig.consume(queue, prefetch=prefetch) for prefetch in (1, 0, 0)]
    rig.publish("q", *"abcd")  # the fourth would be the first one's again

    full = takers[0][1]
    full.lent -= 1
    queue.consumers.has_room_again(full)
    rig.publish("q", *"efg")

    assert [taker.bodies for taker, _ in takers] == [["a", "g"], ["b", "d", "f"], ["c", "e"]]
