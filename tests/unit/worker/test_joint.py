"""Envelopes of a batch go in, each with its seat; the handler is called once, and each gets an outcome."""

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest

from amqpjobs.batch import Batch
from amqpjobs.context import BatchContext, JobContext, current_context
from amqpjobs.envelope import Envelope
from amqpjobs.events import JobStarted
from amqpjobs.job import Job
from amqpjobs.middleware import RunNext
from amqpjobs.outcome import (
    Cancel,
    Cancelled,
    Completed,
    Dead,
    DeadReason,
    Expired,
    Outcome,
    Retry,
    Retrying,
    Snooze,
    Snoozed,
)
from amqpjobs.retry import fixed
from amqpjobs.worker.joint import Joint, Seat
from tests.support.broker import PATIENCE as REAL_PATIENCE
from tests.support.clock import settle
from tests.unit.making import NOW, envelope, watched
from tests.unit.worker.test_execution import Bench as OneBench

PATIENCE = 5.0


class Row(Job[None], kind="row", max_attempts=3, timeout=30, retry=fixed(5)):
    n: int


class Count(Job[int], kind="count"):
    n: int


class Bench(OneBench):
    """Runs some envelopes as one batch, as the worker does."""

    def take(self, function: Callable[..., Any], job: type[Job[Any]] = Row) -> None:
        self.registry.add(job, function, {}, batch=Batch(size=100, seconds=PATIENCE))

    def start(self, *jobs: Envelope | None) -> list["asyncio.Task[Outcome]"]:
        """None stands for a delivery that nobody can read."""
        joint = Joint(self.clock, len(jobs), patience=PATIENCE, context=contextvars.copy_context())
        return [asyncio.create_task(self._outcome(job, Seat(joint))) for job in jobs]

    async def all(self, *jobs: Envelope | None) -> list[Outcome]:
        return list(await asyncio.gather(*self.start(*jobs)))

    async def _outcome(self, job: Envelope | None, seat: Seat) -> Outcome:
        try:
            return Dead(DeadReason.UNREADABLE) if job is None else await self.execution.run(job, seat)
        finally:
            seat.excuse()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.threads.close()


def row(n: int, **changes: Any) -> Envelope:
    return envelope("row", b'{"n": %d}' % n, job_id=f"job-{n}", **changes)


def rows(count: int) -> list[Envelope]:
    return [row(n) for n in range(count)]


class Calls:
    """Notes what the handler was called with, and answers as it is told."""

    def __init__(self, answer: Callable[[list[int]], Any] = lambda numbers: None) -> None:
        self.numbers: list[list[int]] = []
        self._answer = answer

    async def __call__(self, jobs: list[Row]) -> Any:
        self.numbers.append([job.n for job in jobs])
        return self._answer(self.numbers[-1])


def raising(error: BaseException) -> Callable[[list[int]], Any]:
    def answer(numbers: list[int]) -> Any:
        raise error

    return answer


async def test_the_handler_is_called_once_with_all_jobs_in_their_order(bench: Bench) -> None:
    calls, started = Calls(), watched(bench.events, JobStarted)
    bench.take(calls)

    outcomes = await bench.all(*rows(100))

    assert calls.numbers == [list(range(100))]
    assert outcomes == [Completed()] * 100
    assert len(started) == 100


async def test_a_plain_function_runs_in_a_thread_and_sees_all_contexts(bench: Bench) -> None:
    seen = list[object]()

    def handle(jobs: Sequence[Row], ctx: BatchContext[str]) -> None:
        seen.extend([threading.current_thread() is threading.main_thread(), current_context(), ctx.state])
        seen.extend((each.job_id, each.attempt, each.deadline) for each in ctx.contexts)

    bench.take(handle)
    outcomes = await bench.all(row(1), row(2, attempt=2))

    deadline = NOW + timedelta(seconds=30)
    assert seen == [False, None, "state", ("job-1", 1, deadline), ("job-2", 2, deadline)]
    assert outcomes == [Completed()] * 2


async def test_each_job_has_its_own_result(bench: Bench) -> None:
    async def double(jobs: list[Count]) -> list[int]:
        return [job.n * 2 for job in jobs]

    bench.take(double, Count)
    outcomes = await bench.all(*(envelope("count", b'{"n": %d}' % n) for n in range(3)))

    assert outcomes == [Completed(0), Completed(2), Completed(4)]


async def test_an_exception_in_the_list_counts_for_that_job_alone(bench: Bench) -> None:
    error, wish = ValueError("poison"), Retry("busy", delay=60)
    answers = [None, error, wish, Snooze(7, "night"), Cancel("no"), error, SystemExit(1), asyncio.CancelledError()]
    bench.take(Calls(lambda numbers: answers))
    jobs = rows(8)
    jobs[5] = row(5, attempt=3)

    outcomes = await bench.all(*jobs)

    assert outcomes[:6] == [
        Completed(),
        Retrying(5.0, error),
        Retrying(60.0, wish),
        Snoozed(7.0, "night"),
        Cancelled("no"),
        Dead(DeadReason.ATTEMPTS_EXHAUSTED, error),
    ]
    assert all(isinstance(each, Retrying) for each in outcomes[6:])


async def test_what_the_handler_raises_counts_for_each_job_by_its_own_attempt(bench: Bench) -> None:
    error = ValueError("no")
    bench.take(Calls(raising(error)))

    outcomes = await bench.all(row(0), row(1, attempt=3), row(2, max_attempts=1), row(3, attempt=3, max_attempts=9))

    dead = Dead(DeadReason.ATTEMPTS_EXHAUSTED, error)
    assert outcomes == [Retrying(5.0, error), dead, dead, Retrying(5.0, error)]


async def test_one_error_of_many_jobs_does_not_gather_a_traceback_from_each(bench: Bench) -> None:
    bench.take(Calls(raising(ValueError("no"))))

    first, *_ = await bench.all(*rows(50))

    assert isinstance(first, Retrying)
    assert first.error is not None
    assert len(list(frames(first.error))) < 10


def frames(error: BaseException) -> Iterator[object]:
    trace = error.__traceback__
    while trace is not None:
        yield trace
        trace = trace.tb_next


@pytest.mark.parametrize(
    ("wish", "outcome"), [(Snooze(7, "night"), Snoozed(7.0, "night")), (Cancel("no"), Cancelled("no"))]
)
async def test_a_wish_that_is_raised_is_each_jobs(bench: Bench, wish: Exception, outcome: Outcome) -> None:
    bench.take(Calls(raising(wish)))

    outcomes = await bench.all(*rows(3))

    assert outcomes == [outcome] * 3


@pytest.mark.parametrize("error", [StopIteration(), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_whatever_the_handler_raises_fails_its_jobs(bench: Bench, error: BaseException) -> None:
    async def handle(jobs: list[Row]) -> None:
        raise error

    bench.take(handle)
    outcomes = await bench.all(*rows(2))

    assert [type(each) for each in outcomes] == [Retrying, Retrying]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([None], "for 2 jobs of Row it returned 1, and nobody can tell whose"),
        ([], "it returned 0"),
        ([None] * 3, "it returned 3"),
        ("ab", "it returned a str"),
        ({0: None, 1: None}, "it returned a dict"),
        (7, "it returned a int"),
    ],
)
async def test_a_list_that_does_not_fit_fails_all(bench: Bench, answer: object, words: str) -> None:
    bench.take(Calls(lambda numbers: answer))

    outcomes = await bench.all(*rows(2))

    assert all(isinstance(each, Retrying) and words in str(each.error) for each in outcomes)


async def test_nothing_is_no_result_where_each_job_has_one(bench: Bench) -> None:
    def forgetful(jobs: Any) -> Any:
        return None

    bench.take(forgetful, Count)
    (outcome,) = await bench.all(envelope("count", b'{"n": 1}'))

    assert isinstance(outcome, Retrying)
    assert "for 1 jobs of Count it returned a NoneType" in str(outcome.error)


async def test_who_cannot_run_does_not_spoil_the_batch(bench: Bench) -> None:
    calls = Calls()
    bench.take(calls)

    outcomes = await bench.all(
        row(0),
        None,
        row(1, expires_at=NOW),
        envelope("row", b"{"),
        envelope("row", b'{"n": "x"}'),
        row(2, version=9),
        envelope("nobody"),
        row(3),
    )

    assert calls.numbers == [[0, 3]]
    kinds = [Completed, Dead, Expired, Dead, Dead, Snoozed, Snoozed, Completed]
    assert [type(each) for each in outcomes] == kinds
    assert bench.clock.waits == []


async def test_a_batch_that_nobody_joins_calls_nobody(bench: Bench) -> None:
    calls = Calls()
    bench.take(calls)

    outcomes = await bench.all(None, row(1, expires_at=NOW))

    assert (calls.numbers, len(outcomes)) == ([], 2)


async def test_a_job_without_a_seat_is_a_batch_of_one(bench: Bench) -> None:
    calls = Calls()
    bench.take(calls)

    outcome = await bench.run(row(4))

    assert (calls.numbers, outcome) == ([[4]], Completed())


async def test_the_smallest_timeout_is_that_of_the_run(bench: Bench) -> None:
    deadlines = list[object]()

    async def slow(jobs: list[Row], ctx: BatchContext[str]) -> None:
        deadlines.extend([ctx.deadline, *(each.deadline for each in ctx.contexts)])
        await bench.clock.sleep(100)

    bench.take(slow)
    runs = bench.start(row(0), row(1, timeout=10), row(2, timeout=90))
    await bench.clock.advance(9)
    was_done = any(run.done() for run in runs)
    await bench.clock.advance(1)

    assert not was_done
    assert deadlines == [NOW + timedelta(seconds=10)] * 4
    for run in runs:
        outcome = run.result()
        assert isinstance(outcome, Retrying)
        assert str(outcome.error) == "It ran longer than its timeout of 10 s."


async def test_a_thread_that_overruns_fails_its_jobs_when_it_returns(bench: Bench) -> None:
    started, may_end = threading.Event(), threading.Event()

    def slow(jobs: list[Row]) -> None:
        started.set()
        may_end.wait(REAL_PATIENCE)

    bench.take(slow)
    runs = bench.start(*rows(2))
    await asyncio.to_thread(started.wait, REAL_PATIENCE)
    await bench.clock.advance(31)
    was_done = any(run.done() for run in runs)
    may_end.set()
    outcomes = await asyncio.gather(*runs)

    assert not was_done
    assert all(isinstance(each, Retrying) and "a thread cannot be stopped" in str(each.error) for each in outcomes)


# Middlewares


async def test_middlewares_wrap_each_job_around_the_one_call(bench: Bench) -> None:
    steps = list[str]()

    async def wrap(ctx: JobContext[Any], following: RunNext) -> Outcome:
        steps.append(f"before {ctx.job_id}")
        outcome = await following(ctx)
        steps.append(f"after {ctx.job_id}")
        return Cancelled("by the middleware") if ctx.job_id == "job-1" else outcome

    def note(numbers: list[int]) -> None:
        steps.append(f"call {numbers}")

    bench.take(Calls(note))
    bench.middlewares.append(wrap)
    outcomes = await bench.all(*rows(2))

    assert steps == ["before job-0", "before job-1", "call [0, 1]", "after job-0", "after job-1"]
    assert outcomes == [Completed(), Cancelled("by the middleware")]


async def test_a_middleware_may_keep_a_job_away_from_its_batch(bench: Bench) -> None:
    calls = Calls()

    async def refuse_odd(ctx: JobContext[Any], following: RunNext) -> Outcome:
        return Cancelled("odd") if ctx.job_id in ("job-1", "job-3") else await following(ctx)

    bench.take(calls)
    bench.middlewares.append(refuse_odd)
    outcomes = await bench.all(*rows(4))

    assert calls.numbers == [[0, 2]]
    assert outcomes == [Completed(), Cancelled("odd")] * 2


async def test_who_is_held_back_until_another_is_done_runs_in_a_later_call(bench: Bench) -> None:
    calls, lock = Calls(), asyncio.Lock()

    async def one_by_one(ctx: JobContext[Any], following: RunNext) -> Outcome:
        async with lock:
            return await following(ctx)

    bench.take(calls)
    bench.middlewares.append(one_by_one)
    runs = bench.start(*rows(3))
    await bench.clock.advance(2 * PATIENCE)

    assert [run.result() for run in runs] == [Completed()] * 3
    assert calls.numbers == [[0], [1], [2]]


async def test_a_middleware_that_tries_again_at_once_calls_the_handler_for_its_job_alone(bench: Bench) -> None:
    calls = Calls(lambda numbers: [ValueError() if n == 1 and len(numbers) > 1 else None for n in numbers])

    async def again(ctx: JobContext[Any], following: RunNext) -> Outcome:
        outcome = await following(ctx)
        return await following(ctx) if isinstance(outcome, Retrying) else outcome

    bench.take(calls)
    bench.middlewares.append(again)
    outcomes = await bench.all(*rows(3))

    assert calls.numbers == [[0, 1, 2], [1]]
    assert outcomes == [Completed()] * 3


# Cancelling


class Long:
    """A handler that waits until it is cut short, and then cleans up as long as it is told."""

    def __init__(self, saves: bool = False) -> None:
        self.is_running = asyncio.Event()
        self.may_end = asyncio.Event()
        self.steps: list[str] = []
        self._saves = saves

    async def __call__(self, jobs: list[Row]) -> Any:
        self.is_running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.steps.append("cut short")
            await self.may_end.wait()
            self.steps.append("cleaned up")
            if not self._saves:
                raise
        return [None] * len(jobs)


async def test_when_all_are_cancelled_the_call_is_and_all_wait_for_its_end(bench: Bench) -> None:
    handle = Long()
    bench.take(handle)
    runs = bench.start(*rows(3))
    await handle.is_running.wait()

    for run in runs:
        run.cancel()
    await settle()
    done_early = [run.done() for run in runs]
    handle.may_end.set()
    await settle()

    assert done_early == [False] * 3
    assert [run.cancelled() for run in runs] == [True] * 3
    assert handle.steps == ["cut short", "cleaned up"]


async def test_what_a_call_saved_in_spite_of_being_cut_short_counts(bench: Bench) -> None:
    handle = Long(saves=True)
    bench.take(handle)
    runs = bench.start(*rows(2))
    await handle.is_running.wait()

    for run in runs:
        run.cancel()
    handle.may_end.set()
    await settle()

    assert [run.result() for run in runs] == [Completed()] * 2


async def test_who_is_cancelled_alone_does_not_cut_short_the_others(bench: Bench) -> None:
    running, may_end = asyncio.Event(), asyncio.Event()

    async def handle(jobs: list[Row]) -> None:
        running.set()
        await may_end.wait()

    bench.take(handle)
    runs = bench.start(*rows(3))
    await running.wait()
    runs[1].cancel()
    await settle()
    done_early = [run.done() for run in runs]
    may_end.set()

    assert done_early == [False] * 3
    assert await asyncio.gather(*runs) == [Completed()] * 3


async def test_who_is_cancelled_before_the_call_is_not_in_it(bench: Bench) -> None:
    calls, gate = Calls(), asyncio.Event()

    async def hold_the_last(ctx: JobContext[Any], following: RunNext) -> Outcome:
        if ctx.job_id == "job-2":
            await gate.wait()
        return await following(ctx)

    bench.take(calls)
    bench.middlewares.append(hold_the_last)
    runs = bench.start(*rows(3))
    await settle()
    runs[0].cancel()
    await settle()
    was_cancelled = runs[0].cancelled()
    gate.set()
    await settle()

    assert was_cancelled
    assert calls.numbers == [[1, 2]]


async def test_who_comes_after_all_others_were_cancelled_has_a_call_of_its_own(bench: Bench) -> None:
    calls, gate = Calls(), asyncio.Event()

    async def hold_the_last(ctx: JobContext[Any], following: RunNext) -> Outcome:
        if ctx.job_id == "job-1":
            await gate.wait()
        return await following(ctx)

    bench.take(calls)
    bench.middlewares.append(hold_the_last)
    runs = bench.start(*rows(2))
    await settle()
    gate.set()
    runs[0].cancel()
    await settle()

    assert runs[0].cancelled()
    assert (calls.numbers, runs[1].result()) == ([[1]], Completed())
    assert bench.clock.waits == []
