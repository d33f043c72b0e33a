"""An enqueue raises a typed error in time while the broker is away or blocks, however often, and leaves nothing
behind: no task, no descriptor, no socket, no thread."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from amqpjobs import App, BlockingClient, EnqueueTimeoutError, Worker
from amqpjobs.events import ConnectionBlocked
from tests.support.apps import Bench, Note, record, watch
from tests.support.broker import PATIENCE, Broker, eventually, plain_client
from tests.support.faults import FaultyProxy
from tests.support.length import is_full
from tests.support.process import state_of_process
from tests.support.rabbitmq import HOST, free_ports

CALLS = 1_000 if is_full() else 50
#: So many at once, and how late the last may be on a machine that stands still meanwhile.
AT_ONCE, LATE = 50, 15.0
DEADLINE = 2.0


class Trouble:
    """An app, its kind, and how its broker is made unable to take anything."""

    def __init__(self, app: App[None], kind: type[Note], words: str, begin: Callable[[], None] | None = None) -> None:
        self.app = app
        self.kind = kind
        #: What the errors say.
        self.words = words
        #: Called when it is connected; None: nobody ever answers.
        self.begin = begin
        self.blocked = watch(app.events, ConnectionBlocked)


@asynccontextmanager
async def away(url: str, unique: Callable[[], str]) -> AsyncGenerator[Trouble]:
    (port,) = free_ports(1)
    bench = Bench(f"amqp://guest:guest@{HOST}:{port}/", unique, Broker.__new__(Broker))
    yield Trouble(bench.app(), bench.kind(), str(port))


@asynccontextmanager
async def blocking(url: str, unique: Callable[[], str]) -> AsyncGenerator[Trouble]:
    async with plain_client(url) as client, FaultyProxy(url).running() as proxy:
        bench = Bench(url, unique, client)
        app, kind = bench.app(settings=bench.settings(url=proxy.url)), bench.kind()
        record(app, kind)
        async with Worker(app):
            pass
        yield Trouble(app, kind, "short of memory or disk", proxy.forge_blocked)
        await bench.close()


TROUBLES = [away, blocking]
MakeTrouble = Callable[[str, Callable[[], str]], AbstractAsyncContextManager[Trouble]]


@pytest.mark.parametrize("make", TROUBLES)
async def test_from_asyncio_they_raise_in_time_and_leave_nothing_behind(
    url: str, unique: Callable[[], str], make: MakeTrouble
) -> None:
    async with make(url, unique) as trouble:
        app, took = trouble.app, list[float]()

        async def call() -> None:
            started = time.monotonic()
            with pytest.raises(EnqueueTimeoutError, match=trouble.words):
                await app.enqueue(trouble.kind(), deadline=DEADLINE)
            took.append(time.monotonic() - started)

        tasks, before = len(asyncio.all_tasks()), state_of_process()
        if trouble.begin is not None:
            await app.enqueue(trouble.kind())
            trouble.begin()
            await trouble.blocked.until(1)
        for _ in range(0, CALLS, AT_ONCE):
            await asyncio.gather(*(call() for _ in range(AT_ONCE)))
        await app.close()

        async def is_as_before() -> bool:
            return len(asyncio.all_tasks()) <= tasks and is_within(state_of_process(), before)

        await eventually(is_as_before)

    assert len(took) == CALLS
    assert min(took) > DEADLINE - 0.1
    assert max(took) < DEADLINE + LATE


@pytest.mark.parametrize("make", TROUBLES)
async def test_from_threads_they_raise_in_time_and_leave_nothing_behind(
    url: str, unique: Callable[[], str], make: MakeTrouble
) -> None:
    async with make(url, unique) as trouble:
        client = BlockingClient(trouble.app)

        def call(_: int) -> float:
            started = time.monotonic()
            with pytest.raises(EnqueueTimeoutError, match=trouble.words):
                client.enqueue(trouble.kind(), deadline=DEADLINE)
            return time.monotonic() - started

        def calls() -> list[float]:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                return list(pool.map(call, range(CALLS)))

        async def story() -> list[float]:
            if trouble.begin is not None:
                await asyncio.to_thread(client.enqueue, trouble.kind())
                trouble.begin()
                await asyncio.to_thread(until, lambda: len(trouble.blocked) >= 1)
            took = await asyncio.to_thread(calls)
            await asyncio.to_thread(client.close)
            return took

        before = state_of_process()
        took = await story()
        await asyncio.to_thread(until, lambda: is_within(state_of_process(), before))

    assert len(took) == CALLS
    assert max(took) < DEADLINE + LATE


def is_within(now: tuple[int, int, int], before: tuple[int, int, int]) -> bool:
    return all(each <= then for each, then in zip(now, before, strict=True))


def until(condition: Callable[[], bool]) -> None:
    """From a thread, as `eventually`."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
