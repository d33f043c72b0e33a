import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from amqpjobs.clock import Clock, Deadline, SystemClock, in_seconds
from amqpjobs.testing.clock import BrokerClock
from tests.support.broker import PATIENCE
from tests.support.clock import FakeClock, settle


def test_spans_are_seconds() -> None:
    spans = [in_seconds(5), in_seconds(0.5), in_seconds(timedelta(minutes=1))]

    assert spans == [5.0, 0.5, 60.0]


def test_the_systems_time_is_aware_and_utc() -> None:
    now = SystemClock().now()

    assert now.utcoffset() == timedelta(0)
    assert abs(now - datetime.now(UTC)) < timedelta(minutes=1)


def test_monotonic_time_does_not_go_back() -> None:
    clock = SystemClock()

    first, second = clock.monotonic(), clock.monotonic()

    assert first <= second


async def test_the_systems_timeout_ends_its_block() -> None:
    clock, deadlines = SystemClock(), list[Deadline]()

    async def work() -> None:
        async with clock.timeout(0) as deadline:
            deadlines.append(deadline)
            await clock.sleep(60)

    with pytest.raises(TimeoutError):
        await work()

    assert deadlines[0].expired()


async def test_a_fake_sleep_ends_when_it_is_due_and_not_before() -> None:
    clock: FakeClock = FakeClock()
    sleep = asyncio.create_task(clock.sleep(10))

    await clock.advance(9.9)
    was_done = sleep.done()
    await clock.advance(0.1)

    assert (was_done, sleep.done()) == (False, True)
    assert clock.now() == datetime(2026, 1, 1, 0, 0, 10, tzinfo=UTC)


async def test_a_fake_clock_says_what_is_due_and_goes_there() -> None:
    clock = FakeClock()
    sleep = asyncio.create_task(clock.sleep(10))
    async with clock.timeout(5):
        await settle()
        sooner = clock.next_due
    later = clock.next_due

    clock.step()
    await settle()

    assert (sooner, later, clock.next_due) == (5.0, 10.0, None)
    assert (sleep.done(), clock.monotonic()) == (True, 10.0)


async def test_a_fake_clock_wakes_who_sleeps_in_another_thread() -> None:
    clock, asleep = FakeClock(), threading.Event()

    async def sleep() -> None:
        task = asyncio.create_task(clock.sleep(10))
        await settle()
        asleep.set()
        await task

    thread = asyncio.create_task(asyncio.to_thread(asyncio.run, sleep()))
    await asyncio.to_thread(asleep.wait)
    await clock.advance(10)

    async with asyncio.timeout(PATIENCE):
        await thread


async def test_a_broker_sees_the_same_time_and_comes_just_where_it_was_told() -> None:
    clock = FakeClock()
    broker_clock = BrokerClock(clock)
    moment = broker_clock.now() + 0.1

    broker_clock.forward(moment)
    await clock.advance(5)

    assert clock.now() == datetime(2026, 1, 1, 0, 0, 5, 100_000, tzinfo=UTC)
    assert abs(broker_clock.now() - clock.now().timestamp()) < 1e-6
    assert broker_clock.to_monotonic(moment) == pytest.approx(0.1)


async def test_fake_sleeps_end_in_the_order_they_are_due() -> None:
    clock, woken = FakeClock(), list[tuple[str, float]]()

    async def twice(name: str, seconds: float) -> None:
        for _ in range(2):
            await clock.sleep(seconds)
            woken.append((name, clock.monotonic()))

    tasks = [asyncio.create_task(twice(name, seconds)) for name, seconds in (("slow", 3.0), ("fast", 2.0))]
    await clock.advance(10)

    assert woken == [("fast", 2.0), ("slow", 3.0), ("fast", 4.0), ("slow", 6.0)]
    assert all(task.done() for task in tasks)
    assert clock.monotonic() == 10.0


async def test_a_fake_timeout_ends_its_block() -> None:
    clock, ends = FakeClock(), list[Any]()

    async def work() -> None:
        try:
            async with clock.timeout(5) as deadline:
                ends.append(deadline.expired)
                await clock.sleep(60)
        except TimeoutError:
            ends[:] = [(ends[0](), clock.monotonic())]

    task = asyncio.create_task(work())
    await clock.advance(5)

    assert ends == [(True, 5.0)]
    assert task.cancelling() == 0
    assert clock.waits == []


async def test_a_fake_timeout_that_is_left_in_time_does_nothing() -> None:
    clock: Clock = FakeClock()

    async with clock.timeout(5) as deadline, clock.timeout(None) as none:
        await clock.sleep(0)

    assert not deadline.expired()
    assert not none.expired()


async def test_a_fake_timeout_lets_a_cancellation_from_outside_pass() -> None:
    clock = FakeClock()

    async def work() -> None:
        async with clock.timeout(5):
            await clock.sleep(60)

    task = asyncio.create_task(work())
    await settle()
    task.cancel()
    await settle()

    assert task.cancelled()
    assert clock.waits == []


async def test_of_two_nested_fake_timeouts_the_shorter_one_ends_the_block() -> None:
    clock, ends, deadlines = FakeClock(), list[list[bool]](), list[Deadline]()

    async def work() -> None:
        async with clock.timeout(9) as outer:
            try:
                async with clock.timeout(3) as inner:
                    deadlines.extend([outer, inner])
                    await clock.sleep(60)
            except TimeoutError:
                ends.append([each.expired() for each in deadlines])

    await asyncio.gather(work(), clock.advance(10))

    assert ends == [[False, True]]


async def test_a_fake_timeout_of_nothing_ends_its_block_at_the_first_wait() -> None:
    clock = FakeClock()

    with pytest.raises(TimeoutError):
        async with clock.timeout(0):
            await clock.sleep(1)

    assert clock.monotonic() == 0.0
