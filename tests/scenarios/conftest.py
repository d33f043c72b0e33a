"""What the scenarios share: a bench on a node of the test's own, which it may break."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from amqpjobs import App, EnqueueError
from tests.support.apps import Bench, Note
from tests.support.broker import PATIENCE, eventually, plain_client
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
