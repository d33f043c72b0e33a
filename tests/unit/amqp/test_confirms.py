"""Publications on the lane and what is told of each, whatever the broker says and in whatever pieces."""

import asyncio
from functools import partial
from typing import Any

import pytest
from aiormq.exceptions import ChannelAccessRefused
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands
from pamqp import frame as pamqp_frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from amqpjobs.amqp.confirms import LaneConfirms, Refused, Returned
from amqpjobs.wire import Properties, Publication
from tests.support.lanes import METHOD, FakeChannel, Road, close, confirm, cut, framed, message, return_method


class Office:
    """A publishing channel on a lane, and what was told of each message."""

    def __init__(self) -> None:
        self.road, self.channel = Road(), FakeChannel()
        channel: Any = self.channel
        self.confirms = LaneConfirms(self.road.lane, channel)
        self.road.lane.add(1, self.confirms)
        self.told = dict[str, BaseException | None]()

    def publish(self, *names: str, body: bytes = b"{}") -> None:
        """Messages whose ids are these."""
        for name in names:
            self.confirms.publish(publication(name, body), partial(self.tell, name))

    def tell(self, name: str, error: BaseException | None) -> None:
        assert name not in self.told, f"{name} was told twice"
        self.told[name] = error

    @property
    def types(self) -> dict[str, type]:
        return {name: type(error) for name, error in self.told.items()}


def publication(name: str | None = "1", body: bytes = b"{}") -> Publication:
    return Publication(
        exchange="amqpjobs", routing_key="mail", body=body, properties=Properties(kind="mail", message_id=name)
    )


def returned(name: str, body: bytes = b"{}", frame: int = 10**6) -> list[bytes]:
    return message(return_method(), body, Properties(kind="mail", message_id=name), frame=frame)


async def test_a_publication_is_what_the_library_would_send() -> None:
    office = Office()
    office.road.lane.longest = 100

    office.publish("1", body=b"x" * 250)
    method, header, *bodies = [pamqp_frame.unmarshal(each)[1:] for each in await office.road.said()]

    assert {method[0], header[0], *(each[0] for each in bodies)} == {1}
    assert isinstance(method[1], commands.Basic.Publish)
    assert (method[1].exchange, method[1].routing_key, method[1].mandatory) == ("amqpjobs", "mail", True)
    assert isinstance(header[1], ContentHeader)
    assert (header[1].body_size, header[1].properties.delivery_mode, header[1].properties.message_id) == (250, 2, "1")
    assert [each[1].value for each in bodies if isinstance(each[1], ContentBody)] == [b"x" * 100, b"x" * 100, b"x" * 50]


async def test_a_body_as_long_as_a_frame_is_one_and_none_is_none() -> None:
    office = Office()
    office.road.lane.longest = 100

    office.publish("1", body=b"x" * 100)
    office.publish("2", body=b"")

    assert [each[0] for each in await office.road.said()] == [1, 2, 3, 1, 2]


async def test_each_publication_goes_out_in_one_piece() -> None:
    office = Office()

    office.publish("1", body=b"x" * 300_000)

    assert [len(each) > 300_000 for each in office.road.transport.writes] == [True]


async def test_a_message_without_an_id_gets_one() -> None:
    office = Office()

    office.confirms.publish(publication(None), lambda error: None)
    header: Any = pamqp_frame.unmarshal((await office.road.said())[1])[2]

    assert header.properties.message_id


async def test_confirms_are_told_one_by_one_and_together() -> None:
    office = Office()
    office.publish("1", "2", "3", "4", "5")

    office.road.feed([confirm(2)])
    first = dict(office.told)
    office.road.feed([confirm(4, multiple=True)])

    assert first == {"2": None}
    assert office.told == {"2": None, "1": None, "3": None, "4": None}


async def test_a_confirm_of_all_is_one_of_all() -> None:
    office = Office()
    office.publish("1", "2")

    office.road.feed([confirm(0, multiple=True)])

    assert office.told == {"1": None, "2": None}


async def test_what_a_queue_would_not_take_is_refused() -> None:
    office = Office()
    office.publish("1", "2", "3")

    office.road.feed([confirm(2, multiple=True, nack=True), confirm(3, nack=True)])

    assert office.types == {"1": Refused, "2": Refused, "3": Refused}


async def test_what_comes_back_is_told_before_its_confirm_and_only_once() -> None:
    office = Office()
    office.publish("1", "2")

    office.road.feed(returned("2"))
    first = office.types
    office.road.feed([confirm(2, multiple=True)])

    assert first == {"2": Returned}
    assert office.told["1"] is None
    assert office.types["2"] is Returned


async def test_answers_to_nobody_are_let_pass() -> None:
    office = Office()
    office.publish("1")

    office.road.feed([confirm(9), *returned("unknown"), confirm(1), confirm(1)])

    assert office.told == {"1": None}
    assert office.road.passed == []
    assert not office.road.transport.is_aborted


async def test_the_error_that_ends_the_channel_is_told_of_all_that_is_under_way() -> None:
    office, error = Office(), ChannelAccessRefused("no write")
    office.publish("1", "2")

    office.road.feed([confirm(1), close()])
    before = dict(office.told)
    office.channel.closing.set_exception(error)
    await asyncio.sleep(0)

    assert before == {"1": None}
    assert office.confirms.is_closed
    assert office.told == {"1": None, "2": error}
    assert office.road.passed == [close()]


@pytest.mark.parametrize("error", [None, ConnectionResetError("reset")])
async def test_a_lost_connection_is_told_of_all_that_is_under_way(error: Exception | None) -> None:
    office = Office()
    office.publish("1", "2")

    office.road.lose(error)

    assert [isinstance(each, ConnectionError) for each in office.told.values()] == [True, True]
    assert office.confirms.is_closed


async def test_nothing_is_sent_on_a_channel_that_is_closed() -> None:
    office = Office()
    office.road.feed([close()])

    office.publish("1")

    assert isinstance(office.told["1"], ConnectionError)
    assert await office.road.said() == []


async def test_while_the_socket_is_full_there_is_no_room() -> None:
    office = Office()
    office.road.lane.pause_writing()
    had_room = office.confirms.has_room
    waiting = [asyncio.create_task(office.confirms.room()) for _ in range(5)]
    await asyncio.sleep(0)
    were_done = [each.done() for each in waiting]

    office.road.lane.resume_writing()
    await asyncio.gather(*waiting)

    assert not had_room
    assert not any(were_done)
    assert office.confirms.has_room


async def test_who_waits_for_room_goes_on_when_the_connection_is_lost() -> None:
    office = Office()
    office.road.lane.pause_writing()
    waiting = [asyncio.create_task(office.confirms.room()) for _ in range(3)]
    await asyncio.sleep(0)

    office.road.lose()
    await asyncio.gather(*waiting)

    assert office.confirms.is_closed


async def test_the_brokers_word_to_send_nothing_is_kept_and_answered() -> None:
    office = Office()

    office.road.feed([framed(METHOD, b"\x00\x14\x00\x14\x00")])
    had_room = office.confirms.has_room
    waiting = asyncio.create_task(office.confirms.room())
    answers = await office.road.said()
    office.road.feed([framed(METHOD, b"\x00\x14\x00\x14\x01")])
    await waiting

    assert not had_room
    assert answers == [framed(METHOD, b"\x00\x14\x00\x15\x00")]
    assert await office.road.said() == [framed(METHOD, b"\x00\x14\x00\x15\x01")]
    assert office.road.passed == []


@settings(max_examples=150)
@given(st.data(), st.lists(st.integers(0, 2**20), max_size=20))
def test_every_message_is_told_of_once_however_the_answers_come(data: st.DataObject, places: list[int]) -> None:
    """Returns come before the confirms that cover them, as brokers send them."""
    count = data.draw(st.integers(1, 12))
    back = {name for name in range(1, count + 1) if data.draw(st.booleans())}
    refused = set[int]()
    frames = list[bytes]()
    open_tags: list[int] = list(range(1, count + 1))
    while open_tags:
        tag, is_nack = data.draw(st.sampled_from(open_tags)), data.draw(st.booleans())
        is_multiple = data.draw(st.booleans())
        covered: list[int] = [each for each in open_tags if each <= tag] if is_multiple else [tag]
        frames += [frame for each in covered if each in back for frame in returned(str(each), b"body", 3)]
        frames.append(confirm(tag, multiple=is_multiple, nack=is_nack))
        refused |= set(covered) if is_nack else set[int]()
        open_tags = [each for each in open_tags if each not in covered]

    async def live() -> dict[str, type]:
        office = Office()
        office.publish(*map(str, range(1, count + 1)))
        office.road.feed(cut(b"".join(frames), places))
        assert office.road.passed == []
        return office.types

    expected = {
        str(tag): Returned if tag in back else Refused if tag in refused else type(None) for tag in range(1, count + 1)
    }
    assert asyncio.run(live()) == expected


@pytest.mark.parametrize("key", ["x" * 256, "é" * 128])
async def test_a_routing_key_that_has_no_room_is_not_sent(key: str) -> None:
    office = Office()
    long = Publication(exchange="", routing_key=key, body=b"", properties=Properties(message_id="1"))

    with pytest.raises(ValueError, match="255"):
        office.confirms.publish(long, lambda error: None)

    office.publish("2")
    office.road.feed([confirm(1)])

    assert office.told == {"2": None}
