"""Enqueuing at a rate or as fast as it goes, and what it took."""

import asyncio
import multiprocessing
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

#: Publishes under way at once where a client has no batches of its own.
AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Took:
    """What enqueuing took, without connecting."""

    jobs: int
    seconds: float
    #: Of this process, in seconds.
    cpu: float


class Watch:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._cpu = time.process_time()

    def early(self, number: int, rate: float) -> float:
        """Seconds until it is time for this one, at so many a second; 0: as fast as it goes."""
        return self._began + number / rate - time.perf_counter() if rate else 0.0

    def took(self, jobs: int) -> Took:
        return Took(jobs, time.perf_counter() - self._began, time.process_time() - self._cpu)


async def one_by_one(send: Callable[[int], Awaitable[object]], count: int, rate: float = 0.0) -> Took:
    """Await each before the next; at a rate, send each at its time whether or not the last is confirmed."""
    await send(0)
    watch = Watch()
    async with asyncio.TaskGroup() as sending:
        for number in range(count):
            if not rate:
                await send(number)
                continue
            if (early := watch.early(number, rate)) > 0:
                await asyncio.sleep(early)
            sending.create_task(_awaited(send, number))
    return watch.took(count)


async def _awaited(send: Callable[[int], Awaitable[object]], number: int) -> None:
    await send(number)


async def at_once(send: Callable[[int], Awaitable[object]], count: int) -> Took:
    """Have many under way at once, after one that connects."""
    await send(0)
    watch = Watch()
    for first in range(0, count, AT_ONCE):
        await asyncio.gather(*(send(number) for number in range(first, min(count, first + AT_ONCE))))
    return watch.took(count)


def blocking(send: Callable[[int], object], count: int, rate: float = 0.0) -> Took:
    """`one_by_one` of a client that blocks, and may thus be slower than the rate."""
    send(0)
    watch = Watch()
    for number in range(count):
        if (early := watch.early(number, rate)) > 0:
            time.sleep(early)
        send(number)
    return watch.took(count)


def sent_at(kind: str) -> float:
    """What a `timed` job carries; others carry 0."""
    return time.time() if kind == "timed" else 0.0


def in_processes(count: int, work: Callable[[int], None], concurrency: int) -> None:
    """One of them is this one; the others end with it."""
    spawn = multiprocessing.get_context("spawn")
    for _ in range(count - 1):
        spawn.Process(target=work, args=(concurrency,), daemon=True).start()
    work(concurrency)
