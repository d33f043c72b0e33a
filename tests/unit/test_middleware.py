from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from amqpjobs.context import JobContext
from amqpjobs.envelope import Envelope
from amqpjobs.middleware import (
    EnqueueMiddleware,
    EnqueueNext,
    RunMiddleware,
    RunNext,
    SettleMiddleware,
    SettleNext,
    around_enqueue,
    around_jointly,
    around_run,
    around_settle,
    around_together,
)
from amqpjobs.outcome import Cancelled, Completed, Outcome
from amqpjobs.wire import Delivery
from tests.unit.making import delivery, envelope
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


class Grouping:
    """Two middlewares that want to know who belongs together, and what they were told."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    async def __call__(self, passed: Any, following: Any) -> Any:
        return await following(passed)

    @contextmanager
    def together(self, envelopes: Sequence[Envelope]) -> Generator[None]:
        yield from self.noted(f"together {len(envelopes)}")

    @contextmanager
    def jointly(self, members: Sequence[JobContext[Any]]) -> Generator[None]:
        yield from self.noted(f"jointly {len(members)}")

    def noted(self, what: str) -> Generator[None]:
        self.log.append(f"{what} in")
        try:
            yield
        except LookupError:
            self.log.append(f"{what} failed")
            raise


def test_a_middleware_that_wants_to_know_is_told_who_is_enqueued_together() -> None:
    log = list[str]()

    with around_together([marking("a", log), Grouping(log)], [envelope(), envelope()]):
        log.append("within")
    with around_together([Grouping(log)], []):
        log.append("nobody")

    assert log == ["together 2 in", "within", "nobody"]


def test_a_middleware_that_wants_to_know_is_told_who_runs_jointly_and_what_they_raise() -> None:
    log = list[str]()

    with pytest.raises(LookupError), around_jointly([Grouping(log), wrapping("a", log)], [context()]):
        raise LookupError

    assert log == ["jointly 1 in", "jointly 1 failed"]


async def test_settle_middlewares_are_called_in_order_and_may_change_what_is_told() -> None:
    log = list[str]()

    def naming(name: str) -> SettleMiddleware:
        async def middleware(
            taken: Delivery, settled: Envelope | None, outcome: Outcome, following: SettleNext
        ) -> bool:
            log.append(name)
            return await following(taken, settled and settled.evolve(kind=settled.kind + name), outcome)

        return middleware

    async def settle(taken: Delivery, settled: Envelope | None, outcome: Outcome) -> bool:
        log.append(settled.kind if settled else "")
        return True

    assert await around_settle([naming("a"), naming("b")], settle)(delivery(), envelope(kind="k"), Completed())
    assert log == ["a", "b", "kab"]
    assert around_settle([], settle) is settle
