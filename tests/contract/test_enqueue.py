"""Enqueue returns when a queue has the job, and raises otherwise; nothing is dropped in silence."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest

from amqpjobs import (
    AmqpJobsError,
    EnqueueManyError,
    Job,
    JobContext,
    Queue,
    RefusedError,
    Retry,
    TooLargeError,
    UnroutableError,
    Worker,
)
from amqpjobs.events import ConnectionLost, JobEnded, JobParked, ParkedReleased
from amqpjobs.handle import EnqueueOptions
from amqpjobs.outcome import Completed, Expired
from tests.support.apps import Bench, Note, Ran, record, watch, work_queue
from tests.support.broker import PATIENCE, Broker

#: Times are cut to it on their way.
MILLISECOND = timedelta(milliseconds=1)


async def test_an_enqueued_job_runs_once(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    ran, ended = record(app, kind), watch(app.events, JobEnded)

    async with Worker(app):
        handle = await app.enqueue(kind(n=7, text="ü"))
        await ended.until(1)

    assert [(run.n, run.text, run.attempt) for run in ran] == [(7, "ü", 1)]
    assert ran[0].envelope.job_id == handle.job_id
    assert await broker.count(work_queue(app)) == 0


async def test_a_job_nobody_is_bound_for_is_refused_with_the_way_out(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind("nobody.wants.this")

    with pytest.raises(UnroutableError) as caught:
        await app.enqueue(kind())

    text = str(caught.value)
    assert "nobody.wants.this" in text
    assert "amqpjobs topology apply" in text
    assert 'on_unroutable="park"' in text
    assert caught.value.job_id is not None


async def test_a_parked_job_is_released_when_its_kind_is_first_bound(bench: Bench, broker: Broker) -> None:
    producer, app, kind = bench.app(), bench.app(), bench.kind()
    parked = watch(producer.events, JobParked)

    handle = await producer.enqueue(kind(n=1), on_unroutable="park")

    assert handle.is_parked
    assert [each.envelope.job_id for each in parked] == [handle.job_id]
    ran, released = record(app, kind), watch(app.events, ParkedReleased)
    async with Worker(app):
        await ran.until(1)
        await released.until(1)
    assert ran[0].envelope.job_id == handle.job_id
    assert await broker.count(app.topology.parked) == 0


async def test_parked_jobs_of_other_kinds_stay_parked_in_their_order(bench: Bench, broker: Broker) -> None:
    producer, app, kind, other = bench.app(), bench.app(), bench.kind(), bench.kind()
    for n in range(3):
        await producer.enqueue(other(n=n), on_unroutable="park")
        await producer.enqueue(kind(n=n), on_unroutable="park")

    ran, released = record(app, kind), watch(app.events, ParkedReleased)
    async with Worker(app, concurrency=1):
        await ran.until(3)
        await released.until(1)

    left = await broker.take(app.topology.parked, 3)
    assert [run.n for run in ran] == [0, 1, 2]
    assert [json.loads(letter.body)["n"] for letter in left] == [0, 1, 2]
    assert {letter.kind for letter in left} == {other.__amqpjobs__.kind}


async def test_a_parked_job_keeps_its_delay(bench: Bench) -> None:
    producer, app, kind = bench.app(), bench.app(), bench.kind()
    record(app, kind)
    run_at = datetime.now(UTC) + timedelta(seconds=2)

    # A delayed job goes to the levels whoever is bound, and so is not parked.
    handle = await producer.enqueue(kind(), run_at=run_at, on_unroutable="park")

    assert not handle.is_parked


async def test_the_options_of_enqueue_reach_the_worker(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    contexts: list[JobContext[None]] = []

    async def look(job: Note, context: JobContext[None]) -> None:
        contexts.append(context)

    ran = record(app, kind, look, max_attempts=9, timeout=99)
    async with Worker(app):
        before = datetime.now(UTC) - MILLISECOND
        await app.enqueue(
            kind(),
            job_id="mine",
            headers={"tenant": "acme", "weight": 1.5, "deep": {"list": [1, "two", None]}},
            priority=4,
            expires=60,
            max_attempts=2,
            timeout=timedelta(seconds=7),
        )
        await ran.until(1)
        after = datetime.now(UTC) + MILLISECOND

    envelope, context = ran[0].envelope, contexts[0]
    assert (context.job_id, context.max_attempts, envelope.priority) == ("mine", 2, 4)
    assert dict(envelope.headers) == {
        "tenant": "acme",
        "weight": 1.5,
        "deep": {"list": [1, "two", None]},
    }
    assert envelope.expires_at is not None
    assert before <= envelope.expires_at - timedelta(seconds=60) <= after
    assert context.deadline is not None
    assert before <= context.deadline - timedelta(seconds=7) <= after


async def test_a_delayed_job_runs_not_before_its_time(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    ran = record(app, kind)

    async with Worker(app):
        run_at = datetime.now(UTC) + timedelta(seconds=0.7)
        await app.enqueue(kind(n=1), run_at=run_at)
        await app.enqueue(kind(n=2), delay=0.4)
        await ran.until(2)

    # Who comes first is the machine's: the second may be sent when the first one is due.
    assert sorted(run.n for run in ran) == [1, 2]
    assert all(0 <= run.lateness < PATIENCE for run in ran)
    (timed,) = (run.envelope for run in ran if run.n == 1)
    assert timed.run_at == run_at.replace(microsecond=run_at.microsecond // 1000 * 1000)


async def test_a_time_that_has_passed_means_now(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    ran = record(app, kind)

    async with Worker(app):
        await app.enqueue(kind(), run_at=datetime.now(UTC) - timedelta(days=400))
        await ran.until(1)

    assert ran[0].attempt == 1


async def test_a_time_without_a_zone_is_refused(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    record(app, kind)

    with pytest.raises(ValueError, match="must carry a time zone"):
        await app.enqueue(kind(), run_at=datetime(2030, 1, 1))  # noqa: DTZ001  (this is the mistake)


async def test_an_expired_job_is_not_run(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    ran, ended = record(app, kind), watch(app.events, JobEnded)

    async with Worker(app):
        await app.enqueue(kind(n=1), delay=0.5, expires=0.2)
        await app.enqueue(kind(n=2), expires=60)
        await ended.until(2)

    assert [run.n for run in ran] == [2]
    outcomes = {each.envelope.payload: type(each.outcome) for each in ended}
    assert outcomes == {b'{"n":1,"text":""}': Expired, b'{"n":2,"text":""}': Completed}
    assert await broker.count(app.topology.dead_queue(app.name)) == 0


async def test_a_job_can_be_sent_to_one_queue_past_all_bindings(bench: Bench) -> None:
    side = bench.unique()
    app, kind = bench.app(queues=[Queue(side)]), bench.kind()
    ran = record(app, kind)

    async with Worker(app):
        await app.enqueue(kind(n=1), queue=side)
        await app.enqueue(kind(n=2), queue=side, delay=0.2)
        await app.enqueue(kind(n=3))
        await ran.until(3)

    assert {run.n: run.envelope.queue for run in ran} == {1: side, 2: side, 3: app.name}


async def test_a_job_for_a_queue_that_does_not_exist_is_refused(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()

    with pytest.raises(UnroutableError):
        await app.enqueue(kind(), queue=bench.unique())


async def test_a_thousand_jobs_are_enqueued_with_their_confirms_pipelined(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    ran = record(app, kind)

    async with Worker(app, concurrency=50):
        handles = await app.enqueue_many([kind(n=n) for n in range(1_000)], deadline=30)
        await ran.until(1_000)

    assert len({handle.job_id for handle in handles}) == 1_000
    assert sorted(run.n for run in ran) == list(range(1_000))
    assert {run.n: run.envelope.job_id for run in ran} == {n: handle.job_id for n, handle in enumerate(handles)}


async def test_enqueue_many_tells_by_position_which_jobs_were_refused(bench: Bench, broker: Broker) -> None:
    app, kind, refused, unbound = bench.app(), bench.kind(), bench.kind(), bench.kind()
    ran = record(app, kind)
    full = await bench.queue(x_max_length=1, x_overflow="reject-publish")
    jobs: list[Job[None]] = [kind(n=n) for n in range(1_000)]
    jobs[10] = jobs[500] = refused()
    jobs[999] = unbound()

    async with Worker(app, concurrency=50):
        await broker.bind(full, app.topology.jobs, refused.__amqpjobs__.kind)
        await app.enqueue(refused())
        with pytest.raises(EnqueueManyError) as caught:
            await app.enqueue_many(jobs, deadline=30)
        await ran.until(997)

    errors, enqueued = caught.value.errors, caught.value.enqueued
    assert {position: type(error) for position, error in errors.items()} == {
        10: RefusedError,
        500: RefusedError,
        999: UnroutableError,
    }
    assert enqueued.keys() == set(range(1_000)) - errors.keys()
    assert {run.envelope.job_id for run in ran} == set(enqueued.values())
    assert "position 10" in str(caught.value)


async def test_what_is_too_large_is_refused_and_the_connection_stays(bench: Bench) -> None:
    app, kind = bench.app(settings=bench.settings(max_body=1_000_000)), bench.kind()
    ran, lost = record(app, kind), watch(app.events, ConnectionLost)

    async with Worker(app):
        with pytest.raises(TooLargeError, match=r"AMQPJOBS_MAX_BODY"):
            await app.enqueue(kind(text="x" * 1_000_001))
        with pytest.raises(TooLargeError, match=r"headers need"):
            await app.enqueue(kind(), headers={"big": "x" * 120_000})
        await app.enqueue(kind(n=1), headers={"fits": "x" * 40_000})
        await ran.until(1)

    assert ran[0].envelope.headers["fits"] == "x" * 40_000
    assert not list(lost)


async def test_headers_that_belong_to_us_or_the_broker_are_refused(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()

    for name in ("amqpjobs-attempt", "x-death", "CC"):
        with pytest.raises(ValueError, match="reserved"):
            await app.enqueue(kind(), headers={name: "1"})


WRONG_OPTIONS: list[EnqueueOptions] = [
    {"delay": -1},
    {"delay": 1, "run_at": datetime(2030, 1, 1, tzinfo=UTC)},
    {"priority": 999},
    {"queue": "no such queue"},
    {"headers": {"x-death": "no"}},
    {"headers": {"large": "x" * 60_000}},
    cast("EnqueueOptions", {"dealy": 5}),
]


@pytest.mark.parametrize("options", WRONG_OPTIONS, ids=lambda each: str(each)[:40])
async def test_a_check_refuses_what_enqueue_refuses(bench: Bench, options: EnqueueOptions) -> None:
    app, kind = bench.app(settings=bench.settings(max_body=1_000)), bench.kind()

    for job, given in ((kind(), options), (kind(text="x" * 1_000), EnqueueOptions())):
        with pytest.raises((AmqpJobsError, ValueError, TypeError)) as later:
            await app.enqueue(job, **given)
        with pytest.raises(later.type) as now:
            app.check(job, **given)

        assert str(now.value) == str(later.value)


async def test_two_services_bound_to_one_kind_each_get_a_copy(bench: Bench) -> None:
    kind = bench.kind()
    one, other = bench.app(), bench.app()
    first, second = record(one, kind), record(other, kind)

    async with Worker(one), Worker(other):
        now = await one.enqueue(kind(n=1))
        later = await one.enqueue(kind(n=2), delay=0.3)
        await first.until(2)
        await second.until(2)

    for ran in (first, second):
        assert [run.envelope.job_id for run in ran] == [now.job_id, later.job_id]


async def test_a_job_of_an_exchange_of_its_own_takes_the_same_ways(bench: Bench, broker: Broker) -> None:
    exchange = f"orders.{bench.unique()}"
    await broker.declare_exchange(exchange, "topic")
    app, kind = bench.app(), bench.kind(exchange=exchange)

    async def fail_first(job: Note, context: JobContext[None]) -> None:
        if context.attempt == 1 and job.text == "flaky":
            raise Retry(delay=0.1)

    ran = record(app, kind, fail_first)
    async with Worker(app):
        await app.enqueue(kind(n=1))
        await app.enqueue(kind(n=2), delay=0.3)
        await app.enqueue(kind(n=3, text="flaky"))
        await ran.until(4)

    assert sorted((run.n, run.attempt) for run in ran) == [(1, 1), (2, 1), (3, 1), (3, 2)]


async def test_a_job_enqueued_by_a_job_knows_its_parent_and_root(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()

    async def go_on(job: Note, context: JobContext[None]) -> None:
        if job.n == 0:
            await context.enqueue(kind(n=1))
        elif job.n == 1:
            await app.enqueue(kind(n=2))  # the app's own enqueue knows where it is called, too

    ran = record(app, kind, go_on)
    async with Worker(app):
        handle = await app.enqueue(kind(n=0))
        await ran.until(3)

    root, child, grandchild = (run.envelope for run in ran)
    assert (root.parent, root.root) == (None, None)
    assert (child.parent, child.root) == (handle.job_id, handle.job_id)
    assert (grandchild.parent, grandchild.root) == (child.job_id, handle.job_id)


async def test_a_foreign_producer_needs_a_type_and_json_and_no_more(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    ran = record(app, kind)
    name = kind.__amqpjobs__.kind

    async with Worker(app, concurrency=1):
        await broker.publish(app.topology.jobs, name, b'{"n": 1, "surplus": [true]}', kind=name)
        await broker.publish(app.topology.jobs, name, b'{"n": 2}', kind=name, message_id="from-php")
        await ran.until(2)

    assert [(run.n, run.attempt, run.envelope.version) for run in ran] == [(1, 1, None), (2, 1, None)]
    assert ran[1].envelope.job_id == "from-php"


async def test_a_foreign_job_keeps_one_id_over_its_retries(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    name = kind.__amqpjobs__.kind

    async def fail_twice(job: Note, context: JobContext[None]) -> None:
        if context.attempt < 3:
            raise ValueError("not yet")

    ran = record(app, kind, fail_twice)
    async with Worker(app):
        await broker.publish(app.topology.jobs, name, b'{"n": 1, "later": 5}', kind=name, message_id="from-go")
        await ran.until(3)

    assert [run.envelope.job_id for run in ran] == ["from-go"] * 3
    assert {run.envelope.payload for run in ran} == {b'{"n": 1, "later": 5}'}


async def test_enqueue_works_from_many_tasks_at_once(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    ran: list[Ran] = []
    seen = record(app, kind)

    async with Worker(app, concurrency=20):
        await asyncio.gather(*(app.enqueue(kind(n=n)) for n in range(200)))
        ran = await seen.until(200)

    assert sorted(run.n for run in ran) == list(range(200))
