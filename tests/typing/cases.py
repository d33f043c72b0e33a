# mypy: warn-unused-ignores=False
"""Right and wrong handlers and calls, for type checkers only; never imported.

A line that must be an error ends in a comment `E` with the reason; all other lines must be
clean. `test_typing.py` compares this with what mypy strict and pyright strict say.
"""

from asyncio import gather
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import assert_type

from pydantic import BaseModel

from amqpjobs import (
    App,
    Batch,
    BatchContext,
    BlockingClient,
    BlockingHandle,
    BufferedJob,
    Job,
    JobContext,
    JobHandle,
    Retry,
    fixed,
)


class Receipt(BaseModel):
    id: str


@dataclass
class State:
    sent: int


@dataclass
class OtherState:
    lost: int


class Send(Job[Receipt], kind="send", max_attempts=5, timeout=30):
    to: str
    version: int = 1
    queue: str = ""


class Ping(Job[None], kind="ping"):
    pass


class Maybe(Job[Receipt | None]):
    pass


class Count(Job[int], kind="count"):
    async def run(self, ctx: JobContext[State]) -> int:
        return ctx.state.sent


class CountNoContext(Job[int]):
    async def run(self) -> int:
        return 1


class CountSync(Job[int]):
    def run(self) -> int:
        return 1


class CountWrongResult(Job[int]):
    async def run(self) -> str:
        return ""


class CountWrongState(Job[int]):
    async def run(self, ctx: JobContext[OtherState]) -> int:
        return ctx.state.lost


@asynccontextmanager
async def lifespan() -> AsyncGenerator[State]:
    yield State(sent=0)


app = App("email", lifespan=lifespan)
plain = App("plain")
assert_type(app, App[State])
assert_type(plain, App[None])


# Right handlers.


@app.handler(Send)
async def right(job: Send, ctx: JobContext[State]) -> Receipt:
    assert_type(ctx.state, State)
    return Receipt(id=job.to)


@app.handler(Send, queue="bulk", max_attempts=3, timeout=timedelta(seconds=5), retry=fixed(1))
async def right_without_context(job: Send) -> Receipt:
    return Receipt(id=job.to)


@app.handler(Send)
def right_sync(job: Send, ctx: JobContext[State]) -> Receipt:
    return Receipt(id=str(ctx.attempt))


@app.handler(Send)
def right_sync_without_context(job: Send) -> Receipt:
    return Receipt(id=job.to)


@app.handler(Send, run_in="process")
def right_in_a_process(job: Send, ctx: JobContext[State]) -> Receipt:
    return Receipt(id=job.to)


@app.handler(Ping)
async def right_none(job: Ping) -> None:
    return None


@app.handler(Ping)
def right_none_sync(job: Ping, ctx: JobContext) -> None:
    return None


@app.handler(Maybe)
async def right_union(job: Maybe) -> Receipt | None:
    return None


@plain.handler(Ping)
async def right_without_state(job: Ping, ctx: JobContext[None]) -> None:
    assert_type(ctx.state, None)


class Service:
    async def send(self, job: Send, ctx: JobContext[State]) -> Receipt:
        return Receipt(id=job.to)

    async def wrong(self, job: Send, ctx: JobContext[State]) -> str:
        return job.to


app.handler(Send)(Service().send)
app.register(Count)
app.register(CountNoContext, queue="bulk")
app.register(CountSync)


# Right batch handlers.

some = Batch(size=100, seconds=1)


@app.handler(list[Ping], batch=some)
async def right_batch(jobs: list[Ping], ctx: BatchContext[State]) -> None:
    assert_type(ctx.state, State)
    assert_type(ctx.contexts[0], JobContext[State])


@app.handler(list[Ping], batch=some, queue="bulk", max_attempts=3, timeout=5, retry=fixed(1))
async def right_batch_without_context(jobs: list[Ping]) -> None:
    return None


@app.handler(list[Ping], batch=some)
def right_batch_sync(jobs: list[Ping], ctx: BatchContext[State]) -> None:
    return None


@app.handler(list[Ping], batch=some, run_in="thread")
def right_batch_sync_without_context(jobs: Sequence[Ping]) -> None:
    return None


@app.handler(list[Ping], batch=some)
async def right_batch_with_failures(jobs: list[Ping]) -> list[Retry | None]:
    return [Retry("busy"), None]


@app.handler(list[Send], batch=some)
async def right_batch_of_results(jobs: list[Send], ctx: BatchContext[State]) -> list[Receipt]:
    return [Receipt(id=job.to) for job in jobs]


@app.handler(list[Send], batch=some)
def right_batch_of_both(jobs: list[Send]) -> list[Receipt | ValueError]:
    return [Receipt(id=""), ValueError("no")]


@app.handler(list[Send], batch=some)
async def right_batch_gathered(jobs: list[Send]) -> list[Receipt | BaseException]:
    return await gather(*(right_without_context(job) for job in jobs), return_exceptions=True)


@app.handler(list[Maybe], batch=some)
async def right_batch_of_unions(jobs: list[Maybe]) -> list[Receipt | None]:
    return [None for _ in jobs]


@plain.handler(list[Ping], batch=some)
async def right_batch_without_state(jobs: list[Ping], ctx: BatchContext[None]) -> None:
    assert_type(ctx.state, None)


# Wrong batch handlers.


@app.handler(list[Ping], batch=some)  # E: one job instead of a list
async def batch_of_one(jobs: Ping) -> None:
    return None


@app.handler(list[Ping], batch=some)  # E: a list of another job
async def batch_of_another(jobs: list[Send]) -> None:
    return None


@app.handler(list[Ping], batch=some)  # E: the context of one job
async def batch_with_wrong_context(jobs: list[Ping], ctx: JobContext[State]) -> None:
    return None


@app.handler(list[Ping], batch=some)  # E: wrong state
async def batch_with_wrong_state(jobs: list[Ping], ctx: BatchContext[OtherState]) -> None:
    return None


@app.handler(list[Ping], batch=some)  # E: a result where none is due
async def batch_with_needless_result(jobs: list[Ping]) -> list[str]:
    return [""]


@app.handler(list[Send], batch=some)  # E: no results
async def batch_without_results(jobs: list[Send]) -> None:
    return None


@app.handler(list[Send], batch=some)  # E: no results, sync
def batch_without_results_sync(jobs: list[Send]) -> None:
    return None


@app.handler(list[Send], batch=some)  # E: wrong results
async def batch_with_wrong_results(jobs: list[Send]) -> list[str]:
    return [""]


@app.handler(list[Send], batch=some)  # E: wrong results, sync
def batch_with_wrong_results_sync(jobs: list[Send]) -> list[str]:
    return [""]


@app.handler(list[Send], batch=some)  # E: one result for all
async def batch_with_one_result(jobs: list[Send]) -> Receipt:
    return Receipt(id="")


@app.handler(list[Ping])  # E: a list without a batch
async def list_without_batch(jobs: list[Ping]) -> None:
    return None


@app.handler(Ping, batch=some)  # E: a batch without a list
async def batch_without_list(job: Ping) -> None:
    return None


@app.handler(list[Ping], batch=100)  # E: no Batch
async def batch_of_a_number(jobs: list[Ping]) -> None:
    return None


@app.handler(list[Ping], batch=some, qeue="bulk")  # E: misspelt option
async def batch_with_misspelt_option(jobs: list[Ping]) -> None:
    return None


@app.handler(list[str], batch=some)  # E: no job class
async def batch_of_text(jobs: list[str]) -> None:
    return None


Batch(100, 1)  # E: which is which?
Batch(size=100)  # E: no seconds
app.register(Count, batch=some)  # E: a method handles one job


# Wrong handlers.


@app.handler(Send)  # E: wrong job
async def wrong_job(job: Ping, ctx: JobContext[State]) -> Receipt:
    return Receipt(id="")


@app.handler(Send)  # E: wrong state
async def wrong_state(job: Send, ctx: JobContext[OtherState]) -> Receipt:
    return Receipt(id="")


@app.handler(Send)  # E: wrong result
async def wrong_result(job: Send, ctx: JobContext[State]) -> str:
    return ""


@app.handler(Send)  # E: no result
async def no_result(job: Send) -> None:
    return None


@app.handler(Send)  # E: wrong result, sync
def wrong_result_sync(job: Send) -> str:
    return ""


@app.handler(Ping)  # E: a result where none is due
async def needless_result(job: Ping) -> str:
    return ""


@app.handler(Ping)  # E: too many parameters
async def too_many(job: Ping, ctx: JobContext[State], more: int) -> None:
    return None


@app.handler(Send, qeue="bulk")  # E: misspelt option
async def misspelt(job: Send) -> Receipt:
    return Receipt(id="")


@app.handler(Send, run_in="proces")  # E: no place to run in
def nowhere(job: Send) -> Receipt:
    return Receipt(id="")


@app.handler(Send, priority=3)  # E: a producer's option
async def producers_option(job: Send) -> Receipt:
    return Receipt(id="")


@app.handler(Send, max_attempts="3")  # E: wrong type of an option
async def wrong_option(job: Send) -> Receipt:
    return Receipt(id="")


@app.handler(BaseModel)  # E: no job class
async def no_job(job: BaseModel) -> None:
    return None


app.handler(Send)(Service().wrong)  # E: wrong result of a method
app.register(CountWrongResult)  # E: wrong result of run
app.register(CountWrongState)  # E: wrong state of run
app.register(Ping)  # E: no run
app.register(Count, qeue="bulk")  # E: misspelt option


# Calls.


async def calls(ctx: JobContext[State]) -> None:
    handle = await app.enqueue(Send(to="a"), delay=60, priority=3, job_id="x", on_unroutable="park")
    assert_type(handle, JobHandle[Receipt])
    assert_type(await app.enqueue(Ping()), JobHandle[None])
    assert_type(await app.enqueue(Count(), delay=timedelta(days=1)), JobHandle[int])
    assert_type(await app.enqueue_many([Ping(), Ping()]), list[JobHandle[None]])
    assert_type(await ctx.enqueue(Send(to="a")), JobHandle[Receipt])
    async with app.buffer(limit=100, max_bytes=10_000, timeout=timedelta(seconds=5)) as buffer:
        assert_type(buffer.enqueue(Send(to="a"), delay=60), BufferedJob[Receipt])
        assert_type(await buffer.flush(timeout=10), None)
        buffer.enqueue(Send(to="a"), dealy=3)  # E: misspelt option in a buffer
        await buffer.enqueue(Ping())  # E: nothing to wait for
        confirmed: JobHandle[None] = buffer.enqueue(Ping())  # E: not confirmed
        print(confirmed)
    with BlockingClient(app) as client, client.buffer() as blocking:
        assert_type(blocking.enqueue(Ping()), BufferedJob[None])
        blocking.enqueue(BaseModel())  # E: no job in a buffer
    wrong: JobHandle[str] = await app.enqueue(Send(to="a"))  # E: wrong result type
    await app.enqueue(Send(to=3))  # E: wrong field
    await app.enqueue(Send())  # E: missing field
    await app.enqueue(Send(to="a", subjct=""))  # E: misspelt field
    await app.enqueue(Send(to="a"), dealy=3)  # E: misspelt option
    await app.enqueue(Send(to="a"), delay="3")  # E: wrong type of an option
    await app.enqueue(Send(to="a"), retry=fixed(1))  # E: a worker's option
    await app.enqueue(Send)  # E: a class, not a job
    await app.enqueue(BaseModel())  # E: no job
    await ctx.enqueue(Ping(), dealy=3)  # E: misspelt option
    print(wrong)


# Results.


async def results(ctx: JobContext[State]) -> None:
    assert_type(await app.call(Send(to="a"), timeout=10, delay=3, job_id="x", max_attempts=2), Receipt)
    assert_type(await app.call(Ping()), None)
    assert_type(await app.call(Maybe(), timeout=timedelta(minutes=1)), Receipt | None)
    handle = await app.enqueue(Send(to="a"), reply=True, timeout=5)
    assert_type(await handle.result(timeout=10), Receipt)
    assert_type(await (await ctx.enqueue(Count(), reply=True)).result(), int)
    assert_type(await app.gather(handle, Count()), tuple[Receipt, int])
    assert_type(await app.gather(Count(), handle, Maybe(), timeout=5), tuple[int, Receipt, Receipt | None])
    assert_type(await app.gather(*[Count(), Count()]), tuple[int, ...])
    assert_type(await app.gather(*await app.enqueue_many([Count()], reply=True)), tuple[int, ...])
    assert_type(await app.gather(Count(), return_exceptions=True), tuple[int | BaseException, ...])
    with BlockingClient(app) as client:
        assert_type(client.call(Send(to="a"), timeout=10), Receipt)
        blocking = client.enqueue(Send(to="a"), reply=True)
        assert_type(blocking, BlockingHandle[Receipt])
        assert_type(blocking.result(timeout=10), Receipt)
        assert_type(client.enqueue_many([Count()], reply=True), list[BlockingHandle[int]])
        assert_type(client.gather(blocking, Count(), timeout=5), tuple[Receipt, int])
        await blocking.result()  # E: nothing to await in a thread
        client.gather(handle, timeout=5)  # E: a handle of an event loop
        client.call(Send(to="a"), reply=True)  # E: a call asks by itself
    wrong: str = await app.call(Send(to="a"))  # E: wrong result type of a call
    late: str = await handle.result()  # E: wrong result type of a handle
    await app.call(Send)  # E: a class is not called
    await app.call(BaseModel())  # E: no job is called
    await app.call(Ping(), dealy=3)  # E: misspelt option of a call
    await app.call(Ping(), timeout="3")  # E: wrong type of a timeout
    await app.enqueue(Ping(), reply="yes")  # E: a reply is wanted or not
    print(wrong, late)
