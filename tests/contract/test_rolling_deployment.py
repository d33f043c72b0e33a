"""Old and new code at once, in any order: every job runs, and none is thrown away."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from amqpjobs import Queue, Worker
from amqpjobs.events import JobEnded
from amqpjobs.outcome import Snoozed
from tests.support.apps import Bench, dead_queue, record, watch, work_queue
from tests.support.broker import Broker, eventually


async def test_the_producer_may_be_deployed_first(bench: Bench, broker: Broker) -> None:
    name, producer, kind = bench.unique(), bench.app(), bench.kind()
    old = bench.app(name)
    async with Worker(old):
        handles = [await producer.enqueue(kind(n=n), on_unroutable="park") for n in range(20)]

    new = bench.app(name)
    ran = record(new, kind)
    async with Worker(new):
        await ran.until(20)

    assert all(handle.is_parked for handle in handles)
    assert sorted(run.n for run in ran) == list(range(20))
    assert await broker.count(dead_queue(new)) == 0


async def test_old_and_new_workers_share_a_queue_with_kinds_and_versions_in_flight(
    bench: Bench, broker: Broker
) -> None:
    name, kind_name = bench.unique(), bench.unique()
    settings = bench.settings(unknown_delay=0.2, unknown_window=600)
    first, second, added = bench.kind(kind_name), bench.kind(kind_name, version=2), bench.kind()
    old, new = bench.app(name, settings=settings), bench.app(name, settings=settings)
    ran_old, ran_new, ran_added = record(old, first), record(new, second), record(new, added)
    snoozed = watch(old.events, JobEnded)
    producer = bench.app()
    async with Worker(new):
        pass  # a new worker was there once, so its kinds are bound

    async def all_have_run() -> bool:  # the new worker may have a part in those of the first version, too
        runs = sum(map(len, (ran_old, ran_new, ran_added)))
        return runs >= 60

    async with Worker(old, concurrency=5) as old_worker:
        for n in range(20):
            await producer.enqueue(first(n=n))
            await producer.enqueue(second(n=100 + n))
            await producer.enqueue(added(n=200 + n))
        await snoozed.until(60)
        async with Worker(new, concurrency=5):
            await ran_new.until(5)
            await old_worker.drain()
            await eventually(all_have_run)

    assert sorted([run.n for run in ran_old if run.n < 100] + [run.n for run in ran_new if run.n < 100]) == [*range(20)]
    assert sorted(run.n for run in ran_new if run.n >= 100) == [*range(100, 120)]
    assert sorted(run.n for run in ran_added) == [*range(200, 220)]
    assert {run.attempt for run in (*ran_old, *ran_new, *ran_added)} == {1}
    assert [each for each in snoozed if isinstance(each.outcome, Snoozed) and each.outcome.unknown]
    assert await broker.count(dead_queue(new)) == 0
    assert await broker.count(work_queue(new)) == 0


async def test_an_unknown_kind_ends_as_a_dead_letter_after_the_window(bench: Bench, broker: Broker) -> None:
    settings = bench.settings(unknown_delay=0.1, unknown_window=0.5)
    app, kind, unknown = bench.app(settings=settings), bench.kind(), bench.kind()
    ended = watch(app.events, JobEnded)
    record(app, kind)

    async with Worker(app):
        handle = await app.enqueue(unknown(n=3), queue=app.name)
        (letter,) = await broker.take(dead_queue(app), 1)

    assert letter.text("amqpjobs-dead-reason") == "unknown_kind"
    assert unknown.__amqpjobs__.kind in letter.text("amqpjobs-dead-error")
    assert "@app.handler" in letter.text("amqpjobs-dead-error")
    assert letter.text("amqpjobs-id") == handle.job_id
    assert letter.number("amqpjobs-attempt") == 1
    assert letter.number("amqpjobs-dead-at") - letter.number("amqpjobs-first-at") >= 500
    # 0.1, 0.1, 0.2, 0.4 s: each wait as long as all before; fewer where one of them took longer.
    assert 2 <= len(ended) <= 6


async def test_a_version_from_the_future_ends_as_a_dead_letter_after_the_window(bench: Bench, broker: Broker) -> None:
    settings = bench.settings(unknown_delay=0.1, unknown_window=0.2)
    app, name = bench.app(settings=settings), bench.unique()
    ran = record(app, bench.kind(name, version=2))

    async with Worker(app):
        await app.enqueue(bench.kind(name, version=3)())
        (letter,) = await broker.take(dead_queue(app), 1)

    assert not list(ran)
    assert letter.text("amqpjobs-dead-reason") == "unknown_version"
    assert "version 3" in letter.text("amqpjobs-dead-error")


async def test_a_renamed_kind_still_runs_under_its_old_name(bench: Bench) -> None:
    old_name = bench.unique()
    app, kind = bench.app(), bench.kind(aliases=[old_name])
    producer, old_kind = bench.app(), bench.kind(old_name)
    ran = record(app, kind)

    async with Worker(app):
        await producer.enqueue(old_kind(n=1))
        await producer.enqueue(old_kind(n=2), delay=0.1)
        await producer.enqueue(kind(n=3))
        await ran.until(3)

    assert sorted(run.n for run in ran) == [1, 2, 3]


async def test_a_handler_moved_to_another_queue_runs_each_job_once(
    bench: Bench, broker: Broker, unique: Callable[[], str]
) -> None:
    name, bulk, kind, producer = unique(), unique(), bench.kind(), bench.app()
    before = bench.app(name)
    record(before, kind)
    async with Worker(before):
        pass
    waiting = await producer.enqueue_many([kind(n=n) for n in range(20)])
    due = datetime.now(UTC) + timedelta(seconds=3)
    delayed = await producer.enqueue_many([kind(n=n) for n in range(20, 25)], run_at=due)

    after = bench.app(name, queues=[Queue(bulk)])
    ran = record(after, kind, queue=bulk)

    async def all_have_run() -> bool:
        return {run.n for run in ran} == set(range(45))

    async with Worker(after):
        was_in_time = datetime.now(UTC) < due
        fresh = await producer.enqueue_many([kind(n=n) for n in range(25, 45)])
        await eventually(all_have_run)

    queues = {run.envelope.job_id: run.envelope.queue for run in ran}
    assert {queues[handle.job_id] for handle in waiting} == {name}
    assert {queues[handle.job_id] for handle in fresh} == {bulk}
    if was_in_time:  # what is due amid the move goes to the old queue, or to both
        assert {queues[handle.job_id] for handle in delayed} == {bulk}
        assert len(ran) == 45
    assert await broker.count(work_queue(after)) == 0
