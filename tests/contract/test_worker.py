"""A worker's life: it shares its slots, hands back what it cannot finish, and stops cleanly."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import pytest

from amqpjobs import App, JobContext, Queue, Worker, current_context
from amqpjobs.context import JobContext as Context
from amqpjobs.envelope import Envelope
from amqpjobs.events import JobEnded, SettleFailed, WorkerStarted, WorkerStopped, WorkerStopping
from amqpjobs.middleware import EnqueueNext, RunNext
from amqpjobs.outcome import Completed, Dead, Outcome, Retrying
from amqpjobs.wire import Properties, Publication
from tests.support.apps import SOON, Bench, Note, Ran, dead_queue, record, watch, work_queue
from tests.support.broker import PATIENCE, Broker, eventually


def holding(worker: Worker, count: int) -> Callable[[], Awaitable[bool]]:
    """Whether so many wait at the worker. What its queue still holds does not tell: a busy one says 0."""

    async def holds() -> bool:
        return worker.waiting == count

    return holds


async def test_a_stopping_worker_finishes_what_runs_and_hands_back_what_waits(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    gate = asyncio.Event()

    async def wait(job: Note, context: JobContext[None]) -> None:
        await gate.wait()

    ran, ended = record(app, kind, wait), watch(app.events, JobEnded)
    stopping, stopped = watch(app.events, WorkerStopping), watch(app.events, WorkerStopped)
    async with Worker(app, concurrency=3, queues=[app.name]) as worker:
        await app.enqueue_many([kind(n=n) for n in range(10)])
        await ran.until(3)
        closing = asyncio.create_task(worker.drain())
        await stopping.until(1)
        gate.set()
        await closing

    assert worker.cancelled == 0
    assert [run.n for run in ran] == [0, 1, 2]
    assert len(ended) == 3
    assert (stopping[0].running, stopped[0].cancelled) == (3, 0)
    await broker.await_count(work_queue(app), 7)


async def test_what_was_handed_back_runs_on_another_worker_as_the_same_attempt(bench: Bench) -> None:
    queue, kind = bench.unique(), bench.kind()
    one = bench.app(queue, queues=[Queue(queue, prefetch=10)])
    other = bench.app(queue, queues=[Queue(queue, prefetch=10)])
    gate = asyncio.Event()

    async def wait(job: Note, context: JobContext[None]) -> None:
        await gate.wait()

    first, second = record(one, kind, wait), record(other, kind)
    stopping, released = watch(one.events, WorkerStopping), watch(other.events, WorkerStarted)
    async with Worker(one, concurrency=2) as worker:
        await one.enqueue_many([kind(n=n) for n in range(8)])
        await first.until(2)
        await eventually(holding(worker, 6))
        closing = asyncio.create_task(worker.drain())
        await stopping.until(1)
        async with Worker(other):
            await released.until(1)
            await second.until(6)
            gate.set()
            await closing

    assert stopping[0].returned == 6
    assert sorted(run.n for run in second) == [2, 3, 4, 5, 6, 7]
    assert {run.attempt for run in second} == {1}


async def test_what_outlasts_the_grace_is_handed_back_and_counted(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(settings=bench.settings(grace=0.2)), bench.kind()
    never = asyncio.Event()

    async def hang(job: Note, context: JobContext[None]) -> None:
        await never.wait()

    ran, stopped = record(app, kind, hang), watch(app.events, WorkerStopped)
    async with Worker(app) as worker:
        handle = await app.enqueue(kind(n=1))
        await ran.until(1)

    (letter,) = await broker.take(work_queue(app), 1)
    assert worker.cancelled == stopped[0].cancelled == 1
    assert letter.redelivered
    assert letter.text("amqpjobs-id") == handle.job_id
    assert letter.number("amqpjobs-attempt") == 1


async def test_a_second_stop_cuts_short_what_runs(bench: Bench) -> None:
    app, kind = bench.app(settings=bench.settings(grace=600)), bench.kind()
    never = asyncio.Event()

    async def hang(job: Note, context: JobContext[None]) -> None:
        await never.wait()

    ran, stopping = record(app, kind, hang), watch(app.events, WorkerStopping)

    async def work() -> Worker:
        async with Worker(app) as worker:
            started.set_result(worker)
            await worker.run()
        return worker

    started: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
    working = asyncio.create_task(work())
    worker = await started
    await app.enqueue(kind())
    await ran.until(1)
    worker.stop()
    await stopping.until(1)
    worker.stop()
    async with asyncio.timeout(2 * PATIENCE):  # far less than the grace
        await working

    assert worker.cancelled == 1


async def test_a_job_that_ends_while_it_is_stopped_is_not_run_again(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    gate = asyncio.Event()

    async def fail(job: Note, context: JobContext[None]) -> None:
        await gate.wait()
        raise ValueError("no")

    ran, stopping = record(app, kind, fail, max_attempts=1), watch(app.events, WorkerStopping)
    async with Worker(app) as worker:
        await app.enqueue(kind())
        await ran.until(1)
        closing = asyncio.create_task(worker.drain())
        await stopping.until(1)
        gate.set()
        await closing

    assert await broker.count(work_queue(app)) == 0
    await broker.await_count(dead_queue(app), 1)


async def test_a_worker_runs_no_more_at_once_than_its_concurrency(bench: Bench) -> None:
    side = bench.unique()
    app, kind, other = bench.app(queues=[Queue(side)]), bench.kind(), bench.kind()
    now, most, is_full = 0, 0, asyncio.Event()

    async def count(job: Note, context: JobContext[None]) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        if now == 4:
            is_full.set()
        await is_full.wait()  # else each might have ended before the broker gives the next one
        await asyncio.sleep(0.01)
        now -= 1

    ended = watch(app.events, JobEnded)
    record(app, kind, count)
    record(app, other, count, queue=side)
    async with Worker(app, concurrency=4):
        await app.enqueue_many([(kind if n % 2 else other)(n=n) for n in range(60)])
        await ended.until(60)

    assert most == 4


@pytest.mark.parametrize("strict", [False, True])
async def test_queues_share_the_slots_by_weight_or_in_strict_order(bench: Bench, strict: bool) -> None:
    high, low = bench.unique(), bench.unique()
    queues = [Queue(high, weight=3, prefetch=50), Queue(low, weight=1, prefetch=50)]
    app, gate, kind, other = bench.app(queues=queues), bench.kind(), bench.kind(), bench.kind()
    opened = asyncio.Event()
    order: list[str] = []

    async def hold(job: Note, context: JobContext[None]) -> None:
        await opened.wait()

    async def note(job: Note, context: JobContext[None]) -> None:
        order.append(context.queue)

    held = record(app, gate, hold, queue=high)
    ran = [record(app, kind, note, queue=high), record(app, other, note, queue=low)]
    async with Worker(app, concurrency=1, queues=[high, low], strict=strict) as worker:
        await app.enqueue(gate())
        await held.until(1)
        await app.enqueue_many([other(n=n) for n in range(20)])
        await app.enqueue_many([kind(n=n) for n in range(20)])
        await eventually(holding(worker, 40))
        opened.set()
        for each in ran:
            await each.until(20)

    if strict:
        assert order == [high] * 20 + [low] * 20
    else:
        assert order[:24].count(high) in range(17, 20)
        assert [run.n for run in ran[1]] == list(range(20))


async def test_a_worker_of_some_queues_leaves_the_others_alone(bench: Bench, broker: Broker) -> None:
    side = bench.unique()
    app, kind, other = bench.app(queues=[Queue(side)]), bench.kind(), bench.kind()
    ran, left = record(app, kind), record(app, other, queue=side)

    async with Worker(app, queues=[app.name]):
        await app.enqueue(other(n=1))
        await app.enqueue(kind(n=1))
        await ran.until(1)

    assert not list(left)
    await broker.await_count(work_queue(app, side), 1)


async def test_middlewares_wrap_what_is_sent_and_what_runs_in_their_order(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    steps: list[str] = []

    @app.enqueue_middleware
    async def stamp(envelope: Envelope, following: EnqueueNext) -> Envelope:
        return await following(envelope.evolve(headers={**envelope.headers, "stamp": "outer"}))

    @app.run_middleware
    async def outer(context: Context[object], following: RunNext) -> Outcome:
        steps.append("outer in")
        outcome = await following(context)
        steps.append(f"outer out {type(outcome).__name__}")
        return outcome

    @app.run_middleware
    async def inner(context: Context[object], following: RunNext) -> Outcome:
        steps.append("inner in")
        outcome = await following(context)
        steps.append("inner out")
        return Retrying(0.1) if context.attempt == 1 else outcome

    ran, ended = record(app, kind), watch(app.events, JobEnded)
    async with Worker(app):
        await app.enqueue(kind())
        await ended.until(2)

    assert [run.envelope.headers["stamp"] for run in ran] == ["outer", "outer"]
    assert steps[:4] == ["outer in", "inner in", "inner out", "outer out Retrying"]
    assert [type(each.outcome) for each in ended] == [Retrying, Completed]


async def test_what_an_effect_publishes_is_confirmed_before_the_ack(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    audit = await bench.queue(x_max_length=1, x_overflow="reject-publish")
    await broker.bind(audit, "amq.topic", audit)
    await broker.publish("amq.topic", audit, b"full")

    @app.effect
    def tell(envelope: Envelope, outcome: Outcome) -> Sequence[Publication]:
        body = f"{envelope.job_id} {type(outcome).__name__}".encode()
        return [
            Publication(
                exchange="amq.topic",
                routing_key=audit,
                body=body,
                properties=Properties(message_id=bench.unique()),
            )
        ]

    ran, ended = record(app, kind), watch(app.events, JobEnded)
    refused = watch(app.events, SettleFailed)
    async with Worker(app):
        handle = await app.enqueue(kind())
        await refused.until(2)
        unsettled = len(ended)
        await broker.purge(audit)
        await ended.until(1)

    assert unsettled == 0
    assert len(ran) == 1
    (letter,) = await broker.take(audit, 1)
    assert letter.body == f"{handle.job_id} Completed".encode()
    assert await broker.count(work_queue(app)) == 0


@dataclass(frozen=True)
class State:
    greeting: str


async def test_the_lifespan_gives_handlers_its_state_and_ends_with_the_worker(bench: Bench) -> None:
    steps: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncGenerator[State]:
        steps.append("up")
        yield State("hello")
        steps.append("down")

    app = App(bench.unique(), lifespan=lifespan, retry=SOON, settings=bench.settings())
    bench.clean(app)
    kind = bench.kind()

    @app.handler(kind)
    async def greet(job: Note, context: JobContext[State]) -> None:
        steps.append(f"{context.state.greeting} {job.n}")

    ended = watch(app.events, JobEnded)
    async with Worker(app):
        await app.enqueue(kind(n=1))
        await ended.until(1)

    assert steps == ["up", "hello 1", "down"]


async def test_a_handler_finds_its_context_also_in_a_thread(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    found: list[str] = []

    @app.handler(kind)
    def work(job: Note) -> None:
        context = current_context()
        assert context is not None
        found.append(context.job_id)

    ended = watch(app.events, JobEnded)
    async with Worker(app):
        handle = await app.enqueue(kind())
        await ended.until(1)

    assert found == [handle.job_id]
    assert current_context() is None


@pytest.mark.parametrize("waits", [False, True])
async def test_a_job_inherits_nothing_of_the_one_whose_slot_it_gets(bench: Bench, waits: bool) -> None:
    name = bench.unique()
    app, kind = bench.app(name, queues=[Queue(name, prefetch=10)]), bench.kind()
    bound = ContextVar("bound", default="nothing")
    found = list[str]()

    async def bind(job: Note, context: JobContext[None]) -> None:
        found.append(bound.get())
        bound.set(f"what job {job.n} has bound")
        if waits:
            await asyncio.sleep(0)

    record(app, kind, bind)
    ended = watch(app.events, JobEnded)
    async with Worker(app, concurrency=1):
        await app.enqueue_many([kind(n=n) for n in range(10)])
        await ended.until(10)

    assert found == ["nothing"] * 10


async def test_the_first_job_that_waits_holds_up_none_that_came_with_it(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    gate, tasks = asyncio.Event(), dict[int, list[object]]()

    async def sometimes_wait(job: Note, context: JobContext[None]) -> None:
        tasks[job.n] = [asyncio.current_task()]
        if job.n % 10 == 5:
            async with asyncio.timeout(PATIENCE):
                await gate.wait()
        tasks[job.n].append(asyncio.current_task())

    ran, ended = record(app, kind, sometimes_wait), watch(app.events, JobEnded)
    async with Worker(app, concurrency=50):
        await app.enqueue_many([kind(n=n) for n in range(50)])
        await ran.until(50)
        await ended.until(45)
        gate.set()
        await ended.until(50)

    assert [each.outcome for each in ended] == [Completed()] * 50
    assert all(before is after for before, after in tasks.values())
    assert len({id(task) for n, [task, _] in tasks.items() if n % 10 == 5}) == 5


async def test_a_job_that_cancels_its_own_task_harms_no_other(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()

    async def cancel(job: Note, context: JobContext[None]) -> None:
        task = asyncio.current_task()
        assert task is not None
        if job.n == 5:
            task.cancel()
        elif job.n > 5:
            await asyncio.sleep(0)

    ran, ended = record(app, kind, cancel), watch(app.events, JobEnded)
    async with Worker(app):
        await app.enqueue_many([kind(n=n) for n in range(10)])
        await ended.until(10)

    assert sorted(run.n for run in ran) == list(range(10))
    assert [each.outcome for each in ended] == [Completed()] * 10


async def test_three_workers_share_a_queue_and_run_each_job_once(bench: Bench) -> None:
    name, kind = bench.unique(), bench.kind()
    apps = [bench.app(name) for _ in range(3)]
    ran: list[list[Ran]] = []
    seen = [record(app, kind) for app in apps]

    async def have_run() -> bool:  # an empty queue does not say so: the last ones may be on their way to a worker
        return sum(map(len, seen)) >= 300

    async with Worker(apps[0], concurrency=5), Worker(apps[1], concurrency=5), Worker(apps[2], concurrency=5):
        await apps[0].enqueue_many([kind(n=n) for n in range(300)], deadline=PATIENCE)
        await eventually(have_run)
    ran = [list(each) for each in seen]

    assert sorted(run.n for each in ran for run in each) == list(range(300))
    assert all(ran)


async def test_always_failing_jobs_on_three_workers_take_just_their_attempts(bench: Bench, broker: Broker) -> None:
    name, kind = bench.unique(), bench.kind()
    apps = [bench.app(name) for _ in range(3)]

    async def fail(job: Note, context: JobContext[None]) -> None:
        raise ValueError("no")

    seen = [record(app, kind, fail, max_attempts=4) for app in apps]
    deaths = watch(apps[0].events, JobEnded)
    async with Worker(apps[0]), Worker(apps[1]), Worker(apps[2]):
        await apps[0].enqueue_many([kind(n=n) for n in range(10)])
        await broker.take(dead_queue(apps[0]), 10)

    attempts = sorted((run.n, run.attempt) for each in seen for run in each)
    assert attempts == [(n, attempt) for n in range(10) for attempt in (1, 2, 3, 4)]
    assert all(isinstance(each.outcome, Retrying | Dead) for each in deaths)
