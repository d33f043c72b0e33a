"""Notices of runs come in one order, to whoever reads them and as often as they are read."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from amqpjobs import App, BrokerUnavailableError
from amqpjobs.amqp.connection import OneSession, Session, open_session
from amqpjobs.amqp.declare import Declarer
from amqpjobs.amqp.publisher import Publisher
from amqpjobs.amqp.runs import WINDOW, Notice, Runs, Word, notice_of
from amqpjobs.envelope import Envelope
from amqpjobs.wire import Publication
from tests.support.apps import Bench, Seen
from tests.support.broker import PATIENCE, Broker

BEGIN = datetime(1970, 1, 1, tzinfo=UTC)


class Stream:
    """The runs of one app on one session, as who tells and who reads has them."""

    def __init__(self, app: App[None], session: Session) -> None:
        topology = app.topology
        self._app = app
        self.session = session
        self.runs = Runs(session, topology.beat_runs(app.name), topology.to_beat_runs(app.name))
        self._publisher = Publisher(OneSession(session), longest_body=0)

    async def tell(self, word: Word, tick: str = "tick", copy: str = "one") -> str:
        """Tell one; its message id."""
        publication = self.notice(word, tick, copy)
        await self._publisher.send(publication)
        return publication.properties.message_id or ""

    async def tell_many(self, count: int) -> str:
        """Tell of so many ticks; the message id of the last."""
        publications = [self.notice(Word.STARTED, f"tick-{number}", "one") for number in range(count)]
        await self._publisher.send_all(publications[:-1])
        await self._publisher.send(publications[-1])
        return publications[-1].properties.message_id or ""

    def notice(self, word: Word, tick: str, copy: str) -> Publication:
        job = Envelope(kind="tick", payload=b"{}", job_id=tick, copy=copy, app_id=self._app.name)
        publication = notice_of(self._app.topology, job, word)
        assert publication is not None
        return publication

    @asynccontextmanager
    async def followed(self, since: datetime = BEGIN) -> AsyncGenerator[tuple[Seen[Notice], "asyncio.Task[None]"]]:
        """What a follower is handed on, from when it is current; and the follower."""
        seen, current = Seen[Notice](), asyncio.Event()
        following = asyncio.create_task(self.runs.follow(since, seen.add, current.set))
        try:
            async with asyncio.timeout(PATIENCE):
                await current.wait()
            yield seen, following
        finally:
            following.cancel()
            await asyncio.wait([following])


@asynccontextmanager
async def opened(app: App[None]) -> AsyncGenerator[Stream]:
    session = await open_session(app.settings.urls[0], app.settings, "test")
    try:
        await Declarer(app.topology, app.events).prepare(session, app.topology.beat(app.name), declares=True)
        yield Stream(app, session)
    finally:
        await session.close()


@pytest.fixture
async def app(bench: Bench, broker: Broker) -> AsyncGenerator[App[None]]:
    app = bench.app()
    yield app
    for queue in app.topology.beat(app.name).queues:
        await broker.delete_queue(queue.name)


async def test_a_reader_gets_all_up_to_the_notice_it_asked_for_and_no_more(app: App[None]) -> None:
    async with opened(app) as stream:
        await stream.tell(Word.STARTED)
        goal = await stream.tell(Word.DROPPED, copy="two")
        await stream.tell(Word.ENDED)

        expected = [Notice(Word.STARTED, "tick", "one"), Notice(Word.DROPPED, "tick", "two")]
        assert await stream.runs.read(BEGIN, [goal], ["tick"]) == expected
    async with opened(app) as stream:
        assert await stream.runs.read(BEGIN, [goal], ["tick"]) == expected


async def test_a_reader_waits_for_all_notices_it_asked_for_and_gets_those_of_its_ticks(app: App[None]) -> None:
    async with opened(app) as stream:
        goals = [await stream.tell(Word.STARTED, tick) for tick in ("a", "b", "c")]

        assert await stream.runs.read(BEGIN, goals[::-1], ["a", "c"]) == [
            Notice(Word.STARTED, "a", "one"),
            Notice(Word.STARTED, "c", "one"),
        ]


async def test_readers_and_tellers_at_the_same_time_see_one_order(app: App[None]) -> None:
    async with opened(app) as one, opened(app) as two:

        async def told_and_read(stream: Stream, copy: str) -> list[Notice]:
            return await stream.runs.read(BEGIN, [await stream.tell(Word.STARTED, copy=copy)], ["tick"])

        for number in range(10):
            async with asyncio.TaskGroup() as group:
                first = group.create_task(told_and_read(one, f"{number} a"))
                second = group.create_task(told_and_read(two, f"{number} b"))

            # Who comes second sees the first, and never both or neither of them.
            lengths = sorted([len(first.result()), len(second.result())])
            assert lengths == [2 * number + 1, 2 * number + 2]


async def test_more_notices_than_a_reader_is_lent_at_once_are_read_to_the_goal(app: App[None]) -> None:
    async with opened(app) as stream:
        goal = await stream.tell_many(3 * WINDOW)

        ticks = {f"tick-{number}" for number in range(3 * WINDOW)}
        notices = await stream.runs.read(BEGIN, [goal], ticks)

    assert {each.tick for each in notices} == ticks


async def test_a_follower_gets_what_was_told_before_it_is_current_and_then_what_comes(app: App[None]) -> None:
    async with opened(app) as stream, opened(app) as other:
        await stream.tell_many(WINDOW + 10)
        async with stream.followed() as (seen, _):
            assert len({each.tick for each in seen}) == WINDOW + 10
            before = len(seen)
            await other.tell(Word.STARTED, "later")
            await other.tell(Word.ENDED, "later")
            await seen.until(before + 2)

            assert [each.word for each in seen][before:] == [Word.STARTED, Word.ENDED]


async def test_a_follower_that_is_told_of_nothing_is_current_at_once(app: App[None]) -> None:
    async with opened(app) as stream, stream.followed() as (seen, _):
        assert len(seen) == 0


async def test_what_was_told_long_before_is_not_read_again(app: App[None]) -> None:
    async with opened(app) as stream:
        await stream.tell(Word.STARTED, "old")
        async with stream.followed(datetime.now(UTC) + timedelta(hours=1)) as (seen, _):
            await stream.tell(Word.STARTED, "new")
            await seen.until(1)

        assert [each.tick for each in seen] == ["new"]


async def test_what_nobody_of_ours_has_told_is_passed_over(app: App[None], broker: Broker) -> None:
    async with opened(app) as stream:
        route = app.topology.to_beat_runs(app.name)
        await broker.publish(route.exchange, route.key, b"nonsense", kind="started", headers={"amqpjobs-id": 7})
        await broker.publish(route.exchange, route.key, b"nonsense", headers={"amqpjobs-id": "tick"})
        await broker.publish(
            route.exchange, route.key, kind="burnt", headers={"amqpjobs-id": "a", "amqpjobs-copy": "b"}
        )
        goal = await stream.tell(Word.ENDED)

        assert await stream.runs.read(BEGIN, [goal], ["tick"]) == [Notice(Word.ENDED, "tick", "one")]


async def test_on_a_lost_connection_reading_and_following_end_in_words(app: App[None]) -> None:
    async with opened(app) as stream:
        goal = await stream.tell(Word.STARTED)
        async with stream.followed() as (_, following):
            await stream.session.close()
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait([following])

            with pytest.raises(BrokerUnavailableError, match="could not be read"):
                following.result()
        with pytest.raises(BrokerUnavailableError):
            await stream.runs.read(BEGIN, [goal], ["tick"])


async def test_when_the_stream_is_deleted_following_ends_in_words(app: App[None], broker: Broker) -> None:
    async with opened(app) as stream, stream.followed() as (_, following):
        await broker.delete_queue(app.topology.beat_runs(app.name))
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait([following])

        with pytest.raises(BrokerUnavailableError, match="could not be read"):
            following.result()


async def test_what_is_no_copy_of_a_tick_has_no_notice(app: App[None]) -> None:
    job = Envelope(kind="tick", payload=b"{}", job_id="tick")

    assert notice_of(app.topology, job.evolve(app_id=app.name), Word.STARTED) is None
    assert notice_of(app.topology, job.evolve(copy="one"), Word.STARTED) is None
    assert notice_of(app.topology, job.evolve(copy="one", app_id="a" * 250), Word.STARTED) is None
