"""Thousands of spoiled conversations with the embedded broker: each ends, with a reason, and nothing else does."""

import asyncio
import logging
from collections import Counter
from random import Random
from urllib.parse import urlsplit

import aiormq
import psutil
import pytest
from pamqp import commands, frame

from amqpjobs.devbroker import Broker
from amqpjobs.devbroker.errors import Code
from tests.conftest import announce
from tests.support.broker import PATIENCE
from tests.support.frames import FrameReader
from tests.support.length import is_full
from tests.support.nonsense import EARLY, SCRIPT, WRONG, declare, mutated, nested

CASES = 50_000 if is_full() else 2_500
SEED = 7
#: How many of them at once.
TOGETHER = 20
CODES = {code.number for code in Code}
GREETING = b"AMQP\x00\x00\x09\x01"


async def reason(url: str, data: bytes) -> tuple[int, str]:
    """Why the broker ended a connection on which this was said, and no more: a code and words, or 0 for none."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(PATIENCE):
            answer = await reader.read()
    except ConnectionError:
        return 0, ""
    finally:
        writer.close()
    if answer.endswith(GREETING):  # its answer to another protocol
        answer = answer.removesuffix(GREETING)
    ends = [said for said in methods(answer) if isinstance(said, commands.Connection.Close)]
    return (ends[0].reply_code or 0, ends[0].reply_text) if ends else (0, "")


def methods(answer: bytes) -> list[object]:
    """Also checks that the broker itself sends whole frames."""
    frames = list(FrameReader(has_greeting=False).feed(answer))
    assert b"".join(one.raw for one in frames) == answer
    return [frame.unmarshal(one.raw)[2] for one in frames if one.raw[0] == 1]


@pytest.mark.parametrize("profile", ["3.10", "4.3"])
async def test_spoiled_conversations_end_and_the_broker_lives(
    profile: str, pytestconfig: pytest.Config, caplog: pytest.LogCaptureFixture
) -> None:
    async with Broker(profile=profile) as broker:
        connection = await aiormq.connect(broker.url)
        channel = await connection.channel(publisher_confirms=True)
        await channel.queue_declare("kept", durable=True)
        process, random, ends = psutil.Process(), Random(SEED), Counter[int]()
        before = 0
        for start in range(0, CASES, TOGETHER):
            cases = [mutated(random) for _ in range(TOGETHER)]
            for data, (code, words) in zip(
                cases, await asyncio.gather(*(reason(broker.url, it) for it in cases)), strict=True
            ):
                assert code == 0 or code in CODES, data
                assert "the broker failed" not in words, data
                ends[code] += 1
            before = before or process.memory_info().rss
            await channel.basic_publish(str(start).encode(), routing_key="kept")
        await channel.queue_purge("nonsense")

        grown = process.memory_info().rss - before
        announce(
            pytestconfig,
            f"{CASES} spoiled conversations, seed {SEED}, by how they ended: {dict(sorted(ends.items()))}; "
            f"memory grew by {grown / 2**20:.1f} MiB",
        )
        assert (await channel.queue_declare("kept", passive=True)).message_count == CASES // TOGETHER
        assert grown < 64 * 2**20
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert set(ends) > {0, 501, 503, 504, 505}
        await connection.close()


@pytest.mark.parametrize("what", [*WRONG, *EARLY])
async def test_each_mistake_is_told(what: str) -> None:
    data = EARLY[what] if what in EARLY else b"".join(SCRIPT) + WRONG[what]
    async with Broker() as broker:
        code, words = await reason(broker.url, data)

    silent = ("another protocol", "an older version", "a channel beyond the maximum")
    assert (code in CODES and "the broker failed" not in words) or what in silent


async def test_a_deep_table_is_only_a_table() -> None:
    async with Broker() as broker:
        assert await reason(broker.url, b"".join(SCRIPT) + 2 * declare(nested(15_000))) == (0, "")
