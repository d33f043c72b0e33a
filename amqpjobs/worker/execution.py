"""Run one envelope and say how it ended.

Nothing here sees AMQP: an envelope goes in, an outcome comes out, whatever the handler does.
The steps are guards first (expired, unknown, too new, invalid), then the run itself inside
its middlewares, then what an exception means.
"""

import asyncio
import inspect
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from amqpjobs.clock import Clock, Deadline, is_cancelled
from amqpjobs.codec import job_from
from amqpjobs.context import BatchContext, JobContext, enter_context
from amqpjobs.envelope import Envelope
from amqpjobs.errors import InvalidArgumentsError, UnknownKindError, UnknownVersionError
from amqpjobs.events import Events, JobStarted
from amqpjobs.handle import Enqueue
from amqpjobs.middleware import RunMiddleware, around_jointly, around_run
from amqpjobs.outcome import (
    OVERRAN,
    Cancel,
    Cancelled,
    Completed,
    Dead,
    DeadReason,
    Expired,
    Outcome,
    Overrun,
    Retry,
    Retrying,
    Snooze,
    Snoozed,
)
from amqpjobs.registry import DEFAULT_RETRY, Handler, Registry
from amqpjobs.settings import Settings
from amqpjobs.worker.begun import Begun
from amqpjobs.worker.joint import Member, Seat, entries
from amqpjobs.worker.processes import Processes
from amqpjobs.worker.threads import Threads

T = TypeVar("T")

_log = logging.getLogger(__name__)

#: Seconds from which a timeout is none: ten years.
ENDLESS = 10 * 365 * 86_400.0
_COMPLETED = Completed()


class Execution:
    """Runs envelopes with the handlers of one app."""

    def __init__(
        self,
        *,
        registry: Registry,
        settings: Settings,
        clock: Clock,
        events: Events,
        threads: Threads,
        state: Any,
        enqueue: Enqueue,
        middlewares: Sequence[RunMiddleware] = (),
        processes: Processes | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._clock = clock
        self._events = events
        self._threads = threads
        self._state = state
        self._enqueue = enqueue
        self._middlewares = middlewares
        #: None in a child, which itself runs what its worker has for processes.
        self._processes = processes
        self._chance = chance
        #: Whether the last handler that was called did not wait for anything, as the next one then will hardly do.
        self.is_quick = False

    async def run(self, envelope: Envelope, seat: Seat | None = None) -> Outcome:
        """The outcome of this attempt. Only a cancellation from outside is raised.

        `seat` is its place in a batch; a batch handler's job without one is a batch of one.
        """
        handler = self.admitted(envelope)
        if not isinstance(handler, Handler):
            return handler
        if self._is_elsewhere(handler):
            return await self._attempt(envelope, handler, None, None)  # the child makes the job of the payload
        try:
            job = job_from(handler.job, envelope.payload, envelope.version)
        except InvalidArgumentsError as error:
            return Dead(DeadReason.INVALID_ARGUMENTS, error)
        return await self._attempt(envelope, handler, job, seat)

    def admitted(self, envelope: Envelope) -> Handler | Outcome:
        """Who runs it, or how it ends without a run."""
        if envelope.expires_at is not None and self._clock.now() >= envelope.expires_at:
            return Expired()
        handler = self._registry.get(envelope.kind)
        if handler is None:
            return self._unknown(envelope, DeadReason.UNKNOWN_KIND, _no_handler(envelope))
        if (envelope.version or 1) > handler.version:
            return self._unknown(envelope, DeadReason.UNKNOWN_VERSION, _too_new(envelope, handler))
        return handler

    def bounds(self, envelope: Envelope, handler: Handler) -> tuple[int, float]:
        """How many attempts it has in all, and how many seconds each may take."""
        return (
            envelope.max_attempts or handler.max_attempts or self._settings.max_attempts,
            envelope.timeout or handler.timeout or self._settings.timeout,
        )

    def timeout_of(self, envelope: Envelope) -> float:
        """How many seconds an attempt may take; 0 for one that nobody would run."""
        handler = self._registry.get(envelope.kind)
        return 0.0 if handler is None else self.bounds(envelope, handler)[1]

    async def _attempt(self, envelope: Envelope, handler: Handler, job: Any, seat: Seat | None) -> Outcome:
        max_attempts, timeout = self.bounds(envelope, handler)
        end = self._end(timeout)
        context: JobContext[Any] = JobContext(envelope, self._state, max_attempts, self._clock, end, self._enqueue)
        enter_context(context)
        if self._events.wanted(JobStarted):
            self._events.emit(JobStarted(envelope))
        if not self._middlewares:
            return await self._run(handler, job, timeout, seat, context)
        last = partial(self._run, handler, job, timeout, seat)
        try:
            outcome: Any = await around_run(self._middlewares, last)(context)
        except BaseException as error:
            return self._failed(context, handler, error)
        if not isinstance(outcome, Outcome):
            return self._failed(context, handler, TypeError(f"A run middleware returned {outcome!r}, and no outcome."))
        return outcome

    async def _run(
        self, handler: Handler, job: Any, timeout: float, seat: Seat | None, context: JobContext[Any]
    ) -> Outcome:
        try:
            if handler.batch is not None:
                return await self._run_jointly(handler, Member(job, context, timeout), seat)
            if self._processes is not None and self._is_elsewhere(handler):
                return await self._run_elsewhere(self._processes, handler, timeout, context)
            result = await self._call(handler, job, timeout, context)
            return _COMPLETED if result is None else Completed(result)
        except BaseException as error:
            return self._failed(context, handler, error)

    async def _run_jointly(self, handler: Handler, member: Member, seat: Seat | None) -> Outcome:
        answer = await (seat or Seat.alone(self._clock)).join(member, partial(self._call_jointly, handler))
        # Not raised: one exception may be the answer for many jobs, and would get a traceback from each.
        return self._failed(member.context, handler, answer) if isinstance(answer, BaseException) else Completed(answer)

    async def _call_jointly(self, handler: Handler, members: Sequence[Member]) -> Sequence[object]:
        timeout = min(member.timeout for member in members)
        end = self._end(timeout)
        contexts = [member.context for member in members]
        for each in contexts:
            each.end_at(end)
        context = BatchContext[Any](contexts=contexts, state=self._state, deadline=contexts[0].deadline)
        with around_jointly(self._middlewares, contexts):
            result = await self._call(handler, [member.job for member in members], timeout, context)
        return entries(result, handler.job, len(members))

    def _end(self, timeout: float) -> float | None:
        return self._clock.monotonic() + timeout if timeout < ENDLESS else None

    async def _run_elsewhere(
        self, processes: Processes, handler: Handler, timeout: float, context: JobContext[Any]
    ) -> Outcome:
        """In a child, which decides by what we say counts here."""
        envelope = context.envelope.evolve(max_attempts=context.max_attempts, timeout=timeout)
        try:
            return await processes.run(envelope, handler.job, partial(self._within, timeout))
        except Overrun as error:
            raise error from None  # nothing that led here was the handler's

    async def _call(
        self, handler: Handler, job: Any, timeout: float, context: JobContext[Any] | BatchContext[Any]
    ) -> object:
        arguments = (job, context) if handler.wants_context else (job,)
        if handler.is_async:
            result: Any = handler.function(*arguments)
            if inspect.iscoroutine(result):
                try:
                    result = Begun(result, result.send(None))
                except StopIteration as stop:
                    self.is_quick = True
                    return stop.value
            self.is_quick = False
            return await self._within(timeout, result)
        self.is_quick = False
        started = self._clock.monotonic()
        result = await self._threads.call(partial(handler.function, *arguments))
        if self._clock.monotonic() - started > timeout:
            raise Overrun(f"{OVERRAN} of {timeout:g} s; a thread cannot be stopped.")
        # A plain function may be a decorated async one.
        return await self._within(timeout, result) if inspect.isawaitable(result) else result

    def _is_elsewhere(self, handler: Handler) -> bool:
        return self._processes is not None and handler.run_in == "process"

    async def _within(self, timeout: float, result: Awaitable[T]) -> T:
        limit: Deadline | None = None
        try:
            async with self._clock.timeout(timeout if timeout < ENDLESS else None) as limit:
                return await result
        except TimeoutError as error:
            if limit is None or not limit.expired():
                raise  # the handler's own
            raise Overrun(f"{OVERRAN} of {timeout:g} s.") from error

    def _failed(self, context: JobContext[Any], handler: Handler, error: BaseException) -> Outcome:
        if isinstance(error, asyncio.CancelledError) and is_cancelled():
            raise error
        match error:
            case Snooze():
                return Snoozed(error.delay, error.reason)
            case Cancel():
                return Cancelled(error.reason)
            case _:
                return after_failure(handler, context.attempt, context.max_attempts, error, self._chance)

    def _unknown(
        self, envelope: Envelope, reason: DeadReason, error: UnknownKindError | UnknownVersionError
    ) -> Outcome:
        """Often a rolling deployment: wait for a worker that knows it, twice as long each time."""
        since = envelope.unknown_since or self._clock.now()
        waited = max(0.0, (self._clock.now() - since).total_seconds())
        if waited >= self._settings.unknown_window:
            return Dead(reason, error)
        return Snoozed(max(self._settings.unknown_delay, waited), str(error), unknown=True)


def after_failure(
    handler: Handler,
    attempt: int,
    max_attempts: int,
    error: BaseException,
    chance: Callable[[], float] = random.random,
) -> Retrying | Dead:
    """Whether this attempt was the last one, and else when the next one is due."""
    wish = error.delay if isinstance(error, Retry) else None
    delay = _delay(handler, attempt, error, chance) if wish is None else wish
    if delay is None:
        return Dead(DeadReason.NOT_RETRYABLE, error)
    if attempt >= max_attempts:
        return Dead(DeadReason.ATTEMPTS_EXHAUSTED, error)
    return Retrying(delay, error)


def _delay(handler: Handler, attempt: int, error: BaseException, chance: Callable[[], float]) -> float | None:
    try:
        return handler.retry.delay_after(attempt, error, chance)
    except Exception:
        _log.exception("The retry policy of %s failed; the default one decides", handler.name)
        return DEFAULT_RETRY.delay_after(attempt, error, chance)


def _no_handler(envelope: Envelope) -> UnknownKindError:
    return UnknownKindError(
        f"No handler for kind {envelope.kind[:200]!r} on queue {envelope.queue!r}. Register one with @app.handler, "
        "or add the kind to a job's aliases."
    )


def _too_new(envelope: Envelope, handler: Handler) -> UnknownVersionError:
    return UnknownVersionError(
        f"The payload of {envelope.kind!r} has version {envelope.version}, and this worker knows up to "
        f"{handler.version}. Deploy the newer code."
    )
