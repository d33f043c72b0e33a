"""Streams: read from anywhere, any number of times, until what is old goes."""

import pytest

from amqpjobs.devbroker.consumers import Consumer
from amqpjobs.devbroker.errors import RefusedError
from amqpjobs.devbroker.properties import Properties
from amqpjobs.devbroker.queue import Queue
from amqpjobs.devbroker.returns import Return
from amqpjobs.devbroker.table import Field, long, moment, text
from tests.unit.devbroker.rig import VERSIONS, Rig, Taker, Value, properties, said, table


def stream(rig: Rig, **arguments: Value) -> Queue:
    return rig.declare({"x_queue_type": "stream", **arguments})


def read(queue: Queue, offset: Field | None, prefetch: int = 100) -> tuple[Taker, Consumer]:
    taker = Taker()
    consumer = Consumer(taker, "tag", is_silent=False, prefetch=prefetch, priority=0)
    consumer.offset = offset
    queue.add_consumer(consumer, is_exclusive=False)
    return taker, consumer


def test_every_consumer_reads_all_from_where_it_likes() -> None:
    rig = Rig()
    queue = stream(rig)
    for body in "abcde":
        rig.publish("q", body)
        rig.timers.advance(60)

    offsets = {
        "abcde": text("first"),
        "e": text("last"),
        "": text("next"),
        "cde": long(2),
        "de": text("2m"),
        "bcde": moment(1_000_060),
    }
    takers = {expected: read(queue, offset)[0] for expected, offset in offsets.items()}
    by_default, _ = read(queue, None)
    rig.publish("q", "f")

    for expected, taker in takers.items():
        assert "".join(taker.bodies) == expected + "f"
    assert by_default.bodies == ["f"]
    assert len(queue.backlog) == 6


def test_an_ack_makes_room_for_more_and_takes_nothing_out() -> None:
    rig = Rig()
    queue = stream(rig)
    rig.publish("q", *"abcd")
    taker, consumer = read(queue, text("first"), prefetch=2)
    assert taker.bodies == ["a", "b"]

    consumer.lent -= 1
    queue.settle(taker.entries(0))
    queue.dispatch()

    assert taker.bodies == ["a", "b", "c"]
    assert len(queue.backlog) == 4


def test_a_delivery_tells_its_offset_and_holds_no_nested_headers() -> None:
    rig = Rig()
    queue = stream(rig)
    nested = Field("F", b"\x01zV")
    rig.publish("q", "a", "b", raw=properties(headers=table(own=1, nested=nested)))

    taker, _ = read(queue, text("first"))

    headers = Properties(queue.header_of(taker.entries(1)[0])[12:]).headers()
    assert said(headers, "x-stream-offset") == 1
    assert said(headers, "own") == 1
    assert headers.look("nested") is None


def test_the_oldest_go_when_there_are_too_many_bytes() -> None:
    rig = Rig()
    queue = stream(rig, x_max_length_bytes=10)

    rig.publish("q", *("xxx" for _ in range(1000)))
    taker, _ = read(queue, text("first"))

    assert len(taker.bodies) == 3
    assert [entry.number for _, entry in taker.got] == [997, 998, 999]
    assert rig.memory.held == sum(entry.size for _, entry in taker.got)


def test_the_last_one_stays_however_large_it_is() -> None:
    rig = Rig()
    queue = stream(rig, x_max_length_bytes=10)

    rig.publish("q", "a" * 100, "b" * 100)

    assert rig.bodies() == ["b" * 100]
    assert len(queue.backlog) == 1


def test_the_oldest_go_when_their_time_is_over() -> None:
    rig = Rig()
    queue = stream(rig, x_max_age="1h")
    for body in "abc":
        rig.publish("q", body)
        rig.timers.advance(1200)

    assert len(queue.backlog) == 2
    rig.timers.advance(3600)

    assert len(queue.backlog) == 0
    assert rig.memory.held == 0


def test_messages_of_a_stream_do_not_expire() -> None:
    rig = Rig()
    queue = stream(rig)
    rig.publish("q", "a", raw=properties(expiration="10"))

    rig.timers.advance(60)

    assert len(queue.backlog) == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_it_must_be_read_with_a_prefetch_and_acks(version: str) -> None:
    queue = stream(Rig(version))

    with pytest.raises(RefusedError, match=r"PRECONDITION_FAILED - consumer prefetch count is not set for .*queue 'q'"):
        queue.check_consume(is_exclusive=False, is_limited=False, is_silent=False, prefetch=0)
    with pytest.raises(RefusedError, match=r"NOT_IMPLEMENTED - automatic acknowledgement not supported by stream"):
        queue.check_consume(is_exclusive=False, is_limited=False, is_silent=True, prefetch=1)
    with pytest.raises(RefusedError, match=r"NOT_IMPLEMENTED - basic.get not supported by stream queues queue 'q'"):
        queue.get(is_silent=False)
    with pytest.raises(RefusedError, match=r"NOT_IMPLEMENTED - queue.purge not supported by stream queues queue 'q'"):
        queue.purge()


def test_old_versions_refuse_to_take_anything_back() -> None:
    rig = Rig("3.10")
    queue = stream(rig)
    rig.publish("q", "a")
    taker, _ = read(queue, text("first"))

    with pytest.raises(RefusedError, match=r"NOT_IMPLEMENTED - basic.nack and basic.reject not supported"):
        queue.give_back(taker.entries(0), Return.NACKED)
    queue.give_back(taker.entries(0), Return.LOST)


def test_a_deleted_stream_holds_nothing() -> None:
    rig = Rig()
    queue = stream(rig, x_max_age="1h")
    rig.publish("q", *"abc")
    taker, consumer = read(queue, text("first"))

    rig.vhost.remove_queue(queue)
    rig.timers.advance(7200)

    assert taker.ended == [consumer]
    assert rig.memory.held == 0
