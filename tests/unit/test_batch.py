"""Batches are asked for at import, and what cannot be is refused there, in words that help."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, cast

import pytest
from pydantic import BaseModel

from amqpjobs.app import App
from amqpjobs.batch import Batch
from amqpjobs.clock import SystemClock
from amqpjobs.context import BatchContext, JobContext, current_context
from amqpjobs.errors import DefinitionError, DuplicateKindError, HandlerMismatchError
from amqpjobs.job import Job
from amqpjobs.outcome import Retry
from amqpjobs.registry import Handler, HandlerOptions, Registry
from amqpjobs.topology import Queue
from tests.unit.test_context import context, enqueue

SOME = Batch(size=100, seconds=1)


class Receipt(BaseModel):
    number: int


class Row(Job[None], kind="row", aliases=["line"]):
    n: int


class OtherRow(Job[None], kind="other"):
    pass


class Send(Job[Receipt], kind="send"):
    to: str


class Whatever(Job[Any], kind="whatever"):
    pass


def registered(function: Callable[..., Any], job: type[Job[Any]] = Row, **options: Any) -> Handler:
    registry = Registry("rows")
    registry.add(job, function, cast("HandlerOptions", options), batch=SOME)
    return registry.handlers[0]


@pytest.mark.parametrize("size", [0, -1, 65_536, 1.0, "100", True, None, math.inf])
def test_a_size_that_cannot_be_is_refused(size: Any) -> None:
    with pytest.raises(DefinitionError, match="size of a Batch must be a whole number from 1 to 65,535"):
        Batch(size=size, seconds=1)


@pytest.mark.parametrize("seconds", [0, -1, 600.1, math.nan, math.inf, "1", True, None])
def test_a_time_that_cannot_be_is_refused(seconds: Any) -> None:
    with pytest.raises(DefinitionError, match="seconds of a Batch must be a number over 0, and at most 600"):
        Batch(size=1, seconds=seconds)


@pytest.mark.parametrize(("size", "seconds"), [(1, 0.001), (65_535, 600)])
def test_the_limits_themselves_are_taken(size: int, seconds: float) -> None:
    batch = Batch(size=size, seconds=seconds)

    assert (batch.size, batch.seconds) == (size, seconds)


async def rows(jobs: list[Row]) -> None:
    return None


async def rows_and_context(jobs: list[Row], ctx: BatchContext[Any]) -> None:
    return None


def rows_in_a_thread(jobs: Sequence[Row], ctx: BatchContext) -> list[Retry | None]:
    return []


def iterable(jobs: Iterable[Job[Any]]) -> Sequence[BaseException | None]:
    return []


def promised(jobs: list[Row]) -> Awaitable[None]:
    return rows(jobs)


async def receipts(jobs: list[Send]) -> list[Receipt | ValueError]:
    return []


def anything(jobs: list[Whatever]) -> None:
    return None


@pytest.mark.parametrize(
    ("function", "job", "wants_context", "run_in"),
    [
        (rows, Row, False, "loop"),
        (rows_and_context, Row, True, "loop"),
        (rows_in_a_thread, Row, True, "thread"),
        (iterable, Row, False, "thread"),
        (promised, Row, False, "thread"),
        (receipts, Send, False, "loop"),
        (anything, Whatever, False, "thread"),
    ],
)
def test_a_batch_handler_that_fits_is_taken(
    function: Callable[..., Any], job: type[Job[Any]], wants_context: bool, run_in: str
) -> None:
    handler = registered(function, job)

    assert (handler.wants_context, handler.run_in, handler.batch) == (wants_context, run_in, SOME)


def one_row(job: Row) -> None:
    return None


def other_rows(jobs: list[OtherRow]) -> None:
    return None


def context_of_one(jobs: list[Row], ctx: JobContext[Any]) -> None:
    return None


def nothing() -> None:
    return None


def too_much(jobs: list[Row], ctx: BatchContext[Any], more: int) -> None:
    return None


def needless(jobs: list[Row]) -> list[int]:
    return []


def no_results(jobs: list[Send]) -> None:
    return None


async def wrong_results(jobs: list[Send]) -> list[str]:
    return []


def one_result(jobs: list[Send]) -> Receipt:
    return Receipt(number=1)


@pytest.mark.parametrize(
    ("function", "job", "words"),
    [
        (one_row, Row, r"one_row is registered for list\[Row\], but its first parameter is a Row\."),
        (other_rows, Row, r"registered for list\[Row\], but its first parameter is a list\[.*OtherRow\]"),
        (context_of_one, Row, r"handles a list of jobs, so that its context is a BatchContext, not a JobContext"),
        (nothing, Row, r"must take a list of jobs and, if it wants, the context: \(list\[Row\], BatchContext\[State\]"),
        (too_much, Row, r"must take a list of jobs"),
        (needless, Row, r"returns list\[int\], .* each a Job\[NoneType\], it must return nothing, or a list with one"),
        (no_results, Send, r"returns NoneType, but for a list of Send, each a Job\[Receipt\], it must return a list"),
        (wrong_results, Send, r"returns list\[str\], but"),
        (one_result, Send, r"returns Receipt, but"),
        ("text", Row, r"is no function"),
    ],
)
def test_a_batch_handler_that_does_not_fit_is_refused(function: Any, job: type[Job[Any]], words: str) -> None:
    with pytest.raises(HandlerMismatchError, match=words):
        registered(function, job)


def test_the_context_of_a_batch_is_not_one_jobs() -> None:
    def handle(job: Row, ctx: BatchContext[Any]) -> None:
        return None

    with pytest.raises(HandlerMismatchError, match="handles one job, so that its context is a JobContext"):
        Registry("rows").add(Row, handle, {})


def test_a_batch_does_not_run_in_a_process() -> None:
    with pytest.raises(DefinitionError, match="takes batches, so it cannot run in a process: a process runs one job"):
        registered(rows, run_in="process")


def test_a_queue_that_cannot_hold_a_batch_is_refused_at_import() -> None:
    app = App("rows", queues=[Queue("slow", prefetch=99)])

    with pytest.raises(DefinitionError, match=r"rows takes batches of 100, but queue 'slow' has prefetch=99"):
        app.handler(list[Row], batch=SOME, queue="slow")(rows)

    assert app.registry.handlers == ()


def test_a_queue_that_can_hold_a_batch_and_one_that_does_not_say_are_taken() -> None:
    app = App("rows", queues=[Queue("slow", prefetch=100)])

    app.handler(list[Row], batch=SOME, queue="slow")(rows)
    app.handler(list[Whatever], batch=SOME)(anything)

    assert [handler.queue for handler in app.registry.handlers] == ["slow", "rows"]


def test_list_and_batch_belong_together() -> None:
    app: Any = App("rows")

    with pytest.raises(DefinitionError, match=r"A handler of list\[Row\] needs a batch too"):
        app.handler(list[Row])
    with pytest.raises(DefinitionError, match="needs a batch too"):
        app.handler(list)
    with pytest.raises(DefinitionError, match="registered for a list of a job class, not for Row:"):
        app.handler(Row, batch=SOME)
    with pytest.raises(DefinitionError, match=r"for a list of a job class, not for list\[str\]:"):
        app.handler(list[str], batch=SOME)
    with pytest.raises(DefinitionError, match=r"for a list of a job class, not for tuple\[.*Row"):
        app.handler(tuple[Row, ...], batch=SOME)
    with pytest.raises(
        DefinitionError, match=r"batch of the handler of list\[Row\] must be such as Batch\(.*, not 100"
    ):
        app.handler(list[Row], batch=100)


def test_a_method_of_a_job_takes_no_batch() -> None:
    class Runs(Job[None]):
        async def run(self) -> None:
            return None

    app: Any = App("rows")

    with pytest.raises(DefinitionError, match="A handler has no option 'batch'"):
        app.register(Runs, batch=SOME)


def test_a_kind_is_handled_once_also_in_batches() -> None:
    registry = Registry("rows")
    registry.add(Row, one_row, {})

    with pytest.raises(DuplicateKindError, match="'row' is handled by"):
        registry.add(Row, rows, {}, batch=SOME)


def test_a_decorated_batch_handler_stays_what_it_was() -> None:
    app = App("rows")

    decorated = app.handler(list[Row], batch=SOME)(rows)

    assert decorated is rows


def test_a_batch_context_knows_each_of_its_jobs(caplog: pytest.LogCaptureFixture) -> None:
    first, second = context(attempt=1), context(attempt=2)
    batch = BatchContext(contexts=[first, second], state="state", deadline=None)

    with caplog.at_level("INFO"):
        batch.log.info("saving")

    assert (batch.kind, batch.queue, batch.state, batch.deadline) == ("probe", "work", "state", None)
    assert repr(batch) == "BatchContext('probe', 2 jobs)"
    assert (caplog.records[0].__dict__["kind"], caplog.records[0].__dict__["jobs"]) == ("probe", 2)


async def test_what_one_jobs_context_enqueues_has_that_job_as_its_parent() -> None:
    parents = list[object]()

    async def note(job: Job[Any], **options: Any) -> Any:
        parents.append(current_context())
        await asyncio.sleep(0)
        return await enqueue(job, **options)

    one, other = (JobContext(context().envelope, None, 1, SystemClock(), None, note),) * 2
    await one.enqueue(OtherRow())
    await other.enqueue(OtherRow())

    assert parents == [one, other]
    assert current_context() is None
