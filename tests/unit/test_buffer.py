"""What waits in a buffer: how much of it, for how long, and what becomes of it. The broker is a fake."""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from datetime import timedelta
from itertools import pairwise
from typing import Any, cast

import pytest

from amqpjobs import (
    AccessRefusedError,
    App,
    Buffer,
    BufferFullError,
    EnqueueError,
    EnqueueTimeoutError,
    FlushError,
    Job,
    RefusedError,
    TooLargeError,
    UnconfirmedError,
    UnroutableError,
)
from amqpjobs.amqp.connection import Link
from amqpjobs.amqp.publisher import Publisher
from amqpjobs.backlog import Backlog, Waiting
from amqpjobs.client import Client
from amqpjobs.clock import Clock
from amqpjobs.envelope import Envelope
from amqpjobs.errors import BrokerUnavailableError
from amqpjobs.events import JobDropped, JobEnqueued
from amqpjobs.middleware import EnqueueNext
from amqpjobs.settings import load_settings
from tests.support.clock import FakeClock, settle
from tests.unit.making import FakePublisher, envelope, watched


class Note(Job[None], kind="note"):
    text: str = ""


class FakeLink:
    """A connection that is there or not, as the test says."""

    def __init__(self, *, is_up: bool) -> None:
        self._up = asyncio.Event()
        self.last_error: BaseException | None = None
        self.blocked = ""
        #: Raised, one for each wait.
        self.refusals: list[BaseException] = []
        self.waits = 0
        self.end = asyncio.Event()
        if is_up:
            self._up.set()

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    def go_up(self) -> None:
        self._up.set()

    async def session(self) -> "FakeLink":
        """It is its own session, too."""
        self.waits += 1
        if self.refusals:
            raise self.refusals.pop(0)
        await self._up.wait()
        return self

    @property
    def is_open(self) -> bool:
        return not self.end.is_set()

    async def ended(self) -> None:
        await self.end.wait()


class Dock:
    """An app, its clock, and a buffer whose client publishes to a fake."""

    def __init__(self, *, is_up: bool = True, clock: Clock | None = None) -> None:
        self.clock = FakeClock()
        settings = load_settings(url="amqp://guest:guest@127.0.0.1:1/", reconnect_cap=8, max_body=10_000)
        self.app = App("shop", settings=settings, clock=clock or self.clock)
        self.link, self.publisher = FakeLink(is_up=is_up), FakePublisher()
        self.dropped = watched(self.app.events, JobDropped)

    async def client(self) -> Client:
        app = self.app
        return Client(
            app=app.name,
            settings=app.settings,
            topology=app.topology,
            clock=app.clock,
            events=app.events,
            link=cast("Link", self.link),
            publisher=cast("Publisher", self.publisher),
            middlewares=app.enqueue_middlewares,
        )

    def buffer(self, *, limit: int = 100, max_bytes: int = 100_000, timeout: float = 5) -> Buffer:
        return Buffer(self.app, self.client, limit=limit, max_bytes=max_bytes, timeout=timeout)

    @property
    def sent(self) -> list[str]:
        return [cast("str", each.properties.headers["amqpjobs-id"]) for each in self.publisher.sent]


def job_ids(error: FlushError) -> list[str | None]:
    return [each.job_id for each in error.errors]


# What is put


async def test_a_put_job_is_sent_and_told_once_it_is_confirmed() -> None:
    dock = Dock()
    told = watched(dock.app.events, JobEnqueued)

    async with dock.buffer() as buffer:
        handle = buffer.enqueue(Note(text="hello"))
        before = (len(buffer), list(dock.sent))
        await buffer.flush()

    assert before == (1, [])
    assert dock.sent == [handle.job_id]
    assert [cast("JobEnqueued", each).envelope.job_id for each in told] == [handle.job_id]


async def test_what_can_never_be_enqueued_is_refused_at_once() -> None:
    async with Dock().buffer() as buffer:
        with pytest.raises(TypeError, match="no option 'dealy'"):
            buffer.enqueue(Note(), **cast("dict[str, Any]", {"dealy": 5}))
        with pytest.raises(ValueError, match="0 or more seconds"):
            buffer.enqueue(Note(), delay=-1)
        with pytest.raises(TooLargeError):
            buffer.enqueue(Note(text="x" * 20_000))
        with pytest.raises(ValueError, match="`expires` says"):
            buffer.enqueue(Note(), deadline=5)

        assert len(buffer) == 0


async def test_a_buffer_holds_so_many_jobs_and_says_why_not_more() -> None:
    dock = Dock(is_up=False)
    dock.link.last_error = BrokerUnavailableError("No connection to the broker at amqp://host: refused.")
    async with dock.buffer(limit=3) as buffer:
        for _ in range(3):
            buffer.enqueue(Note())
        await dock.clock.advance(42)
        with pytest.raises(BufferFullError) as caught:
            buffer.enqueue(Note(), job_id="mine")
        dock.link.go_up()
        await buffer.flush()
        buffer.enqueue(Note())

    assert (caught.value.waiting, caught.value.seconds, caught.value.job_id) == (3, 42, "mine")
    assert "3 jobs" in str(caught.value)
    assert "42.0 s" in str(caught.value)
    assert "amqp://host: refused" in str(caught.value)
    assert "mine" not in dock.sent
    assert len(dock.sent) == 4


async def test_a_buffer_holds_so_many_bytes() -> None:
    dock = Dock(is_up=False)
    with suppress(FlushError):
        async with dock.buffer(max_bytes=5_000, timeout=0) as buffer:
            with pytest.raises(TooLargeError, match="the whole buffer holds 5000"):
                buffer.enqueue(Note(text="x" * 6_000))
            buffer.enqueue(Note(text="x" * 4_000))
            with pytest.raises(BufferFullError):
                buffer.enqueue(Note(text="x" * 1_000))


async def test_a_broker_that_is_there_and_confirms_nothing_is_told_of() -> None:
    dock = Dock()
    dock.publisher.failures.append(asyncio.Event().wait)
    with suppress(FlushError):
        async with dock.buffer(limit=1, timeout=0) as buffer:
            buffer.enqueue(Note())
            await settle()
            with pytest.raises(BufferFullError, match="short of memory"):
                buffer.enqueue(Note())


async def test_a_full_buffer_says_for_how_long_nothing_was_confirmed() -> None:
    dock, gate = Dock(), asyncio.Event()
    dock.publisher.failures.extend([gate.wait, asyncio.Event().wait])
    with suppress(FlushError):
        async with dock.buffer(limit=2, timeout=0) as buffer:
            buffer.enqueue(Note())
            buffer.enqueue(Note())
            await dock.clock.advance(10)
            gate.set()
            await dock.clock.advance(5)
            buffer.enqueue(Note())
            with pytest.raises(BufferFullError) as caught:
                buffer.enqueue(Note())

            assert (caught.value.waiting, caught.value.seconds) == (2, 5)


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"max_bytes": 0}])
async def test_a_buffer_that_holds_nothing_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        Dock().app.buffer(**wrong)


async def test_a_buffer_that_is_not_open_takes_nothing() -> None:
    buffer = Dock().buffer()
    with pytest.raises(EnqueueError, match="not open"):
        buffer.enqueue(Note())
    async with buffer:
        buffer.enqueue(Note())
    with pytest.raises(EnqueueError, match="not open"):
        buffer.enqueue(Note())


async def test_a_buffer_is_for_one_event_loop() -> None:
    async with Dock().buffer() as buffer:

        async def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="BlockingClient"):
                buffer.enqueue(Note())

        await asyncio.to_thread(lambda: asyncio.run(elsewhere()))


async def test_the_age_of_the_oldest_job_is_known() -> None:
    dock = Dock(is_up=False)
    async with dock.buffer() as buffer:
        before = buffer.oldest
        buffer.enqueue(Note())
        await dock.clock.advance(7)
        buffer.enqueue(Note())
        age = buffer.oldest
        dock.link.go_up()

    assert (before, age, buffer.oldest) == (0, 7, 0)


# What waits


async def test_delay_counts_from_the_put_and_not_from_the_sending() -> None:
    dock = Dock(is_up=False)
    async with dock.buffer() as buffer:
        buffer.enqueue(Note(), delay=5)
        buffer.enqueue(Note(), delay=100)
        await dock.clock.advance(6)
        dock.link.go_up()
        await buffer.flush()

    due, later = dock.publisher.sent
    assert (due.exchange, due.routing_key) == ("amqpjobs", "note")
    assert later.exchange != "amqpjobs"
    assert later.properties.headers["amqpjobs-run-at"] == _milliseconds(dock.clock, 100 - 6)


async def test_a_job_that_expires_while_it_waits_is_dropped_told_and_makes_room() -> None:
    dock = Dock(is_up=False)
    async with dock.buffer(limit=1) as buffer:
        old = buffer.enqueue(Note(), expires=10)
        await dock.clock.advance(12)
        new = buffer.enqueue(Note())
        dock.link.go_up()
        with pytest.raises(FlushError, match="expired while it waited") as caught:
            await buffer.flush()

    assert job_ids(caught.value) == [old.job_id]
    assert [cast("JobDropped", each).envelope.job_id for each in dock.dropped] == [old.job_id]
    assert dock.sent == [new.job_id]


PASSING = [BrokerUnavailableError("away"), UnconfirmedError("lost"), AccessRefusedError("no")]


@pytest.mark.parametrize("failure", PASSING, ids=lambda each: type(each).__name__)
async def test_what_passes_by_itself_is_waited_for_and_the_job_sent_again(failure: Exception) -> None:
    dock = Dock()
    dock.publisher.failures.extend([failure] * 6)

    async with dock.buffer(timeout=60) as buffer:
        handles = [buffer.enqueue(Note()) for _ in range(3)]
        await dock.clock.advance(60)

    assert dock.sent == [handle.job_id for handle in handles]
    assert dock.dropped == []


async def test_repeats_pause_ever_longer_and_the_first_confirm_ends_that() -> None:
    dock, attempts = Dock(), list[float]()

    async def fail() -> None:
        attempts.append(dock.clock.monotonic())
        raise UnconfirmedError("lost")

    async with dock.buffer() as buffer:
        for failures in (7, 2):
            dock.publisher.failures.extend([fail] * failures)
            buffer.enqueue(Note())
            await dock.clock.advance(40)

    pauses = [after - before for before, after in pairwise(attempts)]
    assert len(dock.sent) == 2
    for pause, longest in zip(pauses[:6], (0.25, 0.5, 1, 2, 4, 8), strict=True):
        assert longest / 2 - 0.01 < pause < longest + 0.01
    assert pauses[7] < 0.26


async def test_a_connection_that_is_refused_is_not_asked_for_without_a_pause() -> None:
    dock = Dock(is_up=False)
    dock.link.refusals.extend([AccessRefusedError("no")] * 100)
    with suppress(FlushError):
        async with dock.buffer(timeout=0) as buffer:
            buffer.enqueue(Note())
            await dock.clock.advance(4)

    assert 3 < dock.link.waits < 12


async def test_a_publish_that_outlives_its_connection_is_given_up_and_sent_again() -> None:
    dock = Dock()
    dock.publisher.failures.extend([asyncio.Event().wait, asyncio.Event().wait])

    async with dock.buffer() as buffer:
        handles = [buffer.enqueue(Note()) for _ in range(3)]
        await settle()
        dock.link.end.set()
        await settle()
        waiting = len(buffer)
        await dock.clock.advance(2)

    assert waiting == 2
    assert sorted(dock.sent) == sorted(handle.job_id for handle in handles)


async def test_an_odd_error_of_a_connection_that_ends_drops_no_job() -> None:
    dock = Dock()

    async def end() -> None:
        dock.link.end.set()
        raise Exception

    dock.publisher.failures.append(end)
    async with dock.buffer() as buffer:
        handle = buffer.enqueue(Note())
        await dock.clock.advance(2)

    assert dock.sent == [handle.job_id]
    assert dock.dropped == []


NEVER = [UnroutableError("nobody"), RefusedError("full"), TooLargeError("large"), ValueError("a bug")]


@pytest.mark.parametrize("failure", NEVER, ids=lambda each: type(each).__name__)
async def test_what_can_never_be_sent_is_dropped_and_told_and_holds_up_nobody(failure: Exception) -> None:
    dock = Dock()
    dock.publisher.failures.append(failure)

    async with dock.buffer() as buffer:
        bad, good = buffer.enqueue(Note()), buffer.enqueue(Note())
        with pytest.raises(FlushError) as caught:
            await buffer.flush()
        await buffer.flush()

    assert job_ids(caught.value) == [bad.job_id]
    assert str(failure) in str(caught.value)
    assert [cast("JobDropped", each).error for each in dock.dropped] == caught.value.errors
    assert dock.sent == [good.job_id]


# Middlewares


async def test_a_veto_drops_the_job_and_others_go_on() -> None:
    dock = Dock()

    @dock.app.enqueue_middleware
    async def veto(envelope: Envelope, send: EnqueueNext) -> Envelope:
        if b"bad" in envelope.payload:
            raise PermissionError("not this one")
        return await send(envelope.evolve(headers={"seen": "yes"}))

    async with dock.buffer() as buffer:
        bad, good = buffer.enqueue(Note(text="bad")), buffer.enqueue(Note(text="good"))
        with pytest.raises(FlushError, match="not this one") as caught:
            await buffer.flush()

    assert job_ids(caught.value) == [bad.job_id]
    assert dock.sent == [good.job_id]
    assert dock.publisher.sent[0].properties.headers["seen"] == "yes"


async def test_a_job_passes_the_middlewares_once_and_in_the_context_of_its_put() -> None:
    dock, request = Dock(), ContextVar("request", default="none")
    dock.publisher.failures.extend([UnconfirmedError("lost")] * 3)
    seen: list[str] = []

    @dock.app.enqueue_middleware
    async def look(envelope: Envelope, send: EnqueueNext) -> Envelope:
        seen.append(request.get())
        return await send(envelope)

    async with dock.buffer() as buffer:
        for name in ("first", "second"):
            request.set(name)
            buffer.enqueue(Note())
        await dock.clock.advance(10)

    assert seen == ["first", "second"]
    assert len(dock.sent) == 2


async def test_a_middleware_that_hangs_keeps_the_order_and_is_called_again() -> None:
    dock, hangs = Dock(), iter([True, False, False])

    @dock.app.enqueue_middleware
    async def hang(envelope: Envelope, send: EnqueueNext) -> Envelope:
        if next(hangs):
            await asyncio.Event().wait()
        return await send(envelope)

    async with dock.buffer() as buffer:
        handles = [buffer.enqueue(Note()) for _ in range(2)]
        await dock.clock.advance(10)

    assert dock.sent == [handle.job_id for handle in handles]


# The end


async def test_a_flush_tells_which_still_wait_and_they_go_on_waiting() -> None:
    dock = Dock(is_up=False)
    dock.link.last_error = BrokerUnavailableError("No connection to the broker.")
    async with dock.buffer() as buffer:
        handles = [buffer.enqueue(Note()) for _ in range(2)]
        flushing = asyncio.create_task(buffer.flush(3))
        await dock.clock.advance(3)
        with pytest.raises(FlushError) as caught:
            await flushing
        dock.link.go_up()

    ids = [handle.job_id for handle in handles]
    assert job_ids(caught.value) == ids
    assert all(isinstance(each, EnqueueTimeoutError) for each in caught.value.errors)
    assert "never sent" in str(caught.value)
    assert "No connection to the broker." in str(caught.value)
    assert dock.sent == ids


async def test_a_flush_waits_for_what_was_put_before_it_only() -> None:
    dock, gate = Dock(), asyncio.Event()
    dock.publisher.failures.extend([settle, gate.wait])
    async with dock.buffer() as buffer:
        buffer.enqueue(Note())
        flushing = asyncio.create_task(buffer.flush())
        await asyncio.sleep(0)
        buffer.enqueue(Note())
        await flushing
        waiting = len(buffer)
        gate.set()

    assert waiting == 1


async def test_the_end_raises_what_is_not_confirmed_and_leaves_no_task() -> None:
    dock, before = Dock(), asyncio.all_tasks()
    dock.publisher.failures.append(asyncio.Event().wait)

    async def script() -> None:
        async with dock.buffer(timeout=2) as buffer:
            buffer.enqueue(Note(), job_id="stuck")
            buffer.enqueue(Note(), job_id="fine")

    running = asyncio.create_task(script())
    await dock.clock.advance(2)
    with pytest.raises(FlushError, match="may be queued or not") as caught:
        await running

    assert job_ids(caught.value) == ["stuck"]
    assert [cast("JobDropped", each).envelope.job_id for each in dock.dropped] == ["stuck"]
    assert dock.sent == ["fine"]
    assert asyncio.all_tasks() == before
    assert dock.clock.waits == []


async def test_an_error_within_the_block_stays_the_error_and_the_rest_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    dock = Dock(is_up=False)

    async def script() -> None:
        async with dock.buffer(timeout=0) as buffer:
            buffer.enqueue(Note(), job_id="mine")
            raise KeyError("the user's own")

    with caplog.at_level(logging.ERROR), pytest.raises(KeyError):
        await script()

    assert "mine" in caplog.text
    assert len(dock.dropped) == 1


@pytest.mark.parametrize("again", [False, True], ids=["once", "and again while it flushes"])
async def test_a_cancellation_flushes_first_and_is_a_cancellation_after(
    again: bool, caplog: pytest.LogCaptureFixture
) -> None:
    dock, before = Dock(is_up=False), asyncio.all_tasks()

    async def script() -> None:
        async with dock.buffer(timeout=5) as buffer:
            buffer.enqueue(Note(), job_id="mine")
            await asyncio.Event().wait()

    running = asyncio.create_task(script())
    await settle()
    running.cancel()
    await settle()
    if again:
        running.cancel()
    else:
        dock.link.go_up()
    with caplog.at_level(logging.ERROR), pytest.raises(asyncio.CancelledError):
        await running
    await settle()

    assert len(dock.dropped) == again
    assert ("mine" in caplog.text) is again
    assert dock.sent == ([] if again else ["mine"])
    assert asyncio.all_tasks() == before


async def test_nothing_runs_while_nothing_waits() -> None:
    dock, before = Dock(), asyncio.all_tasks()
    async with dock.buffer() as buffer:
        buffer.enqueue(Note())
        await buffer.flush()
        await settle()

        assert asyncio.all_tasks() == before


def test_a_flush_error_names_some_and_has_all() -> None:
    errors = [EnqueueTimeoutError(f"late {n}") for n in range(30)]
    for n, error in enumerate(errors):
        error.job_id = f"id-{n}"

    flushed = FlushError(errors)

    assert str(flushed).startswith("30 jobs of the buffer are not confirmed: id-0, id-1,")
    assert "id-9 and 20 more. The first: late 0" in str(flushed)
    assert flushed.errors == errors


# The backlog


def waiting(size: int = 1, **changes: Any) -> Waiting:
    return Waiting(envelope(**changes), size, put_at=0)


def test_many_threads_put_and_take_and_nothing_is_lost_or_counted_twice() -> None:
    backlog, taken, refused = Backlog(limit=50, max_bytes=10_000), list[int](), list[bool]()
    is_over = threading.Event()

    def put() -> None:
        for _ in range(500):
            while not backlog.put(waiting()):
                refused.append(True)
                is_over.wait(0.001)

    def take() -> None:
        while len(backlog) or not is_over.is_set():
            taken.extend(each.number for each in backlog.window(7) if backlog.remove(each))

    run_all([put] * 4, [take] * 2, is_over)

    assert sorted(taken) == list(range(1, 2_001))
    assert (len(backlog), backlog.size) == (0, 0)


def test_only_one_may_send_and_only_while_something_waits() -> None:
    backlog, job = Backlog(limit=5, max_bytes=5), waiting()

    none = backlog.claim()
    backlog.put(job)
    first, second = backlog.claim(), backlog.claim()
    assert first is not None
    before = backlog.is_done(first)
    backlog.remove(job)
    after = backlog.is_done(first)
    backlog.put(waiting())
    third = backlog.claim()
    backlog.release(first)

    assert (none, second, before, after) == (None, None, False, True)
    assert third is not None
    assert backlog.claim() is None


def run_all(makers: list[Callable[[], None]], takers: list[Callable[[], None]], is_over: threading.Event) -> None:
    making, taking = [[threading.Thread(target=each) for each in part] for part in (makers, takers)]
    for thread in making + taking:
        thread.start()
    for thread in making:
        thread.join()
    is_over.set()
    for thread in taking:
        thread.join()


def _milliseconds(clock: FakeClock, seconds: float) -> int:
    return int((clock.now() + timedelta(seconds=seconds)).timestamp() * 1_000)
