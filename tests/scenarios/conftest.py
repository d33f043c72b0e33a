"""What the scenarios share: a bench on a node of the test's own, which it may break."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from tests.support.apps import Bench
from tests.support.broker import plain_client
from tests.support.rabbitmq import Node

BenchOn = Callable[[Node], AbstractAsyncContextManager[Bench]]


@pytest.fixture
def bench_on(unique: Callable[[], str]) -> BenchOn:
    """A bench on a node that ends with the test; nothing is swept."""

    @asynccontextmanager
    async def bench(node: Node) -> AsyncGenerator[Bench]:
        async with plain_client(node.url) as client:
            yield Bench(node.url, unique, client)

    return bench


async def control(node: Node, *arguments: str) -> str:
    """rabbitmqctl, without holding up the event loop."""
    return await asyncio.to_thread(node.ctl, *arguments)
