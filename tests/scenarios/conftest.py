"""What the scenarios share: a bench on a node of the test's own, which it may break, and a shell beside a service."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from tests.support.apps import Bench
from tests.support.broker import Broker, plain_client
from tests.support.rabbitmq import Node
from tests.support.service import Service
from tests.support.shop import Shop

BenchOn = Callable[[Node], AbstractAsyncContextManager[Bench]]


@pytest.fixture
def bench_on(unique: Callable[[], str]) -> BenchOn:
    """A bench on a node that ends with the test; nothing is swept."""

    @asynccontextmanager
    async def bench(node: Node) -> AsyncGenerator[Bench]:
        async with plain_client(node.url) as client:
            yield Bench(node.url, unique, client)

    return bench


@pytest.fixture
async def broker(url: str) -> AsyncGenerator[Broker]:
    async with plain_client(url) as client:
        yield client


@pytest.fixture
async def shop(url: str, unique: Callable[[], str], tmp_path: Path, broker: Broker) -> AsyncGenerator[Shop]:
    """Its queues, and one that it may have had before, are removed afterwards."""
    shop = Shop(unique(), tmp_path, url)
    yield shop
    for name in (shop.name, f"{shop.name}-old"):
        await broker.delete_queue(f"tests.queue.{name}")
        await broker.delete_queue(f"tests.dead.{name}")


@pytest.fixture
async def service(url: str, unique: Callable[[], str], tmp_path: Path) -> AsyncGenerator[Service]:
    """A service to run by `amqpjobs run`, in a folder of its own; its queues are removed afterwards."""
    name = unique()
    async with plain_client(url) as broker:
        yield Service(name, tmp_path, url, broker)
        for queue in (f"tests.queue.{name}", f"tests.dead.{name}"):
            await broker.delete_queue(queue)


async def control(node: Node, *arguments: str) -> str:
    """rabbitmqctl, without holding up the event loop."""
    return await asyncio.to_thread(node.ctl, *arguments)
