"""A coroutine that was begun goes on as if it had been awaited from the start."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

import pytest

from amqpjobs.worker.begun import Begun

T = TypeVar("T")


def begun(coroutine: Coroutine[Any, Any, T]) -> Begun[T]:
    return Begun(coroutine, coroutine.send(None))


async def test_what_waits_goes_on_to_its_end() -> None:
    async def add() -> int:
        await asyncio.sleep(0)
        return await asyncio.get_running_loop().run_in_executor(None, lambda: 2) + 3

    assert await begun(add()) == 5


async def test_all_its_steps_are_in_the_context_it_was_begun_in() -> None:
    name = ContextVar("name", default="nobody")

    async def write() -> list[str]:
        name.set("written")
        await asyncio.sleep(0)
        seen = [name.get()]
        try:
            await missing
        except KeyError:
            seen.append(name.get())
        return seen

    missing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    missing.set_exception(KeyError())
    context, coroutine = copy_context(), write()

    seen = await Begun(coroutine, context.run(coroutine.send, None), context)

    assert seen == ["written", "written"]
    assert (context[name], name.get()) == ("written", "nobody")


async def test_what_its_waits_raise_reaches_it_and_what_it_raises_comes_out() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def convert() -> None:
        try:
            await future
        except KeyError:
            raise ValueError("converted") from None

    converting = begun(convert())
    future.set_exception(KeyError())

    with pytest.raises(ValueError, match="converted"):
        await converting


async def test_a_cancellation_reaches_it() -> None:
    seen = list[str]()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(0)
            seen.append("cleaned up")
            raise

    async def run() -> None:
        await begun(wait())

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cancelled", "cleaned up"]


async def test_a_timeout_around_it_ends_it_and_one_within_is_its_own() -> None:
    async def patient() -> str:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            await asyncio.Event().wait()
        return "never"

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await begun(patient())
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_it_runs_in_the_task_that_awaits_it() -> None:
    async def whose() -> list[object]:
        first = asyncio.current_task()
        await asyncio.sleep(0)
        return [first, asyncio.current_task()]

    assert await begun(whose()) == [asyncio.current_task()] * 2


async def test_task_groups_and_generators_work_within_it() -> None:
    async def numbers() -> AsyncGenerator[int]:
        for number in range(3):
            await asyncio.sleep(0)
            yield number

    async def total() -> int:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(asyncio.sleep(0, n)) for n in range(3)]
        return sum([each.result() for each in tasks]) + sum([n async for n in numbers()])

    assert await begun(total()) == 6


def test_what_is_dropped_is_closed() -> None:
    closed = list[bool]()

    async def wait() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            closed.append(True)

    async def run() -> None:
        await begun(wait())

    coroutine = run()
    coroutine.send(None)
    coroutine.close()

    assert closed == [True]
