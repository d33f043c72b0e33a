"""A queue that takes one kind and is not worked on, to see what arrived exactly."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from amqpjobs import App, Worker
from amqpjobs.job import options_of
from tests.support.apps import Bench, Note, record, work_queue
from tests.support.broker import PATIENCE, Broker, plain_client


@dataclass(frozen=True, slots=True)
class Ledger:
    """An app, its kind of note, and what is in its queue."""

    app: App[None]
    note: type[Note]
    broker: Broker

    @property
    def kind(self) -> str:
        return options_of(self.note).kind

    async def arrived(self, count: int) -> list[str]:
        """Take the ids of all jobs in the queue, of which there must be just so many."""
        queue = work_queue(self.app)
        await self.broker.await_count(queue, count)
        letters = await self.broker.take(queue, count, within=4 * PATIENCE) if count else []
        return [letter.text("amqpjobs-id") for letter in letters]


@asynccontextmanager
async def open_ledger(url: str, unique: Callable[[], str]) -> AsyncGenerator[Ledger]:
    """Its queue is removed afterwards."""
    async with plain_client(url) as broker:
        bench = Bench(url, unique, broker)
        app, note = bench.app(), bench.kind()
        record(app, note)
        async with Worker(app):
            pass
        yield Ledger(app, note, broker)
        await bench.close()
