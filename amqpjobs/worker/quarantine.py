"""Where a job runs that may have killed a worker: in processes apart, so that blame is exact.

Suspects share one child of the worker, the group, with as many at once as the worker has
slots: for the innocent ones only an interpreter's start is lost. When the group dies, it is
known who was running in it, and each of those runs again, alone in a child. Who ends well
there pays nothing; who kills its child has used an attempt, the one in the group too, and
from then on always runs alone.

So a job that kills its process runs once in a worker, where nobody can tell, and then as
often as it has attempts. A suspect keeps its slot while it waits for a child of its own: the
group's dead are no more than the slots, and `AMQPJOBS_PROCESSES` children run them side by side.
"""

import asyncio
import logging
from collections.abc import Awaitable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from amqpjobs.clock import Clock, Deadline
from amqpjobs.codec import RemoteError, words_of
from amqpjobs.envelope import Envelope
from amqpjobs.errors import ProcessDiedError
from amqpjobs.events import Events, JobStarted
from amqpjobs.outcome import Dead, Outcome, Retrying
from amqpjobs.registry import Handler, Registry
from amqpjobs.settings import Settings
from amqpjobs.wire import Delivery
from amqpjobs.worker.crossing import Frame, job_frame
from amqpjobs.worker.execution import ENDLESS, Execution, after_failure
from amqpjobs.worker.introduction import quarantine_introduction
from amqpjobs.worker.joint import Seat
from amqpjobs.worker.process import Child, NotTakenError
from amqpjobs.worker.processes import TRIES, Processes
from amqpjobs.worker.suspicion import Suspicion, convicted, given_up, slowed

_log = logging.getLogger(__name__)

#: Seconds after which children without jobs end; at most twice that.
IDLE = 30.0
#: Seconds beyond a job's timeout, which its child keeps, before the child itself is looked after.
MARGIN = 10.0
#: After children that could not start, suspects run in the worker for so many seconds.
CLOSED = 60.0


class _NoChildError(Exception):
    """Nobody can be quarantined now."""


@dataclass(slots=True, eq=False)
class Suspect:
    """One suspected delivery on its way through the quarantine."""

    envelope: Envelope
    handler: Handler
    max_attempts: int
    timeout: float
    events: Events
    has_started: bool = False
    #: Runs that ended with their process, and nobody knows yet whose fault it was.
    unclear: int = 0

    @property
    def frame(self) -> Frame:
        return job_frame(self.envelope.evolve(max_attempts=self.max_attempts, timeout=self.timeout))

    @property
    def is_for_alone(self) -> bool:
        """Whether it may not share a child: convicted before, or without an attempt to spare for finding out."""
        return bool(self.envelope.crashes or self.unclear) or self.envelope.attempt >= self.max_attempts

    def started(self) -> None:
        """A child has taken it."""
        if not self.has_started and self.events.wanted(JobStarted):
            self.events.emit(JobStarted(self.envelope))
        self.has_started = True

    def failed(self, error: BaseException) -> Retrying | Dead:
        """An attempt failed, and its process lives."""
        return after_failure(self.handler, self.envelope.attempt, self.max_attempts, error)

    def killed(self, error: ProcessDiedError) -> Outcome:
        """It was alone in a child that died."""
        self.envelope = convicted(self.envelope, self.unclear + 1)
        _log.warning(
            "Job %s (%s) killed its process: %s", self.envelope.job_id, self.envelope.kind, error, extra=self._fields()
        )
        return slowed(self.failed(error), self.envelope.crashes)

    def _fields(self) -> dict[str, object]:
        return {"job_id": self.envelope.job_id, "kind": self.envelope.kind, "attempt": self.envelope.attempt}


class Quarantine:
    """Runs what comes back to one worker; starts a child when there is a suspect for it."""

    def __init__(
        self,
        *,
        app: object,
        registry: Registry,
        settings: Settings,
        clock: Clock,
        events: Events,
        execution: Execution,
        suspicion: Suspicion,
    ) -> None:
        self._app = app
        self._registry = registry
        self._settings = settings
        self._clock = clock
        self._events = events
        self._execution = execution
        self._suspicion = suspicion
        self._children: Processes | None = None
        self._group: Child | None = None
        self._starting = asyncio.Lock()
        self._closed_until = 0.0
        self._has_warned = False
        self._running = 0
        self._was_used = False
        self._resting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._resting is not None:
            self._resting.cancel()
            await asyncio.wait([self._resting])
        if self._children is not None:
            await self._children.__aexit__(kind, error, trace)

    async def run(self, delivery: Delivery, envelope: Envelope, seat: Seat | None = None) -> tuple[Envelope, Outcome]:
        """How it ended, and the envelope with the attempts it has used.

        Raises as `Execution.run` does, in which this ends whenever there is no suspicion, or no child to be had.
        """
        against = self._suspicion.against(delivery)
        if (end := given_up(against)) is not None:
            return envelope, end
        suspect = self._suspect(envelope) if against or envelope.crashes else None
        if suspect is not None:
            try:
                outcome = await self._apart(suspect)
            except _NoChildError:
                pass
            else:
                return suspect.envelope, outcome
        return envelope, await self._execution.run(envelope, seat)

    def _suspect(self, envelope: Envelope) -> Suspect | None:
        handler = self._execution.admitted(envelope)
        # What runs in a process anyhow has its blame there; what does not run at all has none.
        if not self._settings.quarantine or not isinstance(handler, Handler) or handler.run_in == "process":
            return None
        max_attempts, timeout = self._execution.bounds(envelope, handler)
        return Suspect(envelope, handler, max_attempts, timeout, self._events)

    async def _apart(self, suspect: Suspect) -> Outcome:
        self._running += 1
        self._rest_later()
        try:
            outcome = None if suspect.is_for_alone else await self._in_group(suspect)
            return await self._alone(suspect) if outcome is None else outcome
        finally:
            self._running -= 1

    # Among others

    async def _in_group(self, suspect: Suspect) -> Outcome | None:
        """How it ended in the group; None when it is to run alone."""
        for _ in range(TRIES):
            child = await self._shared()
            try:
                return await self._watched(child, suspect)
            except NotTakenError:
                continue  # another one's death came before its turn
            except ProcessDiedError as error:
                suspect.unclear += 1
                self._mourn(child, error)
                return None
            except (RemoteError, ValueError) as error:  # an outcome that did not cross
                return suspect.failed(error)
        return None

    async def _shared(self) -> Child:
        async with self._starting:
            if self._group is None or self._group.is_over:
                try:
                    self._group = await self._open().started()
                except (ProcessDiedError, RemoteError) as error:
                    raise self._closed(error) from error
            return self._group

    async def _watched(self, child: Child, suspect: Suspect) -> Outcome:
        watching = asyncio.create_task(self._watch(child, suspect.timeout)) if suspect.timeout < ENDLESS else None
        try:
            return await child.share(suspect.frame, suspect.handler.job, suspect.started)
        finally:
            if watching is not None:
                watching.cancel()

    async def _watch(self, child: Child, timeout: float) -> None:
        """A thread may overrun; a child whose event loop does not answer any more has to go."""
        await self._clock.sleep(timeout + MARGIN)
        while await child.answers(MARGIN):
            await self._clock.sleep(MARGIN)
        child.kill()

    def _mourn(self, child: Child, error: ProcessDiedError) -> None:
        if self._group is child:
            self._group = None
            _log.warning("Jobs that ran together with one that kills its process run again, each alone: %s", error)

    # Alone

    async def _alone(self, suspect: Suspect) -> Outcome:
        for _ in range(TRIES):
            outcome = await self._once_alone(suspect)
            if outcome is not None:
                return outcome
        raise self._closed(ProcessDiedError(f"{TRIES} processes in a row ended before they took the job."))

    async def _once_alone(self, suspect: Suspect) -> Outcome | None:
        """How it ended alone; None when the child ended before it had the job."""
        try:
            async with self._open().lent() as child:
                try:
                    run = child.run(suspect.frame, suspect.handler.job, suspect.started)
                    outcome = await self._within(suspect.timeout, run)
                except NotTakenError:
                    return None
                except ProcessDiedError as error:
                    return suspect.killed(error)
                except (RemoteError, ValueError) as error:  # an outcome that did not cross
                    return suspect.failed(error)
        except (ProcessDiedError, RemoteError) as error:  # no child
            raise self._closed(error) from error
        return outcome

    async def _within(self, timeout: float, run: Awaitable[Outcome]) -> Outcome:
        limit: Deadline | None = None
        try:
            async with self._clock.timeout(timeout + MARGIN if timeout < ENDLESS else None) as limit:
                return await run
        except TimeoutError:
            if limit is None or not limit.expired():
                raise
            raise ProcessDiedError(
                f"The process of this job was killed: it went on {MARGIN:g} s after its timeout of {timeout:g} s."
            ) from None

    # Children

    def _open(self) -> Processes:
        """The children, if there may be any."""
        if self._clock.monotonic() < self._closed_until:
            raise _NoChildError
        if self._children is None:
            try:
                told = quarantine_introduction(self._app, self._registry)
            except Exception as error:  # not to be found, or something strange where it was looked for
                raise self._closed(error) from error
            self._children = Processes(told, settings=self._settings, clock=self._clock)
        return self._children

    def _closed(self, error: BaseException) -> _NoChildError:
        self._closed_until = self._clock.monotonic() + CLOSED
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "Jobs that may have killed a worker run in this one all the same, since they cannot run in a process "
                "of their own: %s A fresh process must be able to import the app and to enter its lifespan a second "
                "time; AMQPJOBS_QUARANTINE=false says that it shall not try.",
                words_of(error),
            )
        return _NoChildError()

    def _rest_later(self) -> None:
        self._was_used = True
        if self._resting is None or self._resting.done():
            self._resting = asyncio.create_task(self._rest())

    async def _rest(self) -> None:
        """Let the children end when no suspect has needed them for a while."""
        while self._was_used:
            while self._was_used:
                self._was_used = self._running > 0
                await self._clock.sleep(IDLE)
            if self._children is not None:
                group, self._group = self._group, None
                await self._children.retire()
                if group is not None:
                    await group.stop()
