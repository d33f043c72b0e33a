import asyncio
import contextvars
import logging
from typing import Any

import pytest
from typing_extensions import Unpack

from amqpjobs.clock import SystemClock
from amqpjobs.context import JobContext, current_context, enter_context
from amqpjobs.handle import EnqueueOptions, JobHandle
from amqpjobs.job import Job
from amqpjobs.worker.threads import Threads
from tests.unit.making import envelope


class Ping(Job[None]):
    pass


async def enqueue(job: Job[Any], **options: Unpack[EnqueueOptions]) -> JobHandle[Any]:
    return JobHandle(f"{type(job).__name__} {options}", "ping")


def context(**changes: Any) -> JobContext[str]:
    return JobContext(envelope(**changes), "state", 3, SystemClock(), None, enqueue)


def test_a_context_tells_about_its_job() -> None:
    ctx = context(attempt=2)

    assert (ctx.job_id, ctx.kind, ctx.attempt, ctx.queue) == ("job-1", "probe", 2, "work")
    assert (ctx.state, ctx.max_attempts, ctx.deadline) == ("state", 3, None)
    assert repr(ctx) == "JobContext('probe', job_id='job-1', attempt=2)"


@pytest.mark.parametrize(("attempt", "is_last"), [(1, False), (2, False), (3, True), (4, True)])
def test_the_last_attempt_is_the_one_after_which_a_failure_is_final(attempt: int, is_last: bool) -> None:
    assert context(attempt=attempt).is_last_attempt == is_last


def test_log_lines_carry_the_fields_of_the_job(caplog: pytest.LogCaptureFixture) -> None:
    ctx = context()

    with caplog.at_level(logging.INFO):
        ctx.log.info("sent %d", 3, extra={"to": "a"})

    fields = caplog.records[0].__dict__
    assert caplog.messages == ["sent 3"]
    assert (fields["job_id"], fields["kind"], fields["attempt"]) == ("job-1", "probe", 1)
    assert fields["to"] == "a"


async def test_a_job_enqueues_through_what_it_was_given() -> None:
    handle = await context().enqueue(Ping(), delay=5)

    assert handle.job_id == "Ping {'delay': 5}"


def test_outside_of_a_job_there_is_no_context() -> None:
    assert contextvars.Context().run(current_context) is None


async def test_each_task_sees_the_context_of_its_own_job() -> None:
    async def run(name: str) -> str | None:
        enter_context(context(kind=name))
        await asyncio.sleep(0)
        found = current_context()
        return found.kind if found else None

    kinds = await asyncio.gather(*(asyncio.create_task(run(name)) for name in ("a", "b", "c")))

    assert kinds == ["a", "b", "c"]
    assert current_context() is None


async def test_the_context_is_there_in_a_thread_too() -> None:
    threads, ctx = Threads(), context()

    async def run() -> object:
        enter_context(ctx)
        return await threads.call(current_context)

    found = await asyncio.create_task(run())
    threads.close()

    assert found is ctx
