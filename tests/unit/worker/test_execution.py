"""Envelopes go in, outcomes come out. The clock is ours, the threads are real."""

import asyncio
import concurrent.futures
import math
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, cast

import pytest
from pydantic import field_validator

from amqpjobs.context import JobContext, current_context
from amqpjobs.envelope import Envelope
from amqpjobs.errors import UnknownKindError, UnknownVersionError
from amqpjobs.events import Events, JobStarted
from amqpjobs.job import Job
from amqpjobs.middleware import RunMiddleware, RunNext
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
from amqpjobs.registry import HandlerOptions, Registry
from amqpjobs.retry import decide, fixed
from amqpjobs.settings import Settings
from amqpjobs.worker.execution import Execution
from amqpjobs.worker.threads import Threads
from tests.support.broker import PATIENCE
from tests.support.clock import FakeClock, settle
from tests.unit.making import NOW, envelope, watched
from tests.unit.test_context import enqueue


class Probe(Job[Any], kind="probe", version=3, max_attempts=3, timeout=30, retry=fixed(5)):
    number: int = 0


class Fussy(Job[Any], kind="fussy"):
    number: int = 0

    @field_validator("number")
    @classmethod
    def _never(cls, value: int) -> int:
        return value // 0


def do_nothing(job: Probe | Fussy) -> None:
    return None


def one(job: Probe) -> int:
    return 1


class Bench:
    """One handler, and all that it takes to run it."""

    def __init__(self) -> None:
        self.clock = FakeClock(NOW)
        self.events = Events()
        self.threads = Threads()
        self.registry = Registry("work")
        self.middlewares: list[RunMiddleware] = []
        self.settings = Settings()

    def handle(self, function: Callable[..., Any], **options: Any) -> None:
        self.registry.add(Probe, function, cast("HandlerOptions", options))

    @property
    def execution(self) -> Execution:
        return Execution(
            registry=self.registry,
            settings=self.settings,
            clock=self.clock,
            events=self.events,
            threads=self.threads,
            state="state",
            enqueue=enqueue,
            middlewares=self.middlewares,
        )

    async def run(self, job: Envelope | None = None) -> Outcome:
        return await asyncio.create_task(self.execution.run(job or envelope()))


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.threads.close()


def errors_of(outcomes: Sequence[Outcome]) -> list[BaseException | None]:
    """Outcomes are compared without them."""
    return [outcome.error for outcome in outcomes if isinstance(outcome, Retrying | Dead)]


def raising(error: BaseException) -> tuple[Callable[[Probe], Awaitable[None]], Callable[[Probe], None]]:
    async def asynchronous(job: Probe) -> None:
        raise error

    def synchronous(job: Probe) -> None:
        raise error

    return asynchronous, synchronous


BOTH = pytest.mark.parametrize("which", [0, 1], ids=["async", "in a thread"])


@BOTH
async def test_a_handler_that_returns_has_completed(bench: Bench, which: int) -> None:
    async def asynchronous(job: Probe, ctx: JobContext[str]) -> tuple[int, str]:
        return job.number, ctx.state

    def synchronous(job: Probe, ctx: JobContext[str]) -> tuple[int, str]:
        return job.number, ctx.state

    bench.handle((asynchronous, synchronous)[which])
    outcome = await bench.run(envelope(payload=b'{"number": 4}'))

    assert outcome == Completed((4, "state"))


async def test_a_handler_without_a_context_parameter_finds_it_all_the_same(bench: Bench) -> None:
    def synchronous(job: Probe) -> str:
        ctx = current_context()
        return ctx.job_id if ctx else "none"

    bench.handle(synchronous)
    outcome = await bench.run()

    assert outcome == Completed("job-1")


async def test_the_context_knows_limits_and_deadline(bench: Bench) -> None:
    async def handler(job: Probe, ctx: JobContext[str]) -> object:
        return ctx.max_attempts, ctx.deadline

    bench.handle(handler)
    by_class = await bench.run()
    by_wire = await bench.run(envelope(max_attempts=9, timeout=1.5))

    assert by_class == Completed((3, NOW + timedelta(seconds=30)))
    assert by_wire == Completed((9, NOW + timedelta(seconds=1.5)))


@BOTH
@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong"),
        TimeoutError("my own"),
        SystemExit(3),
        KeyboardInterrupt(),
        asyncio.CancelledError("mine"),
        concurrent.futures.CancelledError("a future's"),
        ExceptionGroup("several", [ValueError()]),
        StopAsyncIteration(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_handler_raises_fails_its_attempt(bench: Bench, which: int, error: BaseException) -> None:
    bench.handle(raising(error)[which])

    outcome = await bench.run()

    assert isinstance(outcome, Retrying)
    assert outcome.delay == 5.0
    assert type(outcome.error).__name__ == type(error).__name__


@BOTH
@pytest.mark.parametrize("error", [StopIteration("empty"), GeneratorExit()])
async def test_what_generators_end_with_fails_an_attempt_like_any_error(
    bench: Bench, which: int, error: BaseException
) -> None:
    bench.handle(raising(error)[which])
    loop, complaints = asyncio.get_running_loop(), list[object]()
    loop.set_exception_handler(lambda loop, context: complaints.append(context))

    run = asyncio.create_task(bench.execution.run(envelope()))
    done, _ = await asyncio.wait([run], timeout=2)
    run.cancel()

    assert done, "the run never ends"
    assert isinstance(run.result(), Retrying)
    assert complaints == []


async def test_the_last_attempt_that_fails_is_a_dead_letter(bench: Bench) -> None:
    error = ValueError("wrong")
    bench.handle(raising(error)[0])

    outcomes = [await bench.run(envelope(attempt=attempt)) for attempt in (2, 3, 4)]

    exhausted = Dead(DeadReason.ATTEMPTS_EXHAUSTED, error)
    assert outcomes == [Retrying(5.0, error), exhausted, exhausted]
    assert errors_of(outcomes) == [error] * 3


async def test_an_error_that_is_not_retryable_is_a_dead_letter_at_once(bench: Bench) -> None:
    error = ValueError("wrong")
    bench.handle(raising(error)[0], retry=fixed(5).on(ValueError, None))

    outcome = await bench.run()

    assert outcome == Dead(DeadReason.NOT_RETRYABLE, error)
    assert errors_of([outcome]) == [error]


async def test_a_policy_that_raises_leaves_no_job_without_an_outcome(bench: Bench) -> None:
    def broken(attempt: int, error: BaseException) -> float:
        raise KeyError("a bug in the policy")

    bench.handle(raising(ValueError("wrong"))[0], retry=decide(broken))
    outcome = await bench.run()

    assert isinstance(outcome, Retrying | Dead)


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (Retry("busy"), 5.0),
        (Retry("busy", delay=60), 60.0),
        (Retry("busy", delay=timedelta(hours=1)), 3600.0),
    ],
)
async def test_a_job_may_wish_to_be_tried_again(bench: Bench, wish: Retry, expected: float) -> None:
    bench.handle(raising(wish)[0])

    outcomes = [await bench.run(envelope(attempt=attempt)) for attempt in (1, 3)]

    assert outcomes == [Retrying(expected, wish), Dead(DeadReason.ATTEMPTS_EXHAUSTED, wish)]
    assert errors_of(outcomes) == [wish] * 2


@BOTH
async def test_a_job_may_wish_to_snooze_also_in_its_last_attempt(bench: Bench, which: int) -> None:
    bench.handle(raising(Snooze(60, "night"))[which])

    outcome = await bench.run(envelope(attempt=3))

    assert outcome == Snoozed(60.0, "night")


@BOTH
async def test_a_job_may_wish_to_be_cancelled(bench: Bench, which: int) -> None:
    bench.handle(raising(Cancel("not needed"))[which])

    outcome = await bench.run()

    assert outcome == Cancelled("not needed")


async def test_a_run_that_takes_longer_than_its_timeout_fails(bench: Bench) -> None:
    async def slow(job: Probe) -> None:
        await bench.clock.sleep(100)

    bench.handle(slow)
    run = asyncio.create_task(bench.execution.run(envelope()))
    await bench.clock.advance(29)
    was_done = run.done()
    await bench.clock.advance(1)

    outcome = run.result()
    assert not was_done
    assert isinstance(outcome, Retrying)
    assert repr(outcome.error) == "TimeoutError('It ran longer than its timeout of 30 s.')"


async def test_a_timeout_of_the_handlers_own_is_told_as_its_own(bench: Bench) -> None:
    async def impatient(job: Probe) -> None:
        async with bench.clock.timeout(10):
            await bench.clock.sleep(100)

    bench.handle(impatient)
    run = asyncio.create_task(bench.execution.run(envelope()))
    await bench.clock.advance(10)

    outcome = run.result()
    assert isinstance(outcome, Retrying)
    assert type(outcome.error) is TimeoutError
    assert "its timeout of" not in str(outcome.error)


async def test_a_handler_that_finishes_in_spite_of_its_timeout_has_completed(bench: Bench) -> None:
    async def stubborn(job: Probe) -> str:
        try:
            await bench.clock.sleep(100)
        except asyncio.CancelledError:
            return "saved"
        return "late"

    bench.handle(stubborn)
    run = asyncio.create_task(bench.execution.run(envelope()))
    await bench.clock.advance(30)

    assert run.result() == Completed("saved")


@pytest.mark.parametrize("timeout", [math.inf, 1e12])
async def test_a_job_may_take_as_long_as_it_likes(bench: Bench, timeout: float) -> None:
    async def handler(job: Probe) -> int:
        return 1

    bench.handle(handler, timeout=timeout)
    outcome = await bench.run()

    assert outcome == Completed(1)


async def test_a_thread_that_overruns_counts_as_timed_out_when_it_returns(bench: Bench) -> None:
    started, may_end = threading.Event(), threading.Event()

    def slow(job: Probe) -> None:
        started.set()
        may_end.wait(PATIENCE)

    bench.handle(slow)
    run = asyncio.create_task(bench.execution.run(envelope()))
    await asyncio.to_thread(started.wait, PATIENCE)
    await bench.clock.advance(31)
    was_done, was_running = run.done(), bench.threads.running
    may_end.set()
    outcome = await run

    assert (was_done, was_running) == (False, 1)
    assert isinstance(outcome, Retrying)
    assert "a thread cannot be stopped" in str(outcome.error)


async def test_a_cancellation_from_outside_is_raised(bench: Bench) -> None:
    async def slow(job: Probe) -> None:
        await bench.clock.sleep(10)

    bench.handle(slow)
    run = asyncio.create_task(bench.execution.run(envelope()))
    await settle()
    run.cancel()
    await settle()

    assert run.cancelled()


async def test_a_cancellation_from_outside_is_raised_also_while_a_thread_runs(bench: Bench) -> None:
    started, may_end = threading.Event(), threading.Event()

    def slow(job: Probe) -> None:
        started.set()
        may_end.wait(PATIENCE)

    bench.handle(slow)
    run = asyncio.create_task(bench.execution.run(envelope()))
    await asyncio.to_thread(started.wait, PATIENCE)
    run.cancel()
    await asyncio.wait([run])
    may_end.set()

    assert run.cancelled()


@pytest.mark.parametrize(("seconds", "is_expired"), [(-1, True), (0, True), (1, False)])
async def test_a_job_is_not_started_after_its_time(bench: Bench, seconds: int, is_expired: bool) -> None:
    ran = list[Probe]()

    def handler(job: Probe) -> None:
        ran.append(job)

    bench.handle(handler)

    outcome = await bench.run(envelope(expires_at=NOW + timedelta(seconds=seconds)))

    assert (outcome == Expired(), len(ran)) == (is_expired, 0 if is_expired else 1)


async def test_an_expired_job_of_unknown_kind_is_expired(bench: Bench) -> None:
    outcome = await bench.run(envelope(kind="unknown", expires_at=NOW))

    assert outcome == Expired()


async def test_an_unknown_kind_waits_twice_as_long_each_time_and_then_dies(bench: Bench) -> None:
    waits, job = list[float](), envelope(kind="unknown")
    outcome = await bench.run(job)

    while isinstance(outcome, Snoozed):
        assert outcome.unknown
        waits.append(outcome.delay)
        job = job.evolve(unknown_since=job.unknown_since or bench.clock.now())
        await bench.clock.advance(outcome.delay)
        outcome = await bench.run(job)

    assert waits == [10, 10, 20, 40, 80, 160, 320, 640]
    assert isinstance(outcome, Dead)
    assert outcome.reason is DeadReason.UNKNOWN_KIND
    assert isinstance(outcome.error, UnknownKindError)
    assert "'unknown' on queue 'work'" in str(outcome.error)


async def test_a_version_from_the_future_waits_for_a_worker_that_knows_it(bench: Bench) -> None:
    bench.handle(do_nothing)

    at_first = await bench.run(envelope(version=4))
    at_last = await bench.run(envelope(version=4, unknown_since=NOW - timedelta(seconds=900)))

    assert isinstance(at_first, Snoozed)
    assert (at_first.delay, at_first.unknown) == (10.0, True)
    assert isinstance(at_last, Dead)
    assert at_last.reason is DeadReason.UNKNOWN_VERSION
    assert isinstance(at_last.error, UnknownVersionError)


@pytest.mark.parametrize("version", [None, 1, 2, 3])
async def test_an_older_version_and_one_without_a_number_run(bench: Bench, version: int | None) -> None:
    bench.handle(do_nothing)

    outcome = await bench.run(envelope(version=version))

    assert outcome == Completed()


async def test_the_clock_of_another_worker_may_go_ahead(bench: Bench) -> None:
    ahead = NOW + timedelta(seconds=30)

    outcome = await bench.run(envelope(kind="unknown", unknown_since=ahead))

    assert isinstance(outcome, Snoozed)
    assert outcome.delay == 10.0


@pytest.mark.parametrize("payload", [b"", b"{", b'{"number": "x"}', b"[]", b"\xff"])
async def test_a_payload_that_does_not_fit_is_a_dead_letter_at_once(bench: Bench, payload: bytes) -> None:
    bench.handle(do_nothing)

    outcome = await bench.run(envelope(payload=payload))

    assert isinstance(outcome, Dead)
    assert outcome.reason is DeadReason.INVALID_ARGUMENTS


async def test_a_validator_with_a_bug_leaves_no_job_without_an_outcome(bench: Bench) -> None:
    bench.registry.add(Fussy, do_nothing, {})

    outcome = await bench.run(envelope(kind="fussy", payload=b'{"number": 1}'))

    assert isinstance(outcome, Retrying | Dead)


async def test_a_plain_function_that_returns_an_awaitable_is_not_done_before_it_is_awaited(
    bench: Bench,
) -> None:
    ran = list[int]()

    async def work(job: Probe) -> int:
        ran.append(job.number)
        return 7

    def decorated(job: Probe) -> Awaitable[int]:
        return work(job)

    bench.handle(decorated)
    outcome = await bench.run()
    if isinstance(outcome, Completed) and asyncio.iscoroutine(outcome.result):
        outcome.result.close()

    assert outcome == Completed(7)
    assert ran == [0]


async def test_a_run_middleware_may_change_the_outcome(bench: Bench) -> None:
    async def forgiving(ctx: JobContext[Any], following: RunNext) -> Outcome:
        outcome = await following(ctx)
        if isinstance(outcome, Retrying):
            return Completed(f"forgiven: {outcome.error}")
        return outcome

    bench.handle(raising(ValueError("wrong"))[0])
    bench.middlewares.append(forgiving)
    outcome = await bench.run()

    assert outcome == Completed("forgiven: wrong")


async def test_an_error_of_a_run_middleware_fails_the_attempt(bench: Bench) -> None:
    async def broken(ctx: JobContext[Any], following: RunNext) -> Outcome:
        await following(ctx)
        raise OSError("mine")

    bench.handle(one)
    bench.middlewares.append(broken)
    outcome = await bench.run()

    assert isinstance(outcome, Retrying)
    assert isinstance(outcome.error, OSError)


async def test_a_run_middleware_may_wish_what_a_job_may(bench: Bench) -> None:
    async def later(ctx: JobContext[Any], following: RunNext) -> Outcome:
        raise Snooze(30)

    bench.handle(one)
    bench.middlewares.append(later)
    outcome = await bench.run()

    assert outcome == Snoozed(30.0)


async def test_a_run_middleware_that_forgets_to_return_the_outcome_loses_no_job(bench: Bench) -> None:
    async def forgetful(ctx: JobContext[Any], following: RunNext) -> Any:
        await following(ctx)

    bench.handle(raising(ValueError("wrong"))[0])
    bench.middlewares.append(forgetful)
    failed = await bench.run()
    bench.middlewares[:] = [forgetful]
    bench.registry = Registry("work")
    bench.handle(one)
    forgotten = await bench.run()

    assert isinstance(failed, Retrying)
    assert isinstance(forgotten, Retrying | Dead)


async def test_a_start_is_told_to_who_watches(bench: Bench) -> None:
    seen = watched(bench.events, JobStarted)
    bench.handle(do_nothing)

    await bench.run()
    await bench.run(envelope(payload=b"no"))

    assert seen == [JobStarted(envelope())]


async def test_a_handler_that_recurses_for_ever_fails_its_attempt(bench: Bench) -> None:
    async def endless(job: Probe) -> None:
        await endless(job)

    bench.handle(endless)
    outcome = await bench.run()

    assert isinstance(outcome, Retrying)
    assert isinstance(outcome.error, RecursionError)
