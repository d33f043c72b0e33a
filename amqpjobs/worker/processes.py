"""The processes that handlers with `run_in="process"` run in: how many, and which one is free.

A child is a fresh interpreter, never a fork: the worker has threads and sockets, and a copy
of them would hang sooner or later. It serves one job at a time and stays warm. Whatever goes
wrong with it costs the one job it runs; the next job gets a fresh child.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from amqpjobs.clock import Clock
from amqpjobs.envelope import Envelope
from amqpjobs.errors import ProcessDiedError
from amqpjobs.job import Job
from amqpjobs.outcome import Outcome
from amqpjobs.settings import Settings
from amqpjobs.worker.crossing import Head, job_frame
from amqpjobs.worker.process import Child, NotTakenError

#: After a child that could not start: 1, 2, 4 … 30 s before the next one is tried.
LONGEST_PAUSE = 30.0
#: How often a job looks for another child when one died before it had taken the job.
TRIES = 3

Within = Callable[[Awaitable[Outcome]], Awaitable[Outcome]]


class Processes:
    """At most so many children; each is started when first needed and then kept."""

    def __init__(self, introduction: Head, *, settings: Settings, clock: Clock) -> None:
        self._introduction = introduction
        self._settings = settings
        self._clock = clock
        self._free = asyncio.Semaphore(settings.process_count)
        self._children: set[Child] = set()
        self._idle: list[Child] = []
        self._failed_starts = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(child.stop() for child in self._children))

    async def run(self, envelope: Envelope, job: type[Job[Any]], within: Within) -> Outcome:
        """How the job ended in a child. `within` bounds the run; the wait for a free child comes before it.

        Raises ProcessDiedError, RemoteError when no child can be started, and what `within` raises.
        """
        frame = job_frame(envelope)
        async with self._free:
            for _ in range(TRIES):
                async with self._child() as child:
                    with contextlib.suppress(NotTakenError):
                        return await within(child.run(frame, job))
        raise ProcessDiedError(f"{TRIES} processes in a row ended before they took the job.")

    @asynccontextmanager
    async def lent(self) -> AsyncGenerator[Child]:
        """A child for nobody else, as soon as one is free. Raises as `started` does."""
        async with self._free, self._child() as child:
            yield child

    async def retire(self) -> None:
        """Let the idle ones end; new ones are started when needed."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(child.stop() for child in idle))

    @asynccontextmanager
    async def _child(self) -> AsyncGenerator[Child]:
        while self._idle:
            child = self._idle.pop()
            if not child.is_over:
                break
        else:
            child = await self.started()
        try:
            yield child
        finally:
            if not child.is_over:
                self._idle.append(child)

    async def started(self) -> Child:
        """A fresh child, which ends with us at the latest. Raises ProcessDiedError or RemoteError."""
        if self._failed_starts:
            await self._clock.sleep(min(LONGEST_PAUSE, 2.0 ** (self._failed_starts - 1)))
        child = Child(self._clock)
        self._children.add(child)
        try:
            async with self._clock.timeout(self._settings.timeout):
                await child.start(self._introduction)
        except BaseException as error:
            self._children.discard(child)
            if not isinstance(error, asyncio.CancelledError):
                self._failed_starts += 1
            if isinstance(error, NotTakenError):
                raise ProcessDiedError(str(error)) from None
            if isinstance(error, TimeoutError):
                raise ProcessDiedError(
                    f"A process for handlers was not ready within {self._settings.timeout:g} s (AMQPJOBS_TIMEOUT)."
                ) from None
            raise
        self._failed_starts = 0
        child.on_over(self._children.discard)
        return child
