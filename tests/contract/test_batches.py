"""Batch handlers on a real broker: what is collected, what each job's fate is, and what a stop gives back."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from types import GenericAlias
from typing import Any, cast

from typing_extensions import Unpack

from amqpjobs import App, Batch, BatchContext, JobContext, Queue, Retry, Worker, current_context
from amqpjobs.envelope import Envelope
from amqpjobs.events import JobEnded, WorkerStopping
from amqpjobs.middleware import RunNext
from amqpjobs.outcome import Completed, Dead, Expired, Outcome, Retrying
from amqpjobs.registry import HandlerOptions
from amqpjobs.wire import Publication
from tests.support.apps import Bench, Note, Seen, dead_queue, record, watch, work_queue
from tests.support.broker import Broker, Foreign

#: So long that in no test a batch gets ready by it.
NEVER = 600.0

Answers = Sequence[BaseException | None] | None
Behaviour = Callable[[list[Note], BatchContext[Any]], Awaitable[Answers]]


def record_batches(
    app: App[None],
    kind: type[Note],
    batch: Batch,
    behave: Behaviour | None = None,
    **options: Unpack[HandlerOptions],
) -> Seen[list[int]]:
    """Register a batch handler that notes the numbers of each batch and then does what `behave` does."""
    ran = Seen[list[int]]()

    async def handle(jobs: list[Note], context: BatchContext[Any]) -> Any:
        assert current_context() is None, "the context of one job, seen by all"
        ran.add([job.n for job in jobs])
        return None if behave is None else await behave(jobs, context)

    registering: Any = app.handler(cast("type[list[Note]]", GenericAlias(list, (kind,))), batch=batch, **options)
    registering(handle)
    return ran


async def test_250_rows_run_in_batches_of_100_at_most(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    ran, ended = record_batches(app, kind, Batch(size=100, seconds=1)), watch(app.events, JobEnded)

    async with Worker(app):
        await app.enqueue_many([kind(n=n) for n in range(250)])
        await ended.until(250)

    assert sorted(n for batch in ran for n in batch) == list(range(250))
    assert max(len(batch) for batch in ran) <= 100
    assert {each.outcome for each in ended} == {Completed()}
    await broker.await_count(work_queue(app), 0)


async def test_full_batches_run_at_once_and_an_unfinished_one_goes_back(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    ran, ended = record_batches(app, kind, Batch(size=100, seconds=NEVER)), watch(app.events, JobEnded)
    stopping = watch(app.events, WorkerStopping)

    async with Worker(app):
        await app.enqueue_many([kind(n=n) for n in range(250)])
        await ended.until(200)
        await broker.await_count(work_queue(app), 0)

    assert [len(set(batch)) for batch in ran] == [100, 100]
    assert not set(ran[0]) & set(ran[1])
    assert (stopping[0].running, stopping[0].returned) == (0, 50)
    await broker.await_count(work_queue(app), 50)


async def test_a_part_of_a_batch_runs_when_its_time_is_over(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    ran, ended = record_batches(app, kind, Batch(size=100, seconds=0.3)), watch(app.events, JobEnded)

    async with Worker(app):
        await app.enqueue_many([kind(n=n) for n in range(7)])
        await ended.until(7)
        await app.enqueue(kind(n=7))
        await ended.until(8)

    assert sorted(n for batch in ran for n in batch) == list(range(8))
    assert ran[len(ran) - 1] == [7]


async def test_a_batch_may_be_larger_than_the_concurrency(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    ran = record_batches(app, kind, Batch(size=50, seconds=NEVER))

    async with Worker(app, concurrency=1):
        await app.enqueue_many([kind(n=n) for n in range(100)])
        await ran.until(2)

    assert list(ran) == [list(range(50)), list(range(50, 100))]


async def test_a_batch_takes_one_slot(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(queues=[Queue(name := bench.unique(), prefetch=12)]), bench.kind()
    gates = [asyncio.Event(), asyncio.Event()]

    async def wait(jobs: list[Note], context: BatchContext[Any]) -> Answers:
        await gates[jobs[0].n >= 12].wait()
        return None

    ran, ended = record_batches(app, kind, Batch(size=3, seconds=NEVER), wait, queue=name), watch(app.events, JobEnded)
    counts: list[tuple[int, int]] = []
    async with Worker(app, concurrency=2) as worker:
        for turn, gate in enumerate(gates):
            await app.enqueue_many([kind(n=12 * turn + n) for n in range(12)])
            await broker.await_count(work_queue(app, name), 0)
            await ran.until(4 * turn + 2)
            counts.append((worker.running, len(ran)))
            gate.set()
            await ended.until(12 * turn + 12)

    assert counts == [(6, 2), (6, 6)]
    assert [sorted(batch) for batch in ran] == [list(range(n, n + 3)) for n in range(0, 24, 3)]


async def test_ordinary_handlers_share_queue_and_slots_with_batches(bench: Bench) -> None:
    app, kind, other = bench.app(), bench.kind(), bench.kind()
    batches, ended = record_batches(app, kind, Batch(size=10, seconds=NEVER)), watch(app.events, JobEnded)
    ran = record(app, other)

    async with Worker(app, concurrency=2):
        await app.enqueue_many([(kind if n % 2 else other)(n=n) for n in range(40)])
        await ended.until(40)

    assert sorted(map(len, batches)) == [10, 10]
    assert sorted(run.n for run in ran) == list(range(0, 40, 2))


async def test_one_poisoned_row_is_tried_again_alone_while_the_others_complete(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    told = Counter[tuple[str, int]]()

    @app.effect
    def count(envelope: Envelope, outcome: Outcome) -> list[Publication]:
        told[type(outcome).__name__, envelope.attempt] += 1
        return []

    async def refuse(jobs: list[Note], context: BatchContext[Any]) -> Answers:
        firsts = [each.attempt == 1 for each in context.contexts]
        return [
            ValueError("poison") if job.n == 37 and first else None for job, first in zip(jobs, firsts, strict=True)
        ]

    ran = record_batches(app, kind, Batch(size=100, seconds=1), refuse)
    ended = watch(app.events, JobEnded)
    async with Worker(app):  # declares
        pass
    await app.enqueue_many([kind(n=n) for n in range(100)])
    async with Worker(app):
        await ended.until(101)

    retried = [each.outcome for each in ended if isinstance(each.outcome, Retrying)]
    assert sorted(n for batch in ran for n in batch) == sorted([*range(100), 37])
    with_it, again = (set(batch) for batch in ran if 37 in batch)
    assert with_it & again == {37}
    assert [str(each.error) for each in retried] == ["poison"]
    assert told == {("Completed", 1): 99, ("Retrying", 1): 1, ("Completed", 2): 1}
    await broker.await_count(work_queue(app), 0)
    await broker.await_count(dead_queue(app), 0)


async def test_what_is_raised_is_each_rows_and_each_dies_for_its_own_reason(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()

    async def fail(jobs: list[Note], context: BatchContext[Any]) -> Answers:
        raise ConnectionError("the database is away")

    ran, ended = (
        record_batches(app, kind, Batch(size=5, seconds=0.5), fail, max_attempts=2),
        watch(app.events, JobEnded),
    )
    name = kind.__amqpjobs__.kind
    foreign: list[tuple[bytes, Foreign]] = [
        (b'{"n": 0}', {"kind": name, "message_id": "ordinary-0"}),
        (b'{"n": 1}', {"kind": name, "message_id": "ordinary-1"}),
        (b'{"n": "x"}', {"kind": name, "message_id": "invalid"}),
        (b'{"n": 3}', {"kind": name, "message_id": "unreadable", "headers": {"amqpjobs-attempt": "many"}}),
        (b'{"n": 4}', {"kind": name, "message_id": "once", "headers": {"amqpjobs-max-attempts": 1}}),
    ]
    async with Worker(app):
        await broker.publish_all(app.topology.jobs, name, foreign)
        letters = await broker.take(dead_queue(app), 5)

    reasons = {letter.headers.get("amqpjobs-id", letter.message_id): letter for letter in letters}
    assert Counter(n for batch in ran for n in batch) == {0: 2, 1: 2, 4: 1}
    assert {name: letter.text("amqpjobs-dead-reason") for name, letter in reasons.items()} == {
        "ordinary-0": "attempts_exhausted",
        "ordinary-1": "attempts_exhausted",
        "invalid": "invalid_arguments",
        "unreadable": "unreadable",
        "once": "attempts_exhausted",
    }
    assert reasons["once"].number("amqpjobs-attempt") == 1
    assert reasons["ordinary-0"].number("amqpjobs-attempt") == 2
    assert "the database is away" in reasons["ordinary-1"].text("amqpjobs-dead-error")
    assert Counter(type(each.outcome) for each in ended) == {Retrying: 2, Dead: 4}


async def test_who_cannot_run_does_not_hold_up_the_batch(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(settings=bench.settings(max_body=1_000)), bench.kind()
    name = kind.__amqpjobs__.kind
    foreign: list[tuple[bytes, Foreign]] = [
        (b"{", {"kind": name}),
        (b"{}", {"kind": name, "headers": {"amqpjobs-attempt": "many"}}),
        (b'{"text": "%s"}' % (b"x" * 2_000), {"kind": name}),
        (b'{"n": 3}', {"kind": name, "headers": {"amqpjobs-expires-at": 1}}),
        (b'{"n": 4}', {"kind": name}),
    ]
    ran, ended = record_batches(app, kind, Batch(size=5, seconds=NEVER)), watch(app.events, JobEnded)
    async with Worker(app):
        await broker.publish_all(app.topology.jobs, name, foreign)
        await ended.until(4)
        letters = await broker.take(dead_queue(app), 3)

    assert list(ran) == [[4]]
    assert Counter(type(each.outcome) for each in ended) == {Dead: 2, Expired: 1, Completed: 1}
    assert {letter.text("amqpjobs-dead-reason") for letter in letters} == {
        "invalid_arguments",
        "unreadable",
        "too_large",
    }


async def test_a_wish_of_one_row_is_its_own(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()

    async def wish(jobs: list[Note], context: BatchContext[Any]) -> Answers:
        return [Retry("busy", delay=0.1) if each.attempt < 3 else None for each in context.contexts]

    ran, ended = record_batches(app, kind, Batch(size=2, seconds=NEVER), wish), watch(app.events, JobEnded)
    async with Worker(app):
        await app.enqueue_many([kind(n=n) for n in range(2)])
        await ended.until(6)

    assert len(ran) == 3
    assert [type(each.outcome) for each in ended] == [Retrying] * 4 + [Completed] * 2


async def test_a_stop_gives_back_what_collects_and_what_waits_and_lets_finish_what_runs(
    bench: Bench, broker: Broker
) -> None:
    app, kind = bench.app(queues=[Queue(name := bench.unique(), prefetch=8)]), bench.kind()
    gate = asyncio.Event()

    async def wait(jobs: list[Note], context: BatchContext[Any]) -> Answers:
        await gate.wait()
        return None

    ran, ended = record_batches(app, kind, Batch(size=3, seconds=NEVER), wait, queue=name), watch(app.events, JobEnded)
    stopping = watch(app.events, WorkerStopping)
    async with Worker(app, concurrency=1) as worker:
        await app.enqueue_many([kind(n=n) for n in range(8)])
        await broker.await_count(work_queue(app, name), 0)
        await ran.until(1)
        closing = asyncio.create_task(worker.drain())
        await stopping.until(1)
        gate.set()
        await closing

    assert list(ran) == [[0, 1, 2]]
    assert (stopping[0].running, stopping[0].returned, worker.cancelled, len(ended)) == (3, 5, 0, 3)
    await broker.await_count(work_queue(app, name), 5)


async def test_a_batch_that_outlasts_the_grace_is_cut_short_and_all_of_it_goes_back(
    bench: Bench, broker: Broker
) -> None:
    app, kind = bench.app(settings=bench.settings(grace=0.2)), bench.kind()
    steps: list[str] = []

    async def hang(jobs: list[Note], context: BatchContext[Any]) -> Answers:
        try:
            await asyncio.Event().wait()
        finally:
            steps.append(f"rolled back {len(jobs)}")
        return None

    ran, ended = record_batches(app, kind, Batch(size=4, seconds=NEVER), hang), watch(app.events, JobEnded)
    async with Worker(app) as worker:
        await app.enqueue_many([kind(n=n) for n in range(4)])
        await ran.until(1)

    letters = await broker.take(work_queue(app), 4)
    assert steps == ["rolled back 4"]
    assert worker.cancelled == 4
    assert {type(each.outcome).__name__ for each in ended} <= {"Returned"}
    assert {(letter.redelivered, letter.number("amqpjobs-attempt")) for letter in letters} == {(True, 1)}


async def test_what_a_batch_enqueues_has_the_job_it_speaks_for_as_its_parent(bench: Bench) -> None:
    app, kind, other = bench.app(), bench.kind(), bench.kind()
    wrapped: list[str] = []

    @app.run_middleware
    async def note(ctx: JobContext[Any], following: RunNext) -> Outcome:
        wrapped.append(ctx.job_id)
        return await following(ctx)

    async def follow(jobs: list[Note], context: BatchContext[Any]) -> Answers:
        for job, each in zip(jobs, context.contexts, strict=True):
            await each.enqueue(other(n=job.n))
        return None

    record_batches(app, kind, Batch(size=3, seconds=NEVER), follow)
    ran = record(app, other)
    async with Worker(app):
        handles = await app.enqueue_many([kind(n=n) for n in range(3)])
        await ran.until(3)

    parents = {run.n: run.envelope.parent for run in ran}
    assert parents == {n: handle.job_id for n, handle in enumerate(handles)}
    assert wrapped[:3] == [handle.job_id for handle in handles]
