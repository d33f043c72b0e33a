"""The one call of a handler that the jobs of a batch share.

Each job goes its own way as any other does: its guards, its middlewares, its outcome. Only at
the handler they come together: who arrives waits until each other one has arrived too or has
ended without, and no longer than its batch was collected, since a middleware may let a job
pass only when another is done. Who comes later is in a later call.

The call cannot be cut short for one job alone. Who is cancelled waits for its end, so that its
delivery does not go back while the handler still has it; when all are, the call is cancelled.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, Self, cast

from amqpjobs.clock import Clock, is_cancelled
from amqpjobs.context import JobContext
from amqpjobs.job import Job
from amqpjobs.signatures import may_return_nothing

#: Calls the handler, and returns one entry a member.
Call = Callable[[Sequence["Member"]], Awaitable[Sequence[object]]]


def _answer() -> "asyncio.Future[object]":
    return asyncio.get_running_loop().create_future()


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A job at the handler's door."""

    job: Any
    context: JobContext[Any]
    timeout: float
    #: Its result, or what was raised.
    answer: "asyncio.Future[object]" = field(default_factory=_answer)


class Joint:
    """The calls for one batch: one, unless somebody is late."""

    def __init__(self, clock: Clock, seats: int, *, patience: float, context: Context) -> None:
        self._clock = clock
        self._patience = patience
        #: What the handler sees of context variables: nothing of a single job's.
        self._context = context
        self._seated = seats
        self._awaited = seats
        self._gathering: _Gathering | None = None

    def enter(self, member: Member, call: Call) -> "_Gathering":
        """The call it is in: the one that gathers now, or a new one."""
        gathering = self._gathering
        if gathering is None:
            gathering = self._gathering = _Gathering(self._clock, self._patience, self._forget)
            gathering.start(call, self._context.copy())
        gathering.members.append(member)
        self._look_round()
        return gathering

    def excuse_one(self) -> None:
        self._awaited -= 1
        self._look_round()

    def leave(self) -> bool:
        self._seated -= 1
        return self._seated == 0

    def _look_round(self) -> None:
        if self._gathering is not None and self._awaited == 0:
            self._gathering.is_complete.set()

    def _forget(self) -> None:
        self._gathering = None


class Seat:
    """One job's place in a batch that runs."""

    def __init__(self, joint: Joint) -> None:
        self._joint = joint
        self._is_awaited = True

    @classmethod
    def alone(cls, clock: Clock) -> Self:
        """For a job that came by itself: a batch of one."""
        return cls(Joint(clock, 1, patience=0, context=copy_context()))

    async def join(self, member: Member, call: Call) -> object:
        """The handler's answer for this job: its result, or an exception. Raises a cancellation only."""
        gathering = self._joint.enter(member, call)
        self.excuse()
        return await gathering.answer(member)

    def excuse(self) -> None:
        """The others need not wait for it any more."""
        if self._is_awaited:
            self._is_awaited = False
            self._joint.excuse_one()

    def leave(self) -> bool:
        """Its job is settled. Whether it was the batch's last; call it once."""
        return self._joint.leave()


class _Gathering:
    """Members of one call, and the task that makes it."""

    def __init__(self, clock: Clock, patience: float, on_closed: Callable[[], None]) -> None:
        self.members: list[Member] = []
        self.is_complete = asyncio.Event()
        self._clock = clock
        self._patience = patience
        self._on_closed = on_closed
        self._is_open = True
        self._staying = 0
        self._task: asyncio.Task[None] | None = None

    def start(self, call: Call, context: Context) -> None:
        self._task = asyncio.create_task(self._make(call), context=context)

    async def answer(self, member: Member) -> object:
        try:
            return await asyncio.shield(member.answer)
        except asyncio.CancelledError:
            await self._give_up(member)
            if member.answer.done():  # finished in spite of it
                return member.answer.result()
            raise

    async def _make(self, call: Call) -> None:
        with suppress(TimeoutError):
            async with self._clock.timeout(self._patience):
                await self.is_complete.wait()
        self._close()
        for member, answer in zip(self.members, await self._answers(call), strict=True):
            member.answer.set_result(answer)

    async def _answers(self, call: Call) -> Sequence[object]:
        try:
            return await call(self.members)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            return [error] * len(self.members)

    async def _give_up(self, member: Member) -> None:
        assert self._task is not None
        if self._is_open:
            self.members.remove(member)
            if not self.members:
                self._close()
                self._task.cancel()
            return
        self._staying -= 1
        if self._staying == 0:
            self._task.cancel()
        await asyncio.wait([self._task])

    def _close(self) -> None:
        self._is_open = False
        self._staying = len(self.members)
        self._on_closed()


def entries(result: object, job: type[Job[Any]], count: int) -> Sequence[object]:
    """What a batch handler returned, one entry a job. Raises TypeError and ValueError."""
    if result is None and may_return_nothing(job):
        return [None] * count
    if not isinstance(result, list | tuple):
        raise TypeError(
            f"A batch handler must return a list with one entry a job, a result or an exception; for {count} jobs of "
            f"{job.__name__} it returned a {type(result).__name__}."
        )
    found = cast("Sequence[object]", result)
    if len(found) != count:
        raise ValueError(
            f"A batch handler must return one entry a job, in their order; for {count} jobs of {job.__name__} it "
            f"returned {len(found)}, and nobody can tell whose they are."
        )
    return found
