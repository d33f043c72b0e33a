"""The harness for users' tests: an app on an embedded broker, whose time the test moves."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from pydantic import field_serializer

from amqpjobs import (
    App,
    Batch,
    BlockingClient,
    Cancel,
    Job,
    JobContext,
    Queue,
    ResultTimeoutError,
    Retry,
    Snooze,
    UnconfirmedError,
    UnroutableError,
    exponential,
    fixed,
)
from amqpjobs.clock import SystemClock
from amqpjobs.errors import DefinitionError, InvalidArgumentsError
from amqpjobs.middleware import RunNext
from amqpjobs.outcome import Cancelled, Completed, Dead, DeadReason, Expired, Outcome, Retrying, Snoozed
from amqpjobs.settings import load_settings
from amqpjobs.testing import Harness
from tests.support.broker import PATIENCE

DAY = 86_400.0


class Flaky(Job[None], kind="flaky"):
    fail_times: int = 0


class Greet(Job[str], kind="greet", aliases=["hello"]):
    name: str


class Stubborn(Job[None], kind="stubborn", max_attempts=12):
    pass


class Sleepy(Job[None], kind="sleepy", timeout=100):
    seconds: float


class Hung(Job[None], kind="hung", timeout=100, max_attempts=2):
    pass


class Blocking(Job[str], kind="blocking"):
    pass


class Apart(Job[str], kind="apart"):
    pass


class Row(Job[None], kind="row"):
    n: int


class Fan(Job[None], kind="fan"):
    width: int


class Forever(Job[None], kind="forever"):
    pass


class Wish(Job[None], kind="wish"):
    what: str


class Foreign(Job[None], kind="foreign.job"):
    text: str = ""


class Lossy(Job[None], kind="lossy"):
    pieces: int

    @field_serializer("pieces")
    def shown(self, pieces: int) -> str:
        return f"{pieces} pieces"


class Crashing(Job[None], kind="crashing"):
    pass


#: As a service has it: made when its module is imported, for a broker that is not there.
app = App("shop", settings=load_settings(url="amqp://nobody:nothing@nowhere.invalid:1/"))
harnesses = list[Harness[None]]()
threads = set[int]()
rows = list[list[int]]()


@app.handler(Flaky)
async def flaky(job: Flaky, ctx: JobContext[None]) -> None:
    if ctx.attempt <= job.fail_times:
        raise ValueError("not yet")


@app.handler(Greet)
async def greet(job: Greet) -> str:
    if not job.name:
        raise ValueError("nobody")
    return f"Hello, {job.name}!"


@app.handler(Stubborn, retry=exponential(60, factor=3, cap=20 * DAY))
async def stubborn(job: Stubborn) -> None:
    raise ValueError("never")


@app.handler(Sleepy)
async def sleepy(job: Sleepy) -> None:
    await app.clock.sleep(job.seconds)


@app.handler(Hung, retry=fixed(10))
async def hung(job: Hung) -> None:
    await asyncio.Event().wait()


@app.handler(Blocking)
def blocking(job: Blocking, ctx: JobContext[None]) -> str:
    threads.add(threading.get_ident())
    return f"attempt {ctx.attempt}"


@app.handler(Apart, run_in="process")
def apart(job: Apart) -> str:
    threads.add(threading.get_ident())
    return "apart"


@app.handler(list[Row], batch=Batch(size=10, seconds=5))
async def store(jobs: list[Row]) -> None:
    rows.append([job.n for job in jobs])


@app.handler(Fan)
async def fan(job: Fan, ctx: JobContext[None]) -> None:
    for n in range(job.width):
        await ctx.enqueue(Greet(name=f"guest {n}"), delay=n)
        await app.enqueue(Flaky(fail_times=0))


@app.handler(Forever)
async def forever(job: Forever, ctx: JobContext[None]) -> None:
    await ctx.enqueue(Forever(), delay=3600)


@app.handler(Wish)
async def wish(job: Wish, ctx: JobContext[None]) -> None:
    if ctx.attempt > 1:
        return
    match job.what:
        case "retry":
            raise Retry(delay=7)
        case "snooze":
            raise Snooze(9, "too early")
        case _:
            raise Cancel("no need")


@app.handler(Lossy)
async def lose(job: Lossy) -> None:
    pass


@app.handler(Crashing)
async def crash(job: Crashing) -> None:
    rows.append([])
    if len(rows) == 1:
        await harnesses[-1].crash_worker()


@pytest.fixture(autouse=True)
def afresh() -> None:
    threads.clear()
    rows.clear()
    harnesses.clear()


@pytest.fixture
async def harness() -> AsyncGenerator[Harness[None]]:
    async with Harness(app) as harness:
        harnesses.append(harness)
        yield harness


# Drain and advance


async def test_a_failing_job_is_tried_again_later(harness: Harness[None]) -> None:
    await harness.app.enqueue(Flaky(fail_times=1))

    await harness.drain()

    assert harness.outcomes(Flaky) == [Retrying(delay=2.0), Completed()]


async def test_draining_takes_time_over_thirty_days_of_backoff(harness: Harness[None]) -> None:
    before = harness.clock.now()
    await app.enqueue(Stubborn())

    await harness.drain()

    outcomes = harness.outcomes(Stubborn)
    assert outcomes[:3] == [Retrying(60.0), Retrying(180.0), Retrying(540.0)]
    assert outcomes[-1] == Dead(DeadReason.ATTEMPTS_EXHAUSTED)
    assert len(outcomes) == 12
    assert timedelta(days=30) < harness.clock.now() - before < timedelta(days=80)


async def test_the_error_of_an_attempt_is_told(harness: Harness[None]) -> None:
    await app.enqueue(Flaky(fail_times=1))

    await harness.drain()

    first = harness.outcomes(Flaky)[0]
    assert isinstance(first, Retrying)
    assert str(first.error) == "not yet"


async def test_time_moves_by_just_as_much_as_it_is_told(harness: Harness[None]) -> None:
    before = harness.clock.now()

    await harness.advance(1, minutes=2, hours=3, days=4)
    await harness.advance(timedelta(seconds=1))

    assert harness.clock.now() - before == timedelta(days=4, hours=3, minutes=2, seconds=2)


async def test_a_delayed_job_runs_when_it_is_due_and_not_before(harness: Harness[None]) -> None:
    await app.enqueue(Greet(name="Ada"), delay=3 * DAY)

    await harness.advance(days=3, seconds=-1)
    early = harness.outcomes(Greet)
    await harness.advance(seconds=1.2)

    assert early == []
    assert harness.outcomes(Greet) == [Completed("Hello, Ada!")]


async def test_things_happen_in_the_order_they_are_due(harness: Harness[None]) -> None:
    for days in (3, 1, 2):
        await app.enqueue(Greet(name=f"day {days}"), delay=days * DAY)

    await harness.advance(days=4)

    assert harness.outcomes(Greet) == [Completed(f"Hello, day {days}!") for days in (1, 2, 3)]


async def test_a_job_that_has_expired_does_not_run(harness: Harness[None]) -> None:
    await app.enqueue(Greet(name="Ada"), delay=60, expires=30)

    await harness.drain()

    assert harness.outcomes(Greet) == [Expired()]


async def test_a_job_may_sleep_by_the_clock(harness: Harness[None]) -> None:
    before = harness.clock.now()
    await app.enqueue(Sleepy(seconds=50))

    await harness.drain()

    assert harness.outcomes(Sleepy) == [Completed()]
    assert harness.clock.now() - before == timedelta(seconds=50)


async def test_a_job_that_sleeps_for_too_long_times_out(harness: Harness[None]) -> None:
    await app.enqueue(Sleepy(seconds=1000), max_attempts=1)

    await harness.advance(99)
    before = harness.outcomes(Sleepy)
    await harness.advance(2)

    assert before == []
    assert harness.outcomes(Sleepy) == [Dead(DeadReason.ATTEMPTS_EXHAUSTED)]


async def test_a_job_that_waits_for_what_never_comes_times_out() -> None:
    async with Harness(app, patience=0.1) as harness:
        await app.enqueue(Hung())

        await harness.drain()

        assert harness.outcomes(Hung) == [Retrying(10.0), Dead(DeadReason.ATTEMPTS_EXHAUSTED)]


async def test_time_stands_still_while_a_job_is_at_work(harness: Harness[None]) -> None:
    slow = App[None]("slow")

    @slow.handler(Greet)
    async def work(job: Greet) -> str:
        await SystemClock().sleep(0.2)
        return "done"

    async with Harness(slow, patience=PATIENCE) as other:
        await slow.enqueue(Greet(name="Ada"))
        await other.advance(days=1)

        assert other.outcomes(Greet) == [Completed("done")]


async def test_wishes_are_heard(harness: Harness[None]) -> None:
    for what in ("retry", "snooze", "cancel"):
        await app.enqueue(Wish(what=what), max_attempts=2)
        await harness.settle()

    await harness.advance(8)

    assert harness.outcomes(Wish) == [Retrying(7.0), Snoozed(9.0, "too early"), Cancelled("no need"), Completed()]


async def test_a_batch_waits_for_its_time_and_not_longer(harness: Harness[None]) -> None:
    for n in range(3):
        await app.enqueue(Row(n=n))

    await harness.advance(4)
    before = list(rows)
    await harness.advance(2)

    assert before == []
    assert rows == [[0, 1, 2]]


async def test_what_a_job_enqueues_is_drained_too(harness: Harness[None]) -> None:
    await app.enqueue(Fan(width=3))

    await harness.drain()

    assert [job.name for job in harness.enqueued(Greet)] == ["guest 0", "guest 1", "guest 2"]
    assert len(harness.outcomes(Greet)) == len(harness.outcomes(Flaky)) == 3


async def test_a_job_in_a_thread_is_waited_for(harness: Harness[None]) -> None:
    await app.enqueue(Blocking())

    await harness.drain()

    assert harness.outcomes(Blocking) == [Completed("attempt 1")]
    assert threads.isdisjoint({threading.get_ident()})


async def test_a_job_for_a_process_runs_in_a_thread_of_this_one(harness: Harness[None]) -> None:
    await app.enqueue(Apart())

    await harness.drain()

    assert harness.outcomes(Apart) == [Completed("apart")]
    assert threads.isdisjoint({threading.get_ident()})


async def test_a_drain_that_does_not_end_says_so(harness: Harness[None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amqpjobs.testing.harness.MOST_STEPS", 50)
    await app.enqueue(Forever())

    with pytest.raises(AssertionError, match=r"due 50 times.*Jobs: 1 delayed\."):
        await harness.drain()


async def test_a_drain_without_a_worker_says_so() -> None:
    async with Harness(app, works=False) as harness:
        await app.enqueue(Greet(name="Ada"))

        with pytest.raises(AssertionError, match=r"1 in queue 'amqpjobs\.queue\.shop', and no worker runs here"):
            await harness.drain()

        assert harness.enqueued(Greet) == [Greet(name="Ada")]


async def test_a_thousand_jobs_are_drained(harness: Harness[None]) -> None:
    await app.enqueue_many([Greet(name=str(n)) for n in range(1000)])

    await harness.drain()

    assert len(harness.outcomes(Greet)) == 1000


# Chance


async def delays_with(seed: int | None) -> list[Outcome]:
    async with Harness(app, seed=seed) as harness:
        await app.enqueue(Flaky(fail_times=3))
        await harness.drain()
        return harness.outcomes(Flaky)


async def test_runs_are_the_same_for_a_seed() -> None:
    first, again, other = [await delays_with(seed) for seed in (7, 7, 8)]

    assert first == again != other


async def test_without_a_seed_chance_takes_nothing() -> None:
    assert (await delays_with(None))[:3] == [Retrying(2.0), Retrying(4.0), Retrying(8.0)]


# What was enqueued


async def test_it_is_asserted_what_was_enqueued(harness: Harness[None]) -> None:
    await app.enqueue(Greet(name="Ada"), delay=60)
    await app.enqueue(Greet(name="Grace"))

    assert harness.assert_enqueued(Greet, count=2) == [Greet(name="Ada"), Greet(name="Grace")]
    assert harness.assert_enqueued(Greet, where=lambda job: job.name == "Grace", delay=0) == [Greet(name="Grace")]
    assert harness.assert_enqueued(Greet, delay=timedelta(minutes=1), count=1) == [Greet(name="Ada")]
    assert harness.assert_enqueued(Flaky, count=0) == []


async def test_a_failed_assertion_shows_what_was_enqueued_instead(harness: Harness[None]) -> None:
    await app.enqueue(Greet(name="Ada"), delay=60)

    with pytest.raises(AssertionError) as failed:
        harness.assert_enqueued(Greet, where=lambda job: job.name == "Grace")

    assert str(failed.value) == (
        "No Greet of that description were enqueued. Enqueued of this class:\n  Greet(name='Ada'), delayed by 60 s"
    )


async def test_a_failed_assertion_shows_other_kinds(harness: Harness[None]) -> None:
    with pytest.raises(AssertionError, match=r"Nothing was enqueued\."):
        harness.assert_enqueued(Flaky)
    await app.enqueue(Greet(name="Ada"))

    with pytest.raises(AssertionError, match=r"Enqueued of other kinds: greet \(1\)\."):
        harness.assert_enqueued(Flaky)
    with pytest.raises(AssertionError, match=r"Not 2, but 1 Greet of that description was enqueued\."):
        harness.assert_enqueued(Greet, count=2)


async def test_a_blocking_client_enqueues_here_too(harness: Harness[None]) -> None:
    client = BlockingClient(app)
    try:
        await asyncio.to_thread(client.enqueue, Greet(name="Barbara"))
    finally:
        await asyncio.to_thread(client.close)

    await harness.drain()

    assert harness.enqueued(Greet) == [Greet(name="Barbara")]
    assert harness.outcomes(Greet) == [Completed("Hello, Barbara!")]


async def test_a_job_that_nobody_handles_is_unroutable_as_in_production(harness: Harness[None]) -> None:
    with pytest.raises(UnroutableError):
        await app.enqueue(Foreign())


async def test_jobs_that_others_handle_are_taken_and_not_run() -> None:
    async with Harness(app, elsewhere=[Foreign]) as harness:
        await app.enqueue(Foreign(text="now"))
        await app.enqueue(Foreign(text="later"), delay=60)

        await harness.drain()

        assert [job.text for job in harness.enqueued(Foreign)] == ["now", "later"]
        assert harness.outcomes(Foreign) == []


async def test_a_job_that_json_does_not_bring_back_is_seen_as_it_came(harness: Harness[None]) -> None:
    await app.enqueue(Lossy(pieces=17))

    await harness.drain()

    assert harness.outcomes(Lossy) == [Dead(DeadReason.INVALID_ARGUMENTS)]


# One job


async def test_a_job_is_performed_without_the_broker(harness: Harness[None]) -> None:
    greeting = await harness.perform(Greet(name="Ada"))
    attempt = await harness.perform(Blocking(), attempt=3)

    assert (greeting, attempt) == ("Hello, Ada!", "attempt 3")
    assert harness.enqueued(Greet) == []
    assert harness.outcomes(Greet) == []


async def test_performing_raises_what_the_handler_raises(harness: Harness[None]) -> None:
    with pytest.raises(ValueError, match="nobody"):
        await harness.perform(Greet(name=""))
    with pytest.raises(Retry):
        await harness.perform(Wish(what="retry"))
    with pytest.raises(Snooze) as snoozed:
        await harness.perform(Wish(what="snooze"))
    with pytest.raises(Cancel, match="no need"):
        await harness.perform(Wish(what="cancel"))

    assert snoozed.value.delay == 9.0


async def test_performing_validates_by_way_of_json(harness: Harness[None]) -> None:
    with pytest.raises(InvalidArgumentsError):
        await harness.perform(Lossy(pieces=17))


async def test_what_nobody_handles_cannot_be_performed(harness: Harness[None]) -> None:
    with pytest.raises(DefinitionError, match=r"no handler for kind 'foreign\.job'"):
        await harness.perform(Foreign())


async def test_performing_enters_the_lifespan_and_asks_middlewares() -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncGenerator[str]:
        yield "the state"

    other, seen = App("other", lifespan=lifespan), list[str]()

    @other.handler(Greet)
    async def handle(job: Greet, ctx: JobContext[str]) -> str:
        return ctx.state

    @other.run_middleware
    async def around(ctx: JobContext[str], following: RunNext) -> Outcome:
        seen.append(ctx.kind)
        return await following(ctx)

    async with Harness(other) as harness:
        result = await harness.perform(Greet(name="Ada"))

    assert (result, seen) == ("the state", ["greet"])


# Faults


async def test_a_job_runs_again_when_its_worker_crashes(harness: Harness[None]) -> None:
    await app.enqueue(Crashing())

    await harness.drain()

    assert len(rows) == 2
    assert harness.outcomes(Crashing) == [Completed()]


async def test_a_worker_crashes_in_the_midst_of_a_job(harness: Harness[None]) -> None:
    await app.enqueue(Sleepy(seconds=50))
    await harness.advance(40)

    await harness.crash_worker()
    await harness.advance(40)
    before = harness.outcomes(Sleepy)
    await harness.advance(10)

    assert before == []
    assert harness.outcomes(Sleepy) == [Completed()]


async def test_a_job_goes_on_when_the_connection_is_cut(harness: Harness[None]) -> None:
    await app.enqueue(Sleepy(seconds=50))
    await harness.advance(40)

    await harness.cut_connection()
    await harness.advance(10)

    assert harness.outcomes(Sleepy) == [Completed()]


async def test_who_enqueues_does_not_know_when_the_confirm_is_lost(harness: Harness[None]) -> None:
    harness.lose_next_confirm()

    with pytest.raises(UnconfirmedError):
        await app.enqueue(Greet(name="Ada"), job_id="one")
    await app.enqueue(Greet(name="Ada"), job_id="one")
    await harness.drain()

    assert harness.outcomes(Greet) == [Completed("Hello, Ada!"), Completed("Hello, Ada!")]


async def test_a_retry_whose_confirm_is_lost_is_not_lost(harness: Harness[None]) -> None:
    await app.enqueue(Flaky(fail_times=1))
    harness.lose_next_confirm()

    await harness.drain()

    assert Completed() in harness.outcomes(Flaky)


# The block


async def test_the_app_is_afterwards_as_before() -> None:
    before = dict(vars(app))

    async with Harness(app) as harness:
        inside = (app.settings.url.get_secret_value(), app.clock)
        url = harness.url
        await app.enqueue(Greet(name="Ada"))
        await harness.drain()

    assert inside == (url, inside[1])
    assert vars(app) == before
    assert not app.events.wanted(type(app.events))  # type: ignore[arg-type]


async def test_two_harnesses_know_nothing_of_each_other() -> None:
    other = App[None]("other")
    other.handler(Greet)(greet)

    async with Harness(app) as first, Harness(other) as second:
        await app.enqueue(Greet(name="Ada"))
        await first.drain()
        await second.drain()

        assert len(first.outcomes(Greet)) == 1
        assert second.outcomes(Greet) == []


async def test_a_harness_that_is_not_open_says_so() -> None:
    harness = Harness(app)

    with pytest.raises(RuntimeError, match="The harness is not open"):
        _ = harness.app
    with pytest.raises(RuntimeError, match="The harness is not open"):
        await harness.drain()


async def test_a_harness_can_be_used_again_but_not_twice_at_once() -> None:
    harness = Harness(app)
    async with harness:
        await app.enqueue(Greet(name="Ada"))
        await harness.drain()
        with pytest.raises(RuntimeError, match="in use"):
            await harness.__aenter__()

    async with harness:
        assert harness.outcomes(Greet) == []


async def test_leaving_does_not_wait_for_jobs() -> None:
    async with asyncio.timeout(PATIENCE), Harness(app):
        await app.enqueue(Hung())


class Move(Job[None], kind="move", shard_by="account"):
    account: str
    number: int
    fails: bool = False


async def test_a_sharded_queue_keeps_its_order_and_is_drained() -> None:
    app, moved = App("accounts", queues=[Queue("moves", shards=4)], retry=fixed(10)), dict[str, list[int]]()

    @app.handler(Move, queue="moves")
    async def move(job: Move, ctx: JobContext[None]) -> None:
        moved.setdefault(job.account, []).append(job.number)
        if job.fails and ctx.attempt == 1:
            raise ValueError("as asked")

    async with Harness(app) as harness:
        await app.enqueue_many(Move(account=f"{n % 5}", number=n, fails=n == 2) for n in range(50))
        await app.enqueue(Move(account="4", number=50), delay=60)
        await harness.drain()

    assert moved["2"] == [*range(2, 50, 5), 2]
    assert moved["4"] == [*range(4, 50, 5), 50]


# Results


async def test_a_call_comes_back_in_a_time_that_stands_still(harness: Harness[None]) -> None:
    before = harness.clock.now()

    greeting = await harness.app.call(Greet(name="Ada"))

    assert greeting == "Hello, Ada!"
    assert harness.clock.now() == before


async def test_a_call_that_is_tried_again_is_answered_when_time_has_moved(harness: Harness[None]) -> None:
    call = asyncio.create_task(harness.app.call(Flaky(fail_times=2), timeout=DAY))

    await harness.drain()
    await call

    assert [type(each) for each in harness.outcomes(Flaky)] == [Retrying, Retrying, Completed]


async def test_a_call_gives_up_just_when_its_time_is_over(harness: Harness[None]) -> None:
    call = asyncio.create_task(harness.app.call(Sleepy(seconds=60), timeout=10))
    await harness.advance(9.9)
    is_early = call.done()

    await harness.advance(0.2)

    assert not is_early
    with pytest.raises(ResultTimeoutError, match="within"):
        await call


async def test_an_answer_is_there_before_time_moves_on(harness: Harness[None]) -> None:
    calls = [asyncio.create_task(harness.app.call(Sleepy(seconds=5), timeout=5.5)) for _ in range(10)]

    await harness.advance(hours=1)

    assert await asyncio.gather(*calls) == [None] * 10


async def test_a_result_survives_a_cut_connection_and_a_crashed_worker(harness: Harness[None]) -> None:
    handle = await harness.app.enqueue(Sleepy(seconds=5), reply=True)
    await harness.settle()

    await harness.cut_connection()
    await harness.crash_worker()
    await harness.advance(10)
    await handle.result()

    assert harness.outcomes(Sleepy) == [Completed()]


async def test_a_blocking_client_calls_here_too(harness: Harness[None]) -> None:
    def script() -> str:
        with BlockingClient(harness.app) as client:
            return client.call(Greet(name="Barbara"))

    assert await asyncio.to_thread(script) == "Hello, Barbara!"
