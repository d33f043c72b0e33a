"""`contrib.sqlalchemy` with real SQLAlchemy on SQLite and a real broker: what commits is enqueued, and nothing else."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from sqlalchemy import Engine, create_engine, event, func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from amqpjobs import BlockingClient, EnqueueTimeoutError, TooLargeError, UnroutableError
from amqpjobs.contrib.sqlalchemy import enqueue_on_commit
from amqpjobs.handle import EnqueueOptions
from tests.support.ledger import Ledger, open_ledger

T = TypeVar("T")


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


class RolledBackError(Exception):
    """Ends a transaction."""


@pytest.fixture
async def ledger(url: str, unique: Callable[[], str]) -> AsyncGenerator[Ledger]:
    async with open_ledger(url, unique) as opened:
        yield opened


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "orders.db"


async def test_a_committed_session_enqueues(ledger: Ledger, file: Path) -> None:
    def script(client: BlockingClient, session: Session) -> list[str]:
        with session.begin():
            session.add(Order())
            ids = [enqueue_on_commit(client, session, ledger.note(n=n)) for n in range(2)]
        ids.append(enqueue_on_commit(client, session, ledger.note(), job_id="mine"))
        session.commit()
        session.commit()
        return ids

    ids = await in_session(ledger, file, script)

    assert await ledger.arrived(3) == ids
    assert ids[2] == "mine"


async def test_a_session_that_is_rolled_back_or_closed_enqueues_nothing(ledger: Ledger, file: Path) -> None:
    def script(client: BlockingClient, session: Session) -> int:
        with suppress(RolledBackError), session.begin():
            session.add(Order())
            session.flush()
            enqueue_on_commit(client, session, ledger.note())
            raise RolledBackError
        enqueue_on_commit(client, session, ledger.note())
        session.rollback()
        enqueue_on_commit(client, session, ledger.note())
        session.close()
        session.add(Order())
        session.commit()
        return count(session)

    orders = await in_session(ledger, file, script)

    assert orders == 1
    assert await ledger.arrived(0) == []


async def test_a_rolled_back_savepoint_takes_only_its_own_jobs_with_it(ledger: Ledger, file: Path) -> None:
    def script(client: BlockingClient, session: Session) -> tuple[list[str], int]:
        with session.begin():
            first = enqueue_on_commit(client, session, ledger.note(text="outer"))
            with suppress(RolledBackError), session.begin_nested():
                session.add(Order())
                enqueue_on_commit(client, session, ledger.note(text="rolled back"))
                with session.begin_nested():
                    enqueue_on_commit(client, session, ledger.note(text="released into what is rolled back"))
                raise RolledBackError
            with session.begin_nested():
                session.add(Order())
                with session.begin_nested():
                    second = enqueue_on_commit(client, session, ledger.note(text="released twice"))
            savepoint = session.begin_nested()
            enqueue_on_commit(client, session, ledger.note(text="closed"))
            savepoint.rollback()
            third = enqueue_on_commit(client, session, ledger.note(text="outer"))
        return [first, second, third], count(session)

    ids, orders = await in_session(ledger, file, script)

    assert orders == 1
    assert sorted(await ledger.arrived(3)) == sorted(ids)


async def test_a_commit_with_a_savepoint_still_open_enqueues_all(ledger: Ledger, file: Path) -> None:
    def script(client: BlockingClient, session: Session) -> str:
        session.begin()
        session.begin_nested()
        job_id = enqueue_on_commit(client, session, ledger.note())
        session.commit()
        session.commit()
        return job_id

    job_id = await in_session(ledger, file, script)

    assert await ledger.arrived(1) == [job_id]


async def test_a_failed_flush_enqueues_nothing(ledger: Ledger, file: Path) -> None:
    def script(client: BlockingClient, session: Session) -> None:
        session.add(Order(id=1))
        session.commit()
        session.add(Order(id=1))
        enqueue_on_commit(client, session, ledger.note())
        with pytest.raises(Exception, match="UNIQUE"):
            session.commit()
        session.rollback()
        session.commit()

    await in_session(ledger, file, script)

    assert await ledger.arrived(0) == []


async def test_a_failed_enqueue_is_raised_after_the_commit_and_leaves_the_session_usable(
    ledger: Ledger, file: Path
) -> None:
    def script(client: BlockingClient, session: Session) -> tuple[str, int]:
        session.add(Order())
        enqueue_on_commit(client, session, ledger.note(), queue="nowhere")
        untried = enqueue_on_commit(client, session, ledger.note())
        with pytest.raises(UnroutableError) as caught:
            session.commit()
        assert untried in caught.value.__notes__[0]
        with session.begin():
            session.add(Order())
            job_id = enqueue_on_commit(client, session, ledger.note())
        return job_id, count(session)

    job_id, orders = await in_session(ledger, file, script)

    assert orders == 2
    assert await ledger.arrived(1) == [job_id]


async def test_an_async_session_enqueues_by_the_app(ledger: Ledger, file: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{file}")
    real_savepoints(engine.sync_engine)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)

    async with AsyncSession(engine) as session:
        async with session.begin():
            session.add(Order())
            committed = enqueue_on_commit(ledger.app, session, ledger.note())
            with suppress(RolledBackError):
                async with session.begin_nested():
                    enqueue_on_commit(ledger.app, session, ledger.note())
                    raise RolledBackError
        enqueue_on_commit(ledger.app, session, ledger.note())
        await session.rollback()
        enqueue_on_commit(ledger.app, session, ledger.note(), queue="nowhere")
        with pytest.raises(UnroutableError):
            await session.commit()
        orders = await session.scalar(select(func.count()).select_from(Order))
    await engine.dispose()
    await ledger.app.close()

    assert orders == 1
    assert await ledger.arrived(1) == [committed]


async def test_the_wrong_client_is_refused_before_anything_commits(ledger: Ledger) -> None:
    client = cast("Any", BlockingClient(ledger.app))

    with pytest.raises(TypeError, match="AsyncSession"):
        enqueue_on_commit(client, AsyncSession(), ledger.note())
    with pytest.raises(TypeError, match="BlockingClient"), Session() as session:
        enqueue_on_commit(cast("Any", ledger.app), cast("Any", session), ledger.note())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"delay": -1}, ValueError),
        ({"delay": 1, "run_at": datetime(2030, 1, 1, tzinfo=UTC)}, ValueError),
        ({"priority": 999}, ValueError),
        ({"headers": {"large": "x" * 60_000}}, TooLargeError),
        ({"dealy": 5}, TypeError),
        ({"reply": True}, ValueError),
    ],
    ids=lambda each: str(each)[:40],
)
async def test_what_cannot_be_enqueued_is_refused_while_the_transaction_can_still_be_rolled_back(
    ledger: Ledger, file: Path, options: EnqueueOptions, error: type[Exception]
) -> None:
    def script(client: BlockingClient, session: Session) -> int:
        def order() -> None:
            with session.begin():
                session.add(Order())
                session.flush()
                enqueue_on_commit(client, session, ledger.note(), **options)

        with pytest.raises(error):
            order()
        return count(session)

    assert await in_session(ledger, file, script) == 0
    async with AsyncSession() as session:
        with pytest.raises(error):
            enqueue_on_commit(ledger.app, session, ledger.note(), **options)
    assert await ledger.arrived(0) == []


async def test_a_session_that_an_event_loop_commits_is_refused_a_client_that_would_block_it(
    ledger: Ledger,
) -> None:
    async with AsyncSession() as session:
        with pytest.raises(RuntimeError, match=r"await app\.enqueue"):
            await session.run_sync(lambda own: enqueue_on_commit(BlockingClient(ledger.app), own, ledger.note()))


async def test_a_commit_waits_for_the_deadline_and_no_longer(ledger: Ledger, file: Path) -> None:
    def script(client: BlockingClient, session: Session) -> None:
        enqueue_on_commit(client, session, ledger.note(), deadline=0.000_001)
        with pytest.raises(EnqueueTimeoutError):
            session.commit()

    await in_session(ledger, file, script)


async def in_session(ledger: Ledger, file: Path, script: Callable[[BlockingClient, Session], T]) -> T:
    """Run a script in a thread, and close what it opened."""

    def run() -> T:
        with BlockingClient(ledger.app) as client, database(file) as engine, Session(engine) as session:
            return script(client, session)

    return await asyncio.to_thread(run)


@contextmanager
def database(file: Path) -> Generator[Engine]:
    engine = create_engine(f"sqlite:///{file}")
    real_savepoints(engine)
    Base.metadata.create_all(engine)
    try:
        yield engine
    finally:
        engine.dispose()


def real_savepoints(engine: Engine) -> None:
    """Python's sqlite3 begins transactions when it likes; this is SQLAlchemy's own remedy."""

    def connected(connection: Any, record: object) -> None:
        connection.isolation_level = None

    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)


def count(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(Order)) or 0
