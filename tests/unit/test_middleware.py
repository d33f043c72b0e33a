from typing import Any

import pytest

from amqpjobs.context import JobContext
from amqpjobs.envelope import Envelope
from amqpjobs.middleware import EnqueueMiddleware, EnqueueNext, RunMiddleware, RunNext, around_enqueue, around_run
from amqpjobs.outcome import Cancelled, Completed, Outcome
from tests.unit.making import envelope
from tests.unit.test_context import context


def marking(name: str, log: list[str]) -> EnqueueMiddleware:
    async def middleware(envelope: Envelope, following: EnqueueNext) -> Envelope:
        log.append(f"{name} in")
        envelope = await following(envelope.evolve(headers={**envelope.headers, name: len(envelope.headers)}))
        log.append(f"{name} out")
        return envelope

    return middleware


def wrapping(name: str, log: list[str]) -> RunMiddleware:
    async def middleware(ctx: JobContext[Any], following: RunNext) -> Outcome:
        log.append(f"{name} in")
        outcome = await following(ctx)
        log.append(f"{name} out")
        return outcome

    return middleware


async def unchanged(envelope: Envelope) -> Envelope:
    return envelope


async def completed(ctx: JobContext[Any]) -> Outcome:
    return Completed()


async def test_enqueue_middlewares_are_called_in_order_the_first_outermost() -> None:
    log = list[str]()

    made = await around_enqueue([marking("a", log), marking("b", log)], unchanged)(envelope())

    assert log == ["a in", "b in", "b out", "a out"]
    assert made.headers == {"a": 0, "b": 1}


async def test_an_enqueue_middleware_vetoes_by_raising() -> None:
    log = list[str]()

    async def veto(envelope: Envelope, following: EnqueueNext) -> Envelope:
        raise PermissionError("not today")

    with pytest.raises(PermissionError, match="not today"):
        await around_enqueue([marking("a", log), veto, marking("b", log)], unchanged)(envelope())

    assert log == ["a in"]


async def test_run_middlewares_are_called_in_order_the_first_outermost() -> None:
    log = list[str]()

    outcome = await around_run([wrapping("a", log), wrapping("b", log)], completed)(context())

    assert log == ["a in", "b in", "b out", "a out"]
    assert outcome == Completed()


async def test_a_run_middleware_may_decide_without_running() -> None:
    log = list[str]()

    async def skip(ctx: JobContext[Any], following: RunNext) -> Outcome:
        return Cancelled("skipped")

    outcome = await around_run([wrapping("a", log), skip, wrapping("b", log)], completed)(context())

    assert outcome == Cancelled("skipped")
    assert log == ["a in", "a out"]


async def test_without_middlewares_the_last_is_called_alone() -> None:
    made = await around_enqueue([], unchanged)(envelope())

    assert made == envelope()
    assert around_run([], completed) is completed
