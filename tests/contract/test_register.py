"""A register gives back the last value that was confirmed, whoever reads it, and however often."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from amqpjobs import App, BrokerUnavailableError, EnqueueError, TooLargeError
from amqpjobs.amqp.connection import Session, open_session
from amqpjobs.amqp.declare import Declarer
from amqpjobs.amqp.register import LONGEST_VALUE, WINDOW, Record, Register
from tests.support.apps import Bench
from tests.support.broker import Broker


@asynccontextmanager
async def opened(app: App[None]) -> AsyncGenerator[tuple[Session, Register]]:
    topology = app.topology
    session = await open_session(app.settings.urls[0], app.settings, "test")
    try:
        await Declarer(topology, app.events).prepare(session, topology.beat(app.name), declares=True)
        yield session, Register(session, topology.beat_register(app.name), topology.to_beat_register(app.name))
    finally:
        await session.close()


@pytest.fixture
async def app(bench: Bench, broker: Broker) -> AsyncGenerator[App[None]]:
    app = bench.app()
    yield app
    for queue in app.topology.beat(app.name).queues:
        await broker.delete_queue(queue.name)


async def test_a_register_that_was_never_written_is_empty(app: App[None]) -> None:
    async with opened(app) as (_, register):
        assert await register.read() == Record()
        assert await register.read() == Record()


async def test_another_reader_gets_the_last_value_and_only_that(app: App[None]) -> None:
    async with opened(app) as (_, register):
        for number in range(20):
            await register.write(b"%d" % number)
    async with opened(app) as (_, register):
        assert await register.read() == Record(b"19")


async def test_changes_come_with_the_value_they_amend(app: App[None]) -> None:
    async with opened(app) as (_, register):
        await register.write(b"old")
        await register.amend(b"lost with it")
        await register.write(b"new")
        changes = [b"%d" % number for number in range(30)]
        for change in changes:
            await register.amend(change)
    async with opened(app) as (_, register):
        assert await register.read() == Record(b"new", tuple(changes))


async def test_a_value_survives_any_number_of_readers(app: App[None]) -> None:
    async with opened(app) as (_, register):
        await register.write(b"value")
        await register.amend(b"change")
    for _ in range(5):
        async with opened(app) as (_, register):
            for _ in range(20):
                assert await register.read() == Record(b"value", (b"change",))


async def test_readers_at_the_same_time_do_not_hide_the_value_from_each_other(app: App[None]) -> None:
    async with opened(app) as (_, register):
        await register.write(b"value")

        async def read() -> Record:
            async with opened(app) as (_, other):
                return await other.read()

        assert await asyncio.gather(*(read() for _ in range(5))) == [Record(b"value")] * 5


async def test_a_reader_beside_the_writer_gets_a_value_that_was_written(app: App[None]) -> None:
    async with opened(app) as (_, writer), opened(app) as (_, reader):
        await writer.write(b"0")
        seen = list[int]()

        async def write() -> None:
            for number in range(1, 50):
                await writer.write(b"%d" % number)

        async with asyncio.TaskGroup() as group:
            writing = group.create_task(write())
            while not writing.done():
                seen.append(int((await reader.read()).value or b"-1"))
        seen.append(int((await reader.read()).value or b"-1"))

        assert seen == sorted(seen)
        assert seen[0] >= 0
        assert seen[-1] == 49


async def test_more_entries_than_a_reader_is_lent_at_once_are_read_to_the_end(app: App[None]) -> None:
    async with opened(app) as (_, register):
        await register.write(b"value")
        for _ in range(20):
            await asyncio.gather(*(register.amend(b"change") for _ in range(WINDOW // 8)))
        record = await register.read()

        assert record.value == b"value"
        assert len(record.changes) == 20 * (WINDOW // 8)


async def test_a_large_value_comes_back_after_many_and_a_larger_one_is_refused(app: App[None]) -> None:
    async with opened(app) as (_, register):
        for letter in (b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h"):
            await register.write(letter * LONGEST_VALUE)
        with pytest.raises(TooLargeError, match=f"takes {LONGEST_VALUE} bytes"):
            await register.write(b"i" * (LONGEST_VALUE + 1))

        record = await register.read()

    assert record.value == b"h" * LONGEST_VALUE


async def test_on_a_lost_connection_nothing_is_read_or_written_any_more(app: App[None]) -> None:
    async with opened(app) as (session, register):
        await register.write(b"before")
        session.fail(None)

        with pytest.raises(BrokerUnavailableError):
            await register.write(b"after")
        with pytest.raises(BrokerUnavailableError):
            await register.amend(b"after")
    async with opened(app) as (_, register):
        assert await register.read() == Record(b"before")


async def test_when_the_stream_is_deleted_reading_and_writing_fail_in_words(app: App[None], broker: Broker) -> None:
    async with opened(app) as (_, register):
        await register.write(b"value")
        await broker.delete_queue(app.topology.beat_register(app.name))

        with pytest.raises(EnqueueError):
            await register.write(b"again")
        with pytest.raises(BrokerUnavailableError, match="could not be read"):
            await register.read()
