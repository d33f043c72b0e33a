"""The blocking client does what the app's own enqueue does, from threads that have no event loop."""

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, cast

import pytest

from amqpjobs import (
    AmqpJobsError,
    App,
    BlockingClient,
    EnqueueError,
    EnqueueManyError,
    EnqueueTimeoutError,
    UnroutableError,
    Worker,
)
from amqpjobs.envelope import Envelope
from amqpjobs.events import ConnectionOpened, JobEnqueued
from amqpjobs.handle import BlockingHandle, EnqueueOptions
from tests.support.apps import Bench, Note, record, watch, work_queue
from tests.support.broker import PATIENCE, Broker
from tests.support.process import descriptors, our_threads


async def bound(app: App[Any], kind: type[Note]) -> None:
    """A queue that takes the kind, and no worker that empties it."""
    record(app, kind)
    async with Worker(app):
        pass


async def test_a_job_enqueued_without_an_event_loop_runs(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    ran = record(app, kind)

    def script() -> BlockingHandle[None]:
        with BlockingClient(app) as client:
            return client.enqueue(kind(n=7, text="ü"), headers={"tenant": "acme"}, max_attempts=3)

    async with Worker(app):
        handle = await asyncio.to_thread(script)
        (run,) = await ran.until(1)

    assert (run.n, run.text) == (7, "ü")
    assert run.envelope.job_id == handle.job_id
    assert run.envelope.headers["tenant"] == "acme"
    assert run.envelope.max_attempts == 3


async def test_many_threads_share_one_connection(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    await bound(app, kind)
    opened = watch(app.events, ConnectionOpened)

    def script() -> list[BlockingHandle[None]]:
        with BlockingClient(app) as client, ThreadPoolExecutor(16) as pool:
            calls = [pool.submit(client.enqueue, kind(n=n)) for n in range(400)]
            return [call.result() for call in calls]

    handles = await asyncio.to_thread(script)

    letters = await broker.take(work_queue(app), 400)
    assert {letter.text("amqpjobs-id") for letter in letters} == {handle.job_id for handle in handles}
    assert len({handle.job_id for handle in handles}) == 400
    assert [each.role for each in opened] == ["blocking producer"]


async def test_a_batch_is_confirmed_together_and_its_generator_runs_in_the_callers_thread(
    bench: Bench, broker: Broker
) -> None:
    app, kind = bench.app(), bench.kind()
    await bound(app, kind)
    threads = set[threading.Thread]()

    def notes() -> Iterator[Note]:
        for n in range(300):
            threads.add(threading.current_thread())
            yield kind(n=n)

    def script() -> tuple[list[BlockingHandle[None]], list[BlockingHandle[None]], threading.Thread]:
        with BlockingClient(app) as client:
            return client.enqueue_many(notes()), client.enqueue_many(()), threading.current_thread()

    handles, none, caller = await asyncio.to_thread(script)

    assert len({handle.job_id for handle in handles}) == 300
    assert none == []
    assert threads == {caller}
    await broker.await_count(work_queue(app), 300)


WRONG_OPTIONS: list[EnqueueOptions] = [
    {"delay": -1},
    {"deadline": 0},
    {"deadline": -5},
    {"priority": 999},
    {"job_id": ""},
    {"run_at": datetime(2030, 1, 1)},  # noqa: DTZ001  (that is what is wrong with it)
    {"headers": {"x-death": "no"}},
    {"max_attempts": 0},
    {"queue": "no such queue"},
    {"queue": "nowhere"},
    {},
]


@pytest.mark.parametrize("options", WRONG_OPTIONS, ids=str)
async def test_errors_are_those_of_the_app(bench: Bench, options: EnqueueOptions) -> None:
    app, kind = bench.app(), bench.kind("nobody.wants.this")

    def script() -> None:
        with BlockingClient(app) as client:
            client.enqueue(kind(), **options)

    with pytest.raises((AmqpJobsError, ValueError)) as blocking:
        await asyncio.to_thread(script)
    with pytest.raises((AmqpJobsError, ValueError)) as own:
        await app.enqueue(kind(), **options)

    assert blocking.type is own.type
    assert str(blocking.value) == str(own.value)


async def test_a_misspelt_option_is_refused_as_by_the_app(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    misspelt = cast("EnqueueOptions", {"dealy": 5})

    def script() -> None:
        with BlockingClient(app) as client, pytest.raises(TypeError, match="delay"):
            client.enqueue(kind(), **misspelt)

    await asyncio.to_thread(script)


async def test_an_error_knows_the_job_and_a_batch_knows_which(bench: Bench) -> None:
    app, kind, nobody = bench.app(), bench.kind(), bench.kind()
    await bound(app, kind)

    def script() -> None:
        with BlockingClient(app) as client:
            with pytest.raises(UnroutableError) as caught:
                client.enqueue(nobody(), job_id="mine")
            assert caught.value.job_id == "mine"
            with pytest.raises(EnqueueManyError) as several:
                client.enqueue_many([kind(), nobody(), kind()])
            assert set(several.value.enqueued) == {0, 2}
            assert isinstance(several.value.errors[1], UnroutableError)

    await asyncio.to_thread(script)


async def test_a_thread_with_a_running_loop_is_told_what_to_do_instead(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()

    with BlockingClient(app) as client, pytest.raises(RuntimeError, match=r"await app\.enqueue.*to_thread"):
        client.enqueue(kind())


async def test_what_a_sync_handler_enqueues_has_its_job_as_parent(bench: Bench) -> None:
    app, first, second = bench.app(), bench.kind(), bench.kind()
    ran = record(app, second)
    client = BlockingClient(app)

    def handle(job: Note) -> None:
        client.enqueue(second())

    app.handler(first)(handle)
    async with Worker(app):
        parent = await app.enqueue(first())
        (run,) = await ran.until(1)
    await asyncio.to_thread(client.close)

    assert run.envelope.parent == parent.job_id


async def test_middlewares_and_subscribers_of_the_app_take_part(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    await bound(app, kind)
    told = watch(app.events, JobEnqueued)

    async def mark(envelope: Envelope, call: Callable[[Envelope], Awaitable[Envelope]]) -> Envelope:
        return await call(envelope.evolve(headers={**envelope.headers, "marked": "yes"}))

    def script() -> BlockingHandle[None]:
        with BlockingClient(app) as client:
            return client.enqueue(kind())

    app.enqueue_middleware(mark)
    handle = await asyncio.to_thread(script)

    (letter,) = await broker.take(work_queue(app), 1)
    assert letter.text("marked") == "yes"
    assert [each.envelope.job_id for each in told] == [handle.job_id]


async def test_a_client_can_be_closed_before_it_connected_and_twice_and_used_again(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    await bound(app, kind)

    def script() -> int:
        client = BlockingClient(app)
        client.close()
        ids = set[str]()
        for _ in range(3):
            ids.add(client.enqueue(kind()).job_id)
            client.close()
            client.close()
        return len(ids)

    with unchanged_process():
        assert await asyncio.to_thread(script) == 3


async def test_calls_under_way_end_well_when_the_client_is_closed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amqpjobs.engine.LAST_CALLS", PATIENCE)  # a busy broker takes longer than it gives them
    app, kind = bench.app(), bench.kind()
    await bound(app, kind)

    def script() -> int:
        client = BlockingClient(app)
        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(client.enqueue, kind(n=n)) for n in range(200)]
            for _ in range(10):
                calls.append(pool.submit(client.enqueue, kind()))
                client.close(PATIENCE)
            done = len([call.result(PATIENCE) for call in calls])
        client.close()
        return done

    assert await asyncio.to_thread(script) == 210


async def test_a_call_that_outlives_the_closing_client_says_that_nobody_knows(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amqpjobs.engine.LAST_CALLS", 0.05)
    app, kind = bench.app(), bench.kind()
    entered = threading.Event()

    async def stay(envelope: Envelope, call: Callable[[Envelope], Awaitable[Envelope]]) -> Envelope:
        entered.set()
        return await asyncio.Future[Envelope]()

    def script() -> None:
        client = BlockingClient(app)
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(client.enqueue, kind(), job_id="mine", deadline=60)
            entered.wait(PATIENCE)
            client.close()
            with pytest.raises(EnqueueError, match="closed before") as caught:
                call.result(PATIENCE)
            assert caught.value.job_id == "mine"

    app.enqueue_middleware(stay)
    await asyncio.to_thread(script)


async def test_a_subscriber_that_blocks_does_not_make_callers_hang(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    await bound(app, kind)
    blocked, release = threading.Event(), threading.Event()

    def block(event: JobEnqueued) -> None:
        blocked.set()
        release.wait(4 * PATIENCE)

    app.on(JobEnqueued)(block)

    def script() -> float:
        with BlockingClient(app) as client, ThreadPoolExecutor(1) as pool:
            pool.submit(client.enqueue, kind())
            blocked.wait(PATIENCE)
            started = time.monotonic()
            with pytest.raises(EnqueueTimeoutError, match="that blocks") as caught:
                client.enqueue(kind(), job_id="mine", deadline=0.5)
            with pytest.raises(EnqueueManyError, match="that blocks"):
                client.enqueue_many([kind()], deadline=0.2)
            assert caught.value.job_id == "mine"
            took = time.monotonic() - started
            release.set()
            return took

    assert await asyncio.to_thread(script) < PATIENCE


async def test_an_interrupted_caller_waits_no_more(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    app, kind = bench.app(), bench.kind()
    await bound(app, kind)
    monkeypatch.setattr("concurrent.futures.Future.result", interrupt)

    def script() -> None:
        with BlockingClient(app) as client, pytest.raises(KeyboardInterrupt):
            client.enqueue(kind())

    with unchanged_process():
        thread = threading.Thread(target=script)
        thread.start()
        thread.join(PATIENCE)

    assert not thread.is_alive()


async def test_a_client_that_is_dropped_ends_its_thread(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    await bound(app, kind)

    def script() -> None:
        BlockingClient(app).enqueue(kind())
        gc.collect()

    with unchanged_process():
        await asyncio.to_thread(script)


@contextlib.contextmanager
def unchanged_process() -> Generator[None]:
    """No thread of ours and no descriptor more than before, soon."""
    threads, before = set(our_threads()), descriptors()
    yield
    deadline = time.monotonic() + PATIENCE
    while (left := set(our_threads()) - threads) or descriptors() > before:
        assert time.monotonic() < deadline, f"{left}, {descriptors()} descriptors and not {before}"
        threading.Event().wait(0.01)


def interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt
