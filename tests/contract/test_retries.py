"""A failed job comes back to its own queue with the next attempt number, or ends as a dead letter."""

import asyncio
import time
from datetime import timedelta

import pytest

from amqpjobs import App, Cancel, JobContext, Retry, Snooze, Worker, decide, delays, fixed
from amqpjobs.events import JobEnded
from amqpjobs.outcome import Cancelled, Completed, Dead, DeadReason, Retrying, Snoozed
from tests.support.apps import SOON, Bench, Note, dead_queue, record, watch, work_queue
from tests.support.broker import Broker, Foreign


async def always_fail(job: Note, context: JobContext[None]) -> None:
    raise ValueError(f"note {job.n} cannot be done")


async def test_five_delayed_retries_in_a_row_count_the_attempts(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()

    async def fail_five_times(job: Note, context: JobContext[None]) -> None:
        if context.attempt <= 5:
            raise ValueError("not yet")

    ran = record(app, kind, fail_five_times, max_attempts=6, retry=delays(0.1, 0.2, 0.3))
    async with Worker(app):
        handle = await app.enqueue(kind(n=1), headers={"tenant": "acme"})
        await ran.until(6)

    assert [run.attempt for run in ran] == [1, 2, 3, 4, 5, 6]
    assert {run.envelope.job_id for run in ran} == {handle.job_id}
    assert all(dict(run.envelope.headers) == {"tenant": "acme"} for run in ran)
    waits = [later.at - earlier.at for earlier, later in zip(ran, list(ran)[1:], strict=False)]
    assert all(wait >= asked for wait, asked in zip(waits, (0.1, 0.2, 0.3, 0.3, 0.3), strict=True))


async def test_a_retry_comes_back_to_its_own_queue_only(bench: Bench) -> None:
    kind = bench.kind()
    flaky, steady = bench.app(), bench.app()

    async def fail_twice(job: Note, context: JobContext[None]) -> None:
        if context.attempt < 3 and job.n == 1:
            raise ValueError("not yet")

    ran, bystander = record(flaky, kind, fail_twice), record(steady, kind)
    async with Worker(flaky), Worker(steady):
        await flaky.enqueue(kind(n=1))
        await ran.until(3)
        await flaky.enqueue(kind(n=2))
        await bystander.until(2)

    assert [(run.n, run.attempt) for run in bystander] == [(1, 1), (2, 1)]


async def test_immediate_retries_pass_no_delay_level(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    ended = watch(app.events, JobEnded)
    ran = record(app, kind, always_fail, max_attempts=3, retry=fixed(3_600).with_immediate(2))

    async with Worker(app):
        await app.enqueue(kind())
        await ended.until(3)

    assert [run.attempt for run in ran] == [1, 2, 3]
    assert [type(each.outcome) for each in ended] == [Retrying, Retrying, Dead]


async def test_a_job_may_say_itself_when_it_is_tried_again(bench: Bench) -> None:
    app, kind = bench.app(retry=fixed(600)), bench.kind()

    async def ask_once(job: Note, context: JobContext[None]) -> None:
        if context.attempt == 1:
            raise Retry("the other side is busy", delay=timedelta(seconds=0.3))

    ran = record(app, kind, ask_once)
    async with Worker(app):
        await app.enqueue(kind())
        await ran.until(2)

    assert [run.attempt for run in ran] == [1, 2]
    assert ran[1].at - ran[0].at >= 0.3


async def test_a_snoozed_job_keeps_its_attempt(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    ended = watch(app.events, JobEnded)
    naps = iter([0.1, 0.2, 0.1])

    async def nap(job: Note, context: JobContext[None]) -> None:
        if (delay := next(naps, None)) is not None:
            raise Snooze(delay, "too early")

    ran = record(app, kind, nap, max_attempts=1)
    async with Worker(app):
        await app.enqueue(kind())
        await ended.until(4)

    assert [run.attempt for run in ran] == [1, 1, 1, 1]
    assert [type(each.outcome) for each in ended] == [Snoozed, Snoozed, Snoozed, Completed]


async def test_a_cancelled_job_ends_without_a_dead_letter(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    ended = watch(app.events, JobEnded)

    async def give_up(job: Note, context: JobContext[None]) -> None:
        raise Cancel("the customer is gone")

    ran = record(app, kind, give_up)
    async with Worker(app):
        await app.enqueue(kind())
        await ended.until(1)

    assert ended[0].outcome == Cancelled("the customer is gone")
    assert len(ran) == 1
    assert await broker.count(work_queue(app)) == 0
    assert await broker.count(dead_queue(app)) == 0


@pytest.mark.parametrize(
    ("error", "attempts", "reason"),
    [
        (KeyError("final"), [1], DeadReason.NOT_RETRYABLE),
        (ConnectionResetError("again"), [1, 2, 3], DeadReason.ATTEMPTS_EXHAUSTED),
        (ValueError("asked"), [1, 2], DeadReason.NOT_RETRYABLE),
    ],
)
async def test_each_error_has_the_policy_that_is_said_for_it(
    bench: Bench, broker: Broker, error: Exception, attempts: list[int], reason: DeadReason
) -> None:
    app, kind = bench.app(), bench.kind()

    async def fail(job: Note, context: JobContext[None]) -> None:
        raise error

    policy = (
        fixed(600)
        .on(LookupError, None)
        .on(OSError, SOON)
        .on(ValueError, decide(lambda attempt, error: 0.1 if attempt == 1 else None))
    )
    ran = record(app, kind, fail, max_attempts=3, retry=policy)
    async with Worker(app):
        await app.enqueue(kind())
        (letter,) = await broker.take(dead_queue(app), 1)

    assert [run.attempt for run in ran] == attempts
    assert letter.text("amqpjobs-dead-reason") == reason


async def test_a_dead_letter_tells_what_happened(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    name = kind.__amqpjobs__.kind
    before = int(time.time() * 1000)
    record(app, kind, always_fail, max_attempts=3)

    async with Worker(app):
        foreign: Foreign = {"kind": name, "message_id": "from-php", "headers": {"tenant": "acme"}}
        await broker.publish(app.topology.jobs, name, b'{"n": 5, "more": 1}', **foreign)
        (letter,) = await broker.take(dead_queue(app), 1)

    after = int(time.time() * 1000)
    assert letter.body == b'{"n": 5, "more": 1}'
    assert letter.kind == name
    assert letter.text("amqpjobs-dead-reason") == "attempts_exhausted"
    assert letter.text("amqpjobs-dead-error") == "ValueError: note 5 cannot be done"
    assert "always_fail" in letter.text("amqpjobs-dead-traceback")
    assert before <= letter.number("amqpjobs-first-at") <= letter.number("amqpjobs-dead-at") <= after
    assert letter.number("amqpjobs-dead-at") - letter.number("amqpjobs-first-at") >= 200
    assert letter.text("amqpjobs-dead-host")
    assert letter.text("amqpjobs-dead-queue") == app.name
    assert letter.text("amqpjobs-id") == "from-php"
    assert letter.number("amqpjobs-attempt") == 3
    assert letter.headers["tenant"] == "acme"
    assert not [header for header in letter.headers if header.startswith("x-")]
    assert not {"CC", "BCC"} & letter.headers.keys()


async def test_an_error_with_a_huge_text_is_cut_in_its_dead_letter(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()

    async def fail_at_length(job: Note, context: JobContext[None]) -> None:
        raise ValueError("begin " + "\N{GRINNING FACE}" * 500_000 + " end")

    record(app, kind, fail_at_length, max_attempts=1)
    async with Worker(app):
        await app.enqueue(kind())
        (letter,) = await broker.take(dead_queue(app), 1)

    assert letter.text("amqpjobs-dead-error").startswith("ValueError: begin")
    assert letter.text("amqpjobs-dead-error").endswith("end")
    assert len(letter.text("amqpjobs-dead-traceback").encode()) <= 16_000


async def test_a_run_that_takes_too_long_has_failed(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    never = asyncio.Event()

    async def hang(job: Note, context: JobContext[None]) -> None:
        await never.wait()

    ran = record(app, kind, hang, max_attempts=2, timeout=0.2)
    async with Worker(app):
        await app.enqueue(kind())
        (letter,) = await broker.take(dead_queue(app), 1)

    assert [run.attempt for run in ran] == [1, 2]
    assert letter.text("amqpjobs-dead-error").startswith("TimeoutError: It ran longer than its timeout of 0.2 s")


async def test_a_sync_handler_runs_in_a_thread_with_the_same_rules(bench: Bench, broker: Broker) -> None:
    app: App[None] = bench.app()
    kind = bench.kind()
    attempts: list[int] = []

    @app.handler(kind, max_attempts=2)
    def work(job: Note, context: JobContext[None]) -> None:
        attempts.append(context.attempt)
        if job.n == 0:
            raise ValueError("not in a thread either")

    ended = watch(app.events, JobEnded)
    async with Worker(app):
        await app.enqueue(kind(n=0))
        (letter,) = await broker.take(dead_queue(app), 1)
        await app.enqueue(kind(n=1))
        await ended.until(3)

    assert work.__name__ == "work"
    assert attempts == [1, 2, 1]
    assert letter.text("amqpjobs-dead-error") == "ValueError: not in a thread either"
    assert isinstance(ended[2].outcome, Completed)


async def test_a_sync_handler_that_overruns_is_tried_again_only_when_it_has_returned(bench: Bench) -> None:
    app: App[None] = bench.app()
    kind = bench.kind()
    spans: list[tuple[float, float]] = []

    @app.handler(kind, max_attempts=2, timeout=0.1)
    def work(job: Note) -> None:
        started = time.monotonic()
        time.sleep(0.4)
        spans.append((started, time.monotonic()))

    ended = watch(app.events, JobEnded)
    async with Worker(app, concurrency=5):
        await app.enqueue(kind())
        await ended.until(2)

    assert work.__name__ == "work"
    assert [type(each.outcome) for each in ended] == [Retrying, Dead]
    assert spans[0][1] < spans[1][0]


async def test_a_job_that_died_does_not_keep_its_neighbours(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()

    async def fail_odd_ones(job: Note, context: JobContext[None]) -> None:
        if job.n % 2:
            raise ValueError("odd")

    ran = record(app, kind, fail_odd_ones, max_attempts=2)
    async with Worker(app, concurrency=3):
        await app.enqueue_many([kind(n=n) for n in range(40)])
        letters = await broker.take(dead_queue(app), 20)
        await ran.until(60)

    assert sorted(run.n for run in ran if run.attempt == 1) == list(range(40))
    assert len({letter.text("amqpjobs-id") for letter in letters}) == 20


async def test_a_job_whose_attempts_travel_with_it_obeys_those(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    ran = record(app, kind, always_fail, max_attempts=9)

    async with Worker(app):
        await app.enqueue(kind(), max_attempts=2)
        await broker.take(dead_queue(app), 1)

    assert [run.attempt for run in ran] == [1, 2]
