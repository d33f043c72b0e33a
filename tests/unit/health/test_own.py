"""What a process says of itself, and what it says when its event loop does not turn."""

import asyncio
from collections.abc import Iterator

import pytest

from amqpjobs.health.asked import ANSWER_WITHIN, Asked
from amqpjobs.health.own import Own, looking
from amqpjobs.health.pulse import EVERY, STALLED_AFTER, Pulse
from tests.support.clock import FakeClock, settle


class Patient:
    def __init__(self, *reasons: str) -> None:
        self.reasons = list(reasons)
        self.looks = 0

    def look(self) -> None:
        self.looks += 1

    def troubles(self) -> list[str]:
        return self.reasons


class Metrics:
    content_type = "text/plain; version=0.0.4"

    def text(self) -> bytes:
        return b"up 1\n"


@pytest.fixture
def still() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that does not turn, until the test has it turn."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


async def turn(loop: asyncio.AbstractEventLoop) -> None:
    await asyncio.to_thread(loop.run_until_complete, asyncio.sleep(0))


async def test_it_is_ready_when_all_that_are_in_it_are() -> None:
    clock, first, second = FakeClock(), Patient(), Patient()
    own = Own([first, second], Pulse(clock, looking([])), "no metrics", clock)

    before = await own.ready()
    second.reasons.append("draining")

    assert before.is_well
    assert (await own.ready()).reasons == ("draining",)


async def test_it_is_live_while_its_loop_turns() -> None:
    clock = FakeClock()
    pulse = Pulse(clock, looking([]))
    own = Own([], pulse, "no metrics", clock)
    beating = asyncio.create_task(pulse.beat())
    await settle()

    await clock.advance(60)
    turning = await own.live()
    beating.cancel()
    await clock.advance(STALLED_AFTER)
    not_yet = await own.live()
    await clock.advance(EVERY)

    assert turning.is_well
    assert not_yet.is_well
    assert (await own.live()).reasons == (f"the event loop has not turned for {STALLED_AFTER + EVERY:.1f} s",)


async def test_all_look_with_each_beat_and_a_bug_in_one_stops_none(caplog: pytest.LogCaptureFixture) -> None:
    clock, patient = FakeClock(), Patient()

    def fail() -> None:
        patient.look()
        raise ZeroDivisionError

    pulse = Pulse(clock, fail)
    beating = asyncio.create_task(pulse.beat())
    await settle()
    for _ in range(3):
        await clock.advance(EVERY)
    beating.cancel()

    assert patient.looks == 4
    assert not pulse.is_stalled
    assert "could not be looked at" in caplog.text


async def test_a_loop_that_does_not_answer_is_not_waited_for_and_asked_once(
    still: asyncio.AbstractEventLoop,
) -> None:
    clock, asked = FakeClock(), list[str]()
    question = Asked(still, lambda: asked.append("once"), clock)
    waiting = [asyncio.create_task(question.answer()) for _ in range(100)]
    await settle()

    await clock.advance(ANSWER_WITHIN)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    late = asyncio.create_task(question.answer())
    await settle()
    await turn(still)
    await late

    assert {type(each) for each in results} == {TimeoutError}
    assert asked == ["once"]


async def test_after_an_answer_it_is_asked_anew(still: asyncio.AbstractEventLoop) -> None:
    clock, answers = FakeClock(), iter("ab")
    question = Asked(still, lambda: next(answers), clock)

    async def answered() -> str:
        waiting = asyncio.create_task(question.answer())
        await settle()
        await turn(still)
        return await waiting

    assert [await answered(), await answered()] == ["a", "b"]


async def test_metrics_are_passed_on_or_it_is_told_why_there_are_none() -> None:
    clock = FakeClock()
    pulse = Pulse(clock, looking([]))

    shown = await Own([], pulse, Metrics(), clock).metrics()
    absent = await Own([], pulse, 'pip install "amqpjobs[prometheus]"', clock).metrics()

    assert (shown.status, shown.body, shown.content_type) == (200, b"up 1\n", Metrics.content_type)
    assert (absent.status, absent.body) == (404, b'pip install "amqpjobs[prometheus]"\n')
