"""What the scenarios share: a bench on a node of the test's own, which it may break, and a shell beside a service."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from amqpjobs import App, EnqueueError
from tests.support.apps import Bench, Note
from tests.support.broker import PATIENCE, Broker, eventually, plain_client
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


async def until_all_ran(wanted: set[str], have: Callable[[], set[str]], *, within: float = 60) -> None:
    async def is_done() -> bool:
        return wanted <= have()

    await eventually(is_done, within=within)


async def until_enqueued(app: App[None], job: Note) -> str:
    """Its id. Nobody is bound until the worker is back."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return (await app.enqueue(job)).job_id
            except EnqueueError:
                await asyncio.sleep(0.05)
