"""Deliveries that come on the lane, and what is said of them: the broker here keeps the books as a real one."""

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amqpjobs import BrokerUnavailableError
from amqpjobs.amqp.guard import DEFECT_HEADER
from amqpjobs.amqp.loans import Loans
from amqpjobs.wire import Delivery, Properties
from tests.support.lanes import (
    BODY,
    HEADER,
    METHOD,
    FakeSession,
    Road,
    close,
    deliver_method,
    delivery,
    framed,
    message,
    split_frames,
)

ACK, REJECT, NACK = 80, 90, 120


class Desk:
    """A consumer on a lane, and a broker that knows what is lent."""

    def __init__(self, count: int = 0, on_delivery: Callable[[Delivery], None] | None = None) -> None:
        self.road, self.session = Road(), FakeSession()
        self.came = list[Delivery]()
        session: Any = self.session
        self.loans = Loans(self.road.lane, 1, session, "mail", on_delivery or self.came.append)
        self.road.lane.add(1, self.loans)
        self.lent = list[int]()
        #: What the broker was told of each tag, and the tags it was told of that were not lent.
        self.told = dict[int, int]()
        self.frames = 0
        for tag in range(1, count + 1):
            self.lend(tag)

    def lend(self, tag: int) -> None:
        self.lent.append(tag)
        self.road.feed([b"".join(delivery(tag, b"%d" % tag))])

    async def hear(self) -> None:
        """Keep the books, as the broker does."""
        for frame in await self.road.said():
            self.frames += 1
            method, tag, bit = struct.unpack(">xxHQB", frame[7:-1])
            is_multiple = method == ACK and bit
            covered = [each for each in self.lent if each <= tag] if is_multiple else [tag]
            assert tag in self.lent, f"an answer to {tag}, which is not lent: the broker closes the channel"
            for each in covered:
                self.lent.remove(each)
                self.told[each] = method


async def test_a_delivery_is_what_came() -> None:
    desk = Desk()
    properties = Properties(kind="mail", message_id="1", headers={"x-delivery-count": 2})

    desk.road.feed(message(deliver_method(7, exchange=b"e", key=b"k", redelivered=True), b"{}", properties))

    (came,) = desk.came
    assert (came.body, came.properties, came.tag) == (b"{}", properties, 7)
    assert (came.queue, came.exchange, came.routing_key, came.redelivered) == ("mail", "e", "k", True)
    assert (came.settler, came.defect, came.is_open) == (desk.loans, "", True)


async def test_what_cannot_be_read_comes_with_its_defect() -> None:
    desk = Desk()
    late = struct.pack(">HHQHQ", 60, 0, 2, 1 << 6, 2**63)

    desk.road.feed([framed(METHOD, deliver_method(1, key=b"caf\xe9")), framed(HEADER, late), framed(BODY, b"{}")])

    (came,) = desk.came
    assert "cannot be decoded" in came.defect
    assert came.properties.headers[DEFECT_HEADER] == came.defect
    assert (came.routing_key, came.body) == ("caf\ufffd", b"{}")


@pytest.mark.parametrize("kind", [b"\x7f", b"F"])
async def test_a_hostile_table_comes_with_its_defect(kind: bytes) -> None:
    desk = Desk()
    raw = b"\x00"
    for _ in range(20_000):
        raw = struct.pack(">I", len(raw) + 2) + b"\x00" + kind + raw
    header = struct.pack(">HHQH", 60, 0, 0, 1 << 13) + struct.pack(">I", len(raw) + 2) + b"\x00" + kind + raw

    desk.road.feed([framed(METHOD, deliver_method(1)), framed(HEADER, header)])

    assert "cannot be decoded" in desk.came[0].defect


async def test_a_consumer_that_fails_does_not_keep_others_from_coming() -> None:
    came = list[int]()

    def fail_at_first(delivery: Delivery) -> None:
        came.append(delivery.tag)
        if delivery.tag == 1:
            raise RuntimeError("a bug")

    desk = Desk(3, fail_at_first)
    await desk.loans.ack(2)
    await desk.hear()

    assert came == [1, 2, 3]
    assert desk.told == {2: ACK}


async def test_what_ended_in_one_turn_is_acked_by_one_frame() -> None:
    desk = Desk(100)

    for each in desk.came:
        await each.settler.ack(each.tag)
    await desk.hear()

    assert desk.lent == []
    assert desk.frames == 1


async def test_what_ends_behind_one_that_runs_is_acked_by_itself() -> None:
    desk = Desk(5)

    for tag in (1, 3, 5, 4):
        await desk.loans.ack(tag)
    await desk.hear()

    assert desk.lent == [2]
    assert set(desk.told) == {1, 3, 4, 5}


async def test_a_gap_that_closes_needs_no_answer_for_what_was_acked_before() -> None:
    desk = Desk(5)
    for tag in (2, 3):
        await desk.loans.ack(tag)
    await desk.hear()
    before = desk.frames

    for tag in (1, 4):
        await desk.loans.ack(tag)
    await desk.hear()

    assert desk.lent == [5]
    assert desk.frames == before + 1


@settings(max_examples=200)
@given(st.data())
def test_an_ack_never_covers_what_has_not_ended(data: st.DataObject) -> None:
    """Whatever comes, ends, is handed back and rejected in whatever turns."""

    async def live() -> None:
        desk, ended, last = Desk(), dict[int, int](), 0
        for _ in range(data.draw(st.integers(1, 12))):
            for _ in range(data.draw(st.integers(0, 6))):
                last += data.draw(st.integers(1, 2))  # a broker may leave out tags
                desk.lend(last)
            running = [tag for tag in desk.lent if tag not in ended]
            for tag in data.draw(st.lists(st.sampled_from(running), unique=True)) if running else []:
                ended[tag] = data.draw(st.sampled_from([ACK, ACK, ACK, NACK, REJECT]))
                settle = {ACK: desk.loans.ack, NACK: desk.loans.nack, REJECT: desk.loans.reject}[ended[tag]]
                await settle(tag)
            await desk.hear()
            assert desk.told == ended
            assert not set(desk.lent) & set(ended)

    asyncio.run(live())


async def test_what_is_handed_back_goes_back_to_its_queue_and_what_is_rejected_does_not() -> None:
    desk = Desk(2)

    await desk.loans.nack(1)
    await desk.loans.reject(2)

    assert [frame[9:-1] for frame in await desk.road.said()] == [
        struct.pack(">HQB", NACK, 1, 2),
        struct.pack(">HQB", REJECT, 2, 0),
    ]


async def test_the_bytes_of_acks_wait_for_no_more_than_the_end_of_the_turn() -> None:
    desk = Desk(2)

    await desk.loans.ack(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert split_frames(b"".join(desk.road.transport.writes)) == [
        framed(METHOD, struct.pack(">HHQB", 60, ACK, 1, 0)),
    ]


async def test_at_the_end_what_has_ended_is_said_at_once() -> None:
    desk = Desk(2)

    await desk.loans.ack(1)
    await desk.loans.ack(2)
    desk.road.lane.finish()

    assert desk.road.transport.writes == [framed(METHOD, struct.pack(">HHQB", 60, ACK, 2, 1))]


@pytest.mark.parametrize("method", ["ack", "nack", "reject"])
@pytest.mark.parametrize("end", ["channel", "session", "connection"])
async def test_nothing_is_said_once_it_is_over(method: str, end: str) -> None:
    desk = Desk(1)
    if end == "channel":
        desk.road.feed([close()])
    elif end == "session":
        desk.session.is_open = False
    else:
        desk.road.lose()

    with pytest.raises(BrokerUnavailableError):
        await getattr(desk.loans, method)(1)

    assert not desk.came[0].is_open
    assert await desk.road.said() == []


async def test_an_ack_is_not_said_on_a_channel_that_closed_within_the_turn() -> None:
    desk = Desk(1)
    await desk.loans.ack(1)

    desk.road.feed([close()])

    assert await desk.road.said() == []
