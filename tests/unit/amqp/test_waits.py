"""Who waits on a connection hears of its end, and of other cancellations as ever."""

import asyncio

import pytest

from amqpjobs import BrokerUnavailableError
from amqpjobs.amqp.waits import Waits


async def forever(waits: Waits) -> None:
    with waits:
        await asyncio.Event().wait()


async def test_all_that_wait_hear_of_the_end() -> None:
    waits = Waits()
    tasks = [asyncio.create_task(forever(waits)) for _ in range(3)]
    await asyncio.sleep(0)

    waits.end()
    waits.end()
    errors = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(error) for error in errors] == [BrokerUnavailableError] * 3
    assert [task.cancelling() for task in tasks] == [0] * 3


async def test_nobody_begins_to_wait_after_the_end() -> None:
    waits = Waits()
    waits.end()

    with pytest.raises(BrokerUnavailableError):
        await forever(waits)


async def test_what_need_not_wait_goes_on_after_the_end() -> None:
    waits = Waits()

    with waits:
        said = "all"
    waits.end()
    await asyncio.sleep(0)

    assert said == "all"


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_cancellation_at_the_same_moment_stays_one(is_first: bool) -> None:
    waits = Waits()
    task = asyncio.create_task(forever(waits))
    await asyncio.sleep(0)

    if is_first:
        task.cancel()
    waits.end()
    if not is_first:
        task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_on_the_way_is_passed_on_and_its_task_is_not_cancelled() -> None:
    waits = Waits()

    async def convert() -> None:
        with waits:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:  # as the library does
                raise ConnectionError("gone") from None

    task = asyncio.create_task(convert())
    await asyncio.sleep(0)
    waits.end()

    with pytest.raises(ConnectionError):
        await task
    assert task.cancelling() == 0
