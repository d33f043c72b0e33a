"""`contrib.django` with real Django on SQLite and a real broker: what commits is enqueued, and nothing else."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar, cast

import django
import pytest
from django.conf import settings
from django.db import connections, transaction

from amqpjobs import BlockingClient, Job, TooLargeError, UnroutableError
from amqpjobs.contrib.django import enqueue_on_commit
from amqpjobs.handle import EnqueueOptions
from tests.support.apps import work_queue
from tests.support.broker import plain_client
from tests.support.ledger import Ledger, open_ledger

T = TypeVar("T")

WRONG_OPTIONS: list[EnqueueOptions] = [
    {"delay": -1},
    {"delay": 1, "run_at": datetime(2030, 1, 1, tzinfo=UTC)},
    {"priority": 999},
    {"headers": {"large": "x" * 60_000}},
    cast("EnqueueOptions", {"dealy": 5}),
    {"reply": True},
]


class RolledBackError(Exception):
    """Ends a transaction."""


@pytest.fixture(scope="module", autouse=True)
def database(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("django")
    settings.configure(DATABASES={name: sqlite(folder / name) for name in ("default", "other")})
    django.setup()


@pytest.fixture
async def ledger(url: str, unique: Callable[[], str]) -> AsyncGenerator[Ledger]:
    async with open_ledger(url, unique) as opened:
        yield opened


async def test_a_committed_transaction_enqueues_and_not_before(ledger: Ledger) -> None:
    def view(client: BlockingClient) -> tuple[str, int]:
        with transaction.atomic():
            job_id = enqueue_on_commit(client, ledger.note(n=1), headers={"tenant": "acme"})
            early = asyncio.run(waiting(ledger))
        return job_id, early

    job_id, early = await in_django(ledger, view)

    assert early == 0
    assert await ledger.arrived(1) == [job_id]


async def test_a_rolled_back_transaction_enqueues_nothing(ledger: Ledger) -> None:
    def view(client: BlockingClient) -> None:
        with suppress(RolledBackError), transaction.atomic():
            enqueue_on_commit(client, ledger.note())
            raise RolledBackError

    await in_django(ledger, view)

    assert await ledger.arrived(0) == []


async def test_a_rolled_back_savepoint_takes_only_its_own_jobs_with_it(ledger: Ledger) -> None:
    def view(client: BlockingClient) -> list[str]:
        with transaction.atomic():
            first = enqueue_on_commit(client, ledger.note(text="outer"))
            with suppress(RolledBackError), transaction.atomic():
                with transaction.atomic():
                    enqueue_on_commit(client, ledger.note(text="released into what is rolled back"))
                raise RolledBackError
            with transaction.atomic():
                second = enqueue_on_commit(client, ledger.note(text="released"))
        return [first, second]

    ids = await in_django(ledger, view)

    assert await ledger.arrived(2) == ids


async def test_without_a_transaction_it_is_enqueued_at_once(ledger: Ledger) -> None:
    job_id = await in_django(ledger, lambda client: enqueue_on_commit(client, ledger.note(), job_id="mine"))

    assert job_id == "mine"
    assert await ledger.arrived(1) == ["mine"]


async def test_the_database_that_counts_is_the_one_named(ledger: Ledger) -> None:
    def view(client: BlockingClient) -> str:
        job_id = ""
        with suppress(RolledBackError), transaction.atomic():
            with transaction.atomic(using="other"):
                job_id = enqueue_on_commit(client, ledger.note(), using="other")
            raise RolledBackError
        return job_id

    job_id = await in_django(ledger, view)

    assert await ledger.arrived(1) == [job_id]


async def test_a_failed_enqueue_is_raised_after_the_commit(ledger: Ledger) -> None:
    def view(client: BlockingClient) -> list[int]:
        @transaction.atomic
        def order() -> None:
            execute("INSERT INTO orders VALUES (7)")
            enqueue_on_commit(client, ledger.note(), queue="nowhere")

        execute("CREATE TABLE orders (n int)")
        with pytest.raises(UnroutableError):
            order()
        return numbers("orders")

    assert await in_django(ledger, view) == [7]


async def test_what_cannot_be_enqueued_is_refused_while_the_transaction_can_still_be_rolled_back(
    ledger: Ledger,
) -> None:
    def view(client: BlockingClient) -> list[int]:
        @transaction.atomic
        def order(job: Job[None], options: EnqueueOptions) -> None:
            execute("INSERT INTO refused VALUES (7)")
            enqueue_on_commit(client, job, robust=True, **options)

        execute("CREATE TABLE refused (n int)")
        for options in WRONG_OPTIONS:
            with pytest.raises((ValueError, TypeError, TooLargeError)):
                order(ledger.note(), options)
        with pytest.raises(TooLargeError):
            order(ledger.note(text="x" * 20_000_000), {})
        order(ledger.note(), {"delay": 0.1})
        return numbers("refused")

    assert await in_django(ledger, view) == [7]
    await ledger.arrived(1)


async def test_a_robust_one_is_logged_and_the_next_is_enqueued(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    def view(client: BlockingClient) -> str:
        with transaction.atomic():
            enqueue_on_commit(client, ledger.note(), queue="nowhere", robust=True)
            return enqueue_on_commit(client, ledger.note())

    with caplog.at_level(logging.ERROR):
        job_id = await in_django(ledger, view)

    assert await ledger.arrived(1) == [job_id]
    assert "No queue is bound" in caplog.text


async def in_django(ledger: Ledger, view: Callable[[BlockingClient], T]) -> T:
    """Run a view as a server's thread does, and close what it opened."""

    def serve() -> T:
        try:
            with BlockingClient(ledger.app) as client:
                return view(client)
        finally:
            connections.close_all()

    return await asyncio.to_thread(serve)


async def waiting(ledger: Ledger) -> int:
    """How many are in the queue now, asked on a connection of the thread's own."""
    async with plain_client(ledger.app.settings.urls[0]) as broker:
        return await broker.count(work_queue(ledger.app))


def sqlite(file: Path) -> dict[str, str]:
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(file)}


def execute(statement: str) -> None:
    with connections["default"].cursor() as cursor:
        cursor.execute(statement)


def numbers(table: str) -> list[int]:
    with connections["default"].cursor() as cursor:
        return [row[0] for row in cursor.execute(f"SELECT n FROM {table}").fetchall()]
