"""Who waits for which answer, and what becomes of answers that nobody waits for. The mailbox has no broker."""

import asyncio
import gc
import math
from typing import Any, cast

import pytest

from amqpjobs import JobFailedError, JobHandle, ResultError, ResultTimeoutError
from amqpjobs.amqp.connection import Line
from amqpjobs.events import Events, ReplyDropped
from amqpjobs.job import Job
from amqpjobs.results import AwaitedResult, Results
from amqpjobs.settings import load_settings
from amqpjobs.topology import Topology
from tests.support.clock import FakeClock
from tests.unit.making import NOW, delivery, envelope, watched

LONGEST = 1_000
DONE = b'{"state":"completed","result":%d}'


class Count(Job[int], kind="count"):
    pass


class Desk:
    """Results, a clock, and what was dropped."""

    def __init__(self) -> None:
        self.clock = FakeClock(NOW)
        self.events = Events()
        self.dropped = cast("list[ReplyDropped]", watched(self.events, ReplyDropped))
        self.results = Results(
            line=cast("Line", None),
            topology=Topology("ns"),
            settings=load_settings(max_body=LONGEST),
            clock=self.clock,
            events=self.events,
        )

    def expect(self, job_id: str, **changes: Any) -> JobHandle[int]:
        answer: AwaitedResult = self.results.expect(Count(), envelope("count", job_id=job_id, **changes))
        return JobHandle(job_id, "count", _answer=answer)

    def come(self, body: bytes, correlation_id: str | None, *, defect: str = "") -> None:
        self.results.take(delivery(body, correlation_id=correlation_id, defect=defect))

    async def late(self, handle: JobHandle[int], seconds: float) -> ResultTimeoutError:
        """Its wait, which must end in vain after so many seconds."""
        waiting = asyncio.create_task(handle.result(seconds))
        await self.clock.advance(seconds)
        error = waiting.exception()
        assert isinstance(error, ResultTimeoutError)
        return error


async def test_an_answer_that_comes_is_told_to_all_who_wait_and_to_who_asks_later() -> None:
    desk = Desk()
    handle, other = desk.expect("a"), desk.expect("b")
    waiting = [asyncio.create_task(handle.result()) for _ in range(3)]
    await desk.clock.advance(1)

    desk.come(DONE % 7, "a")
    told = await asyncio.gather(*waiting)

    assert [*told, await handle.result(0)] == [7, 7, 7, 7]
    assert isinstance(await desk.late(other, 5), ResultTimeoutError)


async def test_an_answer_that_comes_before_anybody_waits_is_kept_for_its_handle() -> None:
    desk = Desk()
    handle = desk.expect("a")

    desk.come(DONE % 1, "a")

    assert await handle.result() == 1


async def test_of_two_answers_the_first_counts_and_the_other_is_dropped_quietly() -> None:
    desk = Desk()
    handle = desk.expect("a")

    desk.come(DONE % 1, "a")
    desk.come(b'{"state":"expired"}', "a")

    assert await handle.result() == 1
    assert [(each.job_id, each.garbage) for each in desk.dropped] == [("a", "")]


async def test_who_waits_in_vain_may_ask_again_and_then_have_it() -> None:
    desk = Desk()
    handle = desk.expect("a")

    error = await desk.late(handle, 3)
    desk.come(DONE % 1, "a")

    assert error.job_id == "a"
    assert "within 3 s" in str(error)
    assert await handle.result(0) == 1


async def test_a_dropped_handle_leaves_nothing_and_its_answer_is_dropped() -> None:
    desk = Desk()
    handles = [desk.expect(f"job-{number}") for number in range(1_000)]
    counted = len(desk.results)

    del handles
    gc.collect()
    desk.come(DONE % 1, "job-1")

    assert (counted, len(desk.results)) == (1_000, 0)
    assert [each.job_id for each in desk.dropped] == ["job-1"]


async def test_a_cancelled_wait_leaves_nothing() -> None:
    desk = Desk()
    waiting = asyncio.create_task(desk.expect("a").result())
    await desk.clock.advance(1)
    counted = len(desk.results)

    waiting.cancel()
    await asyncio.wait([waiting])
    del waiting
    await desk.clock.advance(60)  # this clock keeps its alarms until then
    gc.collect()

    assert (counted, len(desk.results)) == (1, 0)


@pytest.mark.parametrize("body", [b"", b"garbage", b'{"state":"maybe"}', b"[" * 900])
async def test_garbage_is_told_and_the_answer_is_still_awaited(body: bytes) -> None:
    desk = Desk()
    handle = desk.expect("a")

    desk.come(body, "a")
    desk.come(DONE % 2, "a")

    assert await handle.result() == 2
    assert [(each.job_id, bool(each.garbage)) for each in desk.dropped] == [("a", True)]


async def test_what_the_client_library_could_not_read_is_no_answer() -> None:
    desk = Desk()
    handle = desk.expect("a")

    desk.come(DONE % 1, "a", defect="a time beyond the year 9999")
    desk.come(DONE % 2, "a")

    assert await handle.result() == 2
    assert desk.dropped[0].garbage == "a time beyond the year 9999"


@pytest.mark.parametrize("key", [None, "", "unknown"])
async def test_what_nobody_awaits_is_dropped_whatever_it_is(key: str | None) -> None:
    desk = Desk()
    handle = desk.expect("a")

    desk.come(b"\xff" * 1_000_000, key)
    desk.come(DONE % 1, "a")

    assert await handle.result() == 1
    assert [each.job_id for each in desk.dropped] == [key]


async def test_an_answer_larger_than_this_process_takes_is_told_to_who_awaits_it() -> None:
    desk = Desk()
    handle = desk.expect("a")

    desk.come(DONE % 1 + b" " * LONGEST, "a")

    with pytest.raises(ResultError, match="AMQPJOBS_MAX_BODY") as caught:
        await handle.result()
    assert caught.value.job_id == "a"


async def test_jobs_of_the_same_id_share_an_answer() -> None:
    desk = Desk()
    first, second = desk.expect("a"), desk.expect("a")

    desk.come(DONE % 1, "a")

    assert (await first.result(), await second.result()) == (1, 1)


async def test_an_answer_is_known_by_the_correlation_id_that_was_sent() -> None:
    desk = Desk()
    handle = desk.expect("a", correlation_id="set by a middleware")

    desk.come(DONE % 1, "set by a middleware")

    assert await handle.result() == 1


async def test_who_waits_when_all_is_closed_is_told() -> None:
    desk = Desk()
    handle = desk.expect("a")
    waiting = asyncio.create_task(handle.result())
    await desk.clock.advance(1)

    await desk.results.close()

    with pytest.raises(ResultError, match="closed here before an answer came"):
        await waiting


async def test_each_failure_is_raised_anew() -> None:
    desk = Desk()
    handle = desk.expect("a")
    desk.come(b'{"state":"dead","reason":"not_retryable","error":{"type":"E","message":"m","traceback":"t"}}', "a")

    errors = list[JobFailedError]()
    for _ in range(2):
        with pytest.raises(JobFailedError) as caught:
            await handle.result()
        errors.append(caught.value)

    assert errors[0] is not errors[1]


@pytest.mark.parametrize("timeout", [-1.0, math.nan])
async def test_a_timeout_that_cannot_be_is_refused(timeout: float) -> None:
    desk = Desk()

    with pytest.raises(ValueError, match="timeout must be 0 or more seconds"):
        await desk.expect("a").result(timeout)


async def test_a_handle_that_asked_for_nothing_says_what_to_write() -> None:
    with pytest.raises(ResultError, match=r"reply=True.*app\.call") as caught:
        await JobHandle("a", "count").result()

    assert caught.value.job_id == "a"
