"""What the contract tests share. They speak AMQP only, so that they run on any broker that does."""

from collections.abc import AsyncGenerator, Callable

import pytest

from tests.support.apps import Bench
from tests.support.broker import Broker, plain_client


@pytest.fixture
async def broker(url: str) -> AsyncGenerator[Broker]:
    """A plain client of the test's own."""
    async with plain_client(url) as client:
        yield client


@pytest.fixture
async def bench(url: str, unique: Callable[[], str], broker: Broker) -> AsyncGenerator[Bench]:
    """Makes apps, and removes afterwards what they left on the broker."""
    bench = Bench(url, unique, broker)
    yield bench
    await bench.close()
