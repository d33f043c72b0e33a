"""The proxy for faults does what the stories of failure ask of it."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import pytest

from tests.support.broker import PATIENCE
from tests.support.faults import FaultyProxy, Way
from tests.support.frames import FrameReader, method, short_text

HELLO = b"AMQP\x00\x00\x09\x01"
ACK = method("basic.ack", 1, b"\x00" * 9)
CONSUMING = method("basic.consume-ok", 1, short_text(b"ctag"))
DELIVER = method("basic.deliver", 1, b"\x04ctag" + b"\x00" * 11)
HEADER = b"\x02\x00\x01\x00\x00\x00\x0e" + b"\x00\x3c\x00\x00" + (3).to_bytes(8, "big") + b"\x00\x00\xce"
BODY = b"\x03\x00\x01\x00\x00\x00\x03abc\xce"
CANCEL = method("basic.cancel", 1, short_text(b"ctag") + b"\x01")


class Line:
    """A client and a broker of bare sockets, and the proxy between them."""

    def __init__(self, proxy: FaultyProxy) -> None:
        self.proxy = proxy
        self.accepted: asyncio.Queue[End] = asyncio.Queue()
        self.ends: list[End] = []

    async def connect(self) -> tuple["End", "End"]:
        """A client's end and a broker's end of a new connection, past the greeting."""
        client = End(*await asyncio.open_connection("127.0.0.1", self.proxy.port))
        broker = await self.accepted.get()
        self.ends += [client, broker]
        client.write(HELLO)
        assert await broker.read(8) == HELLO
        return client, broker


class End:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def write(self, raw: bytes) -> None:
        self._writer.write(raw)

    async def read(self, count: int) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self._reader.readexactly(count)

    async def rest(self) -> bytes:
        """All until the end of the connection."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.read()

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


@asynccontextmanager
async def line(seed: int | None = None) -> AsyncGenerator[Line]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.accepted.put_nowait(End(reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    made = Line(FaultyProxy(f"amqp://guest:guest@127.0.0.1:{port}/", seed=seed))
    async with server, made.proxy.running():
        yield made
        for end in made.ends:
            await end.close()


def test_frames_are_found_however_the_bytes_are_cut() -> None:
    stream, chance = HELLO + ACK + HEADER + BODY + CANCEL, random.Random(1)

    for _ in range(50):
        reader, names, at = FrameReader(has_greeting=True), list[str](), 0
        while at < len(stream):
            size = chance.randint(1, 9)
            names += [frame.name for frame in reader.feed(stream[at : at + size])]
            at += size

        assert names == ["greeting", "basic.ack", "header", "body", "basic.cancel"]


async def test_it_passes_and_counts() -> None:
    async with line() as made:
        client, broker = await made.connect()
        client.write(ACK + ACK)
        broker.write(DELIVER + HEADER + BODY)
        seen = await broker.read(2 * len(ACK)), await client.read(len(DELIVER + HEADER + BODY))

    assert seen == (ACK + ACK, DELIVER + HEADER + BODY)
    assert made.proxy.to_broker == {"basic.ack": 2}
    assert made.proxy.from_broker == {"basic.deliver": 1, "header": 1, "body": 1}


async def test_it_cuts_at_a_byte_of_a_direction() -> None:
    async with line() as made:
        client, broker = await made.connect()
        made.proxy.cut_at(Way.TO_BROKER, 10)
        client.write(ACK)

        assert (await broker.rest(), await client.rest()) == (ACK[:10], b"")
        client, broker = await made.connect()
        client.write(ACK)
        assert await broker.read(len(ACK)) == ACK


async def test_it_cuts_within_a_frame_of_a_name() -> None:
    async with line() as made:
        client, broker = await made.connect()
        torn = made.proxy.tear(Way.FROM_BROKER, "body")
        broker.write(DELIVER + HEADER + BODY)

        assert await client.rest() == DELIVER + HEADER + BODY[: len(BODY) // 2]
        assert torn.struck.is_set()


async def test_it_cuts_all_connections_now_by_a_reset_or_politely() -> None:
    async with line() as made:
        pairs = [await made.connect() for _ in range(3)]
        made.proxy.cut(reset=False)
        endings = [await end.rest() for pair in pairs for end in pair]
        client, broker = await made.connect()
        made.proxy.cut()
        with pytest.raises(ConnectionResetError):
            await client.rest()
        with pytest.raises(ConnectionResetError):
            await broker.rest()

    assert endings == [b""] * 6


async def test_it_stalls_one_direction_and_goes_on() -> None:
    async with line() as made:
        client, broker = await made.connect()
        made.proxy.stall(Way.TO_BROKER)
        client.write(ACK)
        broker.write(CONSUMING)

        assert await client.read(len(CONSUMING)) == CONSUMING
        waiting = asyncio.create_task(broker.read(len(ACK)))
        await asyncio.wait([waiting], timeout=0.1)
        assert not waiting.done()
        made.proxy.resume()
        assert await waiting == ACK


async def test_it_loses_just_the_frames_it_is_told_to() -> None:
    async with line() as made:
        client, broker = await made.connect()
        rule = made.proxy.swallow(Way.TO_BROKER, "basic.ack", nth=2, count=2)
        acks = [method("basic.ack", 1, bytes([n]) * 9) for n in range(5)]
        client.write(b"".join(acks))

        assert await broker.read(3 * len(ACK)) == acks[0] + acks[3] + acks[4]
        assert rule.struck.is_set()


async def test_it_holds_frames_back_until_they_are_released() -> None:
    async with line() as made:
        client, broker = await made.connect()
        made.proxy.hold(Way.FROM_BROKER, "basic.ack")
        broker.write(ACK + CONSUMING)

        assert await client.read(len(CONSUMING)) == CONSUMING
        made.proxy.release()
        assert await client.read(len(ACK)) == ACK


async def test_it_cancels_consumers_in_the_brokers_name_behind_a_content_under_way() -> None:
    async with line() as made:
        client, broker = await made.connect()
        broker.write(CONSUMING + DELIVER + HEADER)
        await client.read(len(CONSUMING + DELIVER + HEADER))

        assert (made.proxy.consumers, made.proxy.forge_cancel()) == (1, 1)
        broker.write(BODY)
        assert await client.read(len(BODY + CANCEL)) == BODY + CANCEL


async def test_it_blocks_and_unblocks_in_the_brokers_name() -> None:
    async with line() as made:
        client, _ = await made.connect()
        made.proxy.forge_blocked("low on disk")
        made.proxy.forge_unblocked()

        told = method("connection.blocked", 0, short_text(b"low on disk")) + method("connection.unblocked", 0, b"")
        assert await client.read(len(told)) == told


async def test_it_refuses_new_connections_for_a_while_and_leaves_the_old_ones() -> None:
    async with line() as made:
        client, broker = await made.connect()
        await made.proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await made.connect()
        client.write(ACK)

        assert await broker.read(len(ACK)) == ACK
        await made.proxy.accept()
        await made.connect()


def test_the_same_seed_brings_the_same_chances() -> None:
    first, second = (FaultyProxy("amqp://guest:guest@127.0.0.1:1/", seed=5) for _ in range(2))

    assert [first.random.random() for _ in range(5)] == [second.random.random() for _ in range(5)]
