"""What the queue of a process's answers rests on: it outlives a connection, and not its process for long."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import cast

import aiormq
import pytest
from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.exceptions import PublishError

from tests.support.broker import PATIENCE, eventually
from tests.support.cable import Cable

#: Milliseconds: longer than a test takes, and as short as may be.
LASTING, SHORT = 60_000, 1_000


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[AbstractChannel]:
    connection = await aiormq.connect(url)
    try:
        yield await connection.channel(publisher_confirms=True, on_return_raises=True)
    finally:
        await connection.close()


class Post:
    """Reply queues as `Topology.replies` plans them, bound to an exchange of the test's own."""

    def __init__(self, unique: Callable[[], str]) -> None:
        self.exchange = unique()
        self.names = [unique(), unique()]

    async def open(self, channel: AbstractChannel, name: str, expires: int) -> None:
        await channel.exchange_declare(self.exchange, exchange_type="direct", durable=True)
        await channel.queue_declare(name, durable=True, arguments={"x-queue-type": "classic", "x-expires": expires})
        await channel.queue_bind(name, self.exchange, name)

    async def answer(self, channel: AbstractChannel, name: str, body: bytes = b"") -> bool:
        """Whether anybody can get it. (A look by a declare would count as a use.)"""
        try:
            await channel.basic_publish(body, exchange=self.exchange, routing_key=name, mandatory=True)
        except PublishError:
            return False
        return True


@pytest.fixture
async def post(url: str, unique: Callable[[], str]) -> AsyncGenerator[Post]:
    post = Post(unique)
    yield post
    async with connected(url) as channel:
        for name in post.names:
            await channel.queue_delete(name)
        await channel.exchange_delete(post.exchange)


async def ignore(message: DeliveredMessage) -> None:
    """Neither ack nor anything else."""


async def test_a_reply_queue_stays_while_it_is_consumed_and_then_answers_to_it_are_returned(
    url: str, post: Post
) -> None:
    consumed, unused = post.names
    async with connected(url) as outside:

        async def is_gone(name: str) -> bool:
            return not await post.answer(outside, name)

        async with connected(url) as channel:
            await post.open(channel, consumed, SHORT)
            await channel.basic_consume(consumed, ignore)
            await post.open(channel, unused, SHORT)
            await eventually(lambda: is_gone(unused))
            is_there = not await is_gone(consumed)
        await eventually(lambda: is_gone(consumed))

    assert is_there


async def test_the_next_connection_declares_it_again_and_consumes_what_came_meanwhile(url: str, post: Post) -> None:
    name, got, all_came = post.names[0], list[bytes](), asyncio.Event()

    async with connected(url) as outside, connected(url) as again:

        async def received(message: DeliveredMessage) -> None:
            got.append(message.body)
            await again.basic_ack(cast("aiormq.spec.Basic.Deliver", message.delivery).delivery_tag or 0)
            if len(got) == 2:
                all_came.set()

        async with Cable(url).running() as cable:
            connection = await aiormq.connect(cable.url)
            channel = await connection.channel()
            await post.open(channel, name, LASTING)
            await channel.basic_consume(name, ignore)
            assert await post.answer(outside, name, b"lent and not acked")
            cable.cut()
            assert await post.answer(outside, name, b"while nobody was there")
        await post.open(again, name, LASTING)
        await again.basic_consume(name, received)
        async with asyncio.timeout(PATIENCE):
            await all_came.wait()

    assert sorted(got) == [b"lent and not acked", b"while nobody was there"]
