"""When a process of workers stops by itself: enough jobs, too much memory, nothing left to do.

All three are the process's, not one worker's: what is counted is the sum over its workers.
Nothing is measured for each job but a count; memory and queues are looked at by the clock.
"""

import asyncio
import os
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from amqpjobs.amqp.connection import CLIENT_ERRORS
from amqpjobs.clock import Clock
from amqpjobs.errors import BrokerError
from amqpjobs.events import Event, Events, JobEnded, LimitReached, MessageDied

#: Seconds between two measurements of the memory. What goes over the limit for less is let pass.
MEASURE_EVERY = 1.0
#: Seconds between two looks at the queues of a burst, and how many in a row must find nothing.
LOOK_EVERY, LOOKS = 0.5, 2


class Working(Protocol):
    """What is needed of a worker."""

    @property
    def events(self) -> Events: ...
    @property
    def is_consuming(self) -> bool: ...
    async def left(self) -> int:
        """Jobs that wait for anybody, or wait or run here. May raise what a lost connection raises."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends a process. None: nothing does."""

    max_jobs: int | None = None
    max_memory: int | None = None
    is_burst: bool = False


class Ending:
    """Counts what the workers of this process end, and tells `reached` when it is time to stop.

    That is told at once when a job is one too many, so that no other one starts after it.
    """

    def __init__(
        self, limits: Limits, workers: Sequence[Working], clock: Clock, reached: Callable[[LimitReached], None]
    ) -> None:
        self._limits = limits
        self._workers = workers
        self._clock = clock
        self._reached = reached
        self._ended = 0
        for worker in workers:
            worker.events.subscribe(JobEnded, self._count)
            worker.events.subscribe(MessageDied, self._count)

    async def watch(self) -> None:
        """Look at memory and queues, as far as they are limited, until cancelled."""
        async with asyncio.TaskGroup() as group:
            if self._limits.max_memory is not None:
                group.create_task(self._watch_memory(self._limits.max_memory))
            if self._limits.is_burst:
                group.create_task(self._watch_queues())

    def _count(self, event: Event) -> None:
        self._ended += 1
        if self._ended == self._limits.max_jobs:
            self._reached(LimitReached("max_jobs", self._ended))

    async def _watch_memory(self, limit: int) -> None:
        """Until it is over the limit after a job, and still so a moment later."""
        seen, is_over, was_over = 0, False, False
        while not (is_over and was_over):
            await self._clock.sleep(MEASURE_EVERY)
            if self._ended != seen or is_over:
                seen, was_over, is_over = self._ended, is_over, resident_memory() > limit
        self._reached(LimitReached("max_memory", resident_memory()))

    async def _watch_queues(self) -> None:
        looks = 0
        while looks < LOOKS:
            await self._clock.sleep(LOOK_EVERY)
            looks = looks + 1 if await self._is_empty() else 0
        self._reached(LimitReached("burst", 0))

    async def _is_empty(self) -> bool:
        try:
            return all([worker.is_consuming and not await worker.left() for worker in self._workers])
        except (BrokerError, TimeoutError, *CLIENT_ERRORS):
            return False  # nobody knows; the workers reconnect, and we look again


def resident_memory() -> int:
    """Bytes of this process in memory; where there is no /proc, the most there ever were."""
    if sys.platform == "linux":
        size = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        size = peak if sys.platform == "darwin" else peak * 1024
    return size
