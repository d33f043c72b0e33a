"""Time that is moved, and time that moves."""

import asyncio
from functools import partial

from amqpjobs.devbroker.timers import RealClock, Timers, VirtualClock


def test_timers_fire_in_order_each_at_its_own_moment() -> None:
    timers, seen = Timers(VirtualClock(0.0)), list[tuple[str, float]]()

    def note(name: str) -> None:
        seen.append((name, timers.now()))

    for name, moment in (("late", 3.0), ("early", 1.0), ("second", 2.0), ("beyond", 9.0)):
        timers.at(moment, partial(note, name))

    timers.advance(5)

    assert seen == [("early", 1.0), ("second", 2.0), ("late", 3.0)]
    assert timers.now() == 5.0


def test_at_the_same_moment_they_fire_in_the_order_they_were_set() -> None:
    timers, seen = Timers(VirtualClock(0.0)), list[int]()
    for number in range(5):
        timers.at(1.0, partial(seen.append, number))

    timers.advance(1)

    assert seen == [0, 1, 2, 3, 4]


def test_what_a_timer_sets_fires_in_the_same_advance() -> None:
    timers, seen = Timers(VirtualClock(0.0)), list[float]()

    def again() -> None:
        seen.append(timers.now())
        timers.at(timers.now() + 1, again)

    timers.at(1.0, again)
    timers.advance(4.5)

    assert seen == [1.0, 2.0, 3.0, 4.0]


def test_a_cancelled_timer_does_nothing_and_does_not_stay() -> None:
    timers, seen = Timers(VirtualClock(0.0)), list[int]()
    for number in range(10_000):
        timers.at(5.0, partial(seen.append, number)).cancel()

    assert timers.size <= 1001
    timers.advance(10)

    assert seen == []


async def test_a_moving_clock_fires_by_itself() -> None:
    timers, fired = Timers(RealClock()), asyncio.Event()
    timers.start(asyncio.get_running_loop())

    timers.at(timers.now() + 60, lambda: None)
    timers.at(timers.now() + 0.01, fired.set)

    async with asyncio.timeout(30):
        await fired.wait()
    timers.stop()


async def test_a_moving_clock_can_be_moved_too() -> None:
    timers, seen = Timers(RealClock()), list[str]()
    timers.start(asyncio.get_running_loop())
    timers.at(timers.now() + 3600, lambda: seen.append("an hour"))

    timers.advance(3601)

    assert seen == ["an hour"]
    timers.stop()


async def test_a_timer_that_fails_does_not_stop_the_others() -> None:
    timers, fired, failures = Timers(RealClock()), asyncio.Event(), list[object]()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
    timers.start(loop)

    def fail() -> None:
        raise ValueError("no")

    timers.at(timers.now() + 0.01, fail)
    timers.at(timers.now() + 0.02, fired.set)

    async with asyncio.timeout(30):
        await fired.wait()
    timers.stop()
    assert [str(failure) for failure in failures] == ["no"]


def test_the_next_one_is_known_and_can_be_gone_to() -> None:
    timers, seen = Timers(VirtualClock(0.0)), list[str]()
    timers.at(1.0, lambda: seen.append("cancelled")).cancel()
    timers.at(3.0, lambda: seen.append("later"))
    timers.at(2.1, lambda: seen.append("next"))

    due = timers.next_due
    assert due is not None
    timers.advance_to(due)

    assert (due, seen, timers.next_due) == (2.1, ["next"], 3.0)
