"""Enqueue: a typed job in, a confirmed message out.

`Job → Envelope → middlewares → Publication → confirm → handle`, all within one deadline.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from typing_extensions import Unpack

from amqpjobs.amqp.connection import Line, Session
from amqpjobs.amqp.publisher import Publisher
from amqpjobs.clock import Clock, Seconds, in_seconds
from amqpjobs.draft import Drafts, seconds_until
from amqpjobs.envelope import Envelope
from amqpjobs.errors import (
    BrokerError,
    BrokerUnavailableError,
    EnqueueError,
    EnqueueManyError,
    EnqueueTimeoutError,
    RefusedError,
    UnroutableError,
)
from amqpjobs.events import Events, JobEnqueued, JobParked
from amqpjobs.handle import RESULT_WITHIN, Awaited, CallOptions, EnqueueOptions, JobHandle, make_handle, result_of
from amqpjobs.job import Job
from amqpjobs.middleware import EnqueueMiddleware, around_enqueue, around_together
from amqpjobs.settings import Settings
from amqpjobs.topology import Topology
from amqpjobs.wire import Publication

if TYPE_CHECKING:
    from amqpjobs.results import Results

R = TypeVar("R")


class Client:
    """Enqueues for one app over one link."""

    def __init__(
        self,
        *,
        app: str,
        settings: Settings,
        topology: Topology,
        clock: Clock,
        events: Events,
        link: Line,
        publisher: Publisher,
        middlewares: Sequence[EnqueueMiddleware] = (),
    ) -> None:
        self._settings = settings
        self._topology = topology
        self._clock = clock
        self._events = events
        self._link = link
        self._publisher = publisher
        self._middlewares = middlewares
        self._drafts = Drafts(app=app, settings=settings, topology=topology, clock=clock)
        #: Made when somebody first asks for a result.
        self._results: Results | None = None

    async def enqueue(self, job: Job[R], **options: Unpack[EnqueueOptions]) -> JobHandle[R]:
        """Enqueue one job; see `App.enqueue`."""
        envelope = self._drafts.envelope(job, options)
        deadline = self._deadline(options)
        is_parked, answer = False, None

        async def send(final: Envelope) -> Envelope:
            nonlocal is_parked, answer
            if options.get("reply"):
                final, answer = await self._asking(job, final)
            is_parked = await self._send(final, park=options.get("on_unroutable") == "park")
            return final

        try:
            async with self._clock.timeout(deadline):
                envelope = await around_enqueue(self._middlewares, send)(envelope)
        except TimeoutError as error:
            raise self._late(envelope, deadline) from error
        except (EnqueueError, BrokerError) as error:
            raise as_enqueue_error(error, envelope) from error.__cause__
        self._tell(envelope, is_parked)
        return JobHandle(envelope.job_id, envelope.kind, is_parked, result_of(job), answer)

    async def call(self, job: Job[R], *, timeout: Seconds = RESULT_WITHIN, **options: Unpack[CallOptions]) -> R:
        """Enqueue one job and wait for its result; see `App.call`."""
        seconds, started = in_seconds(timeout), self._clock.monotonic()
        deadline = min(self._deadline(options), seconds)
        asking = cast("EnqueueOptions", {**options, "deadline": deadline, "reply": True})
        handle = await self.enqueue(job, **asking)
        return await handle.result(max(0.0, seconds - (self._clock.monotonic() - started)))

    async def gather(
        self, awaited: Iterable[Job[Any] | JobHandle[Any]], *, timeout: Seconds, return_exceptions: bool
    ) -> tuple[Any, ...]:
        """The results of jobs and of handles, in their order; see `App.gather`."""
        tasks = [
            asyncio.create_task(
                each.result(timeout) if isinstance(each, JobHandle) else self.call(each, timeout=timeout)
            )
            for each in awaited
        ]
        try:
            return tuple(await asyncio.gather(*tasks, return_exceptions=return_exceptions))
        finally:
            for task in tasks:
                task.cancel()

    async def enqueue_many(self, jobs: Iterable[Job[R]], **options: Unpack[EnqueueOptions]) -> list[JobHandle[R]]:
        """Enqueue jobs with their confirms pipelined; see `App.enqueue_many`."""
        every = list(jobs)
        if options.get("job_id") is not None and len(every) > 1:
            raise ValueError("job_id is for one job; enqueue_many gives each its own.")
        deadline = self._deadline(options)
        envelopes = self._drafts.envelopes(every, options)
        with around_together(self._middlewares, envelopes):
            return await self._enqueue_together(every, envelopes, deadline, options)

    async def _enqueue_together(
        self, every: Sequence[Job[R]], envelopes: Sequence[Envelope], deadline: float, options: EnqueueOptions
    ) -> list[JobHandle[R]]:
        results: dict[int, BaseException | None] = {}
        answers: Sequence[Awaited | None] = [None] * len(every)
        parked = set[int]()
        try:
            async with self._clock.timeout(deadline):
                if self._middlewares:
                    through = around_enqueue(self._middlewares, _unsent)
                    envelopes = [await through(envelope) for envelope in envelopes]
                if options.get("reply"):
                    asking = [await self._asking(job, each) for job, each in zip(every, envelopes, strict=True)]
                    envelopes, answers = [each for each, _ in asking], [each for _, each in asking]
                await self._publisher.send_all((self._drafts.publication(each) for each in envelopes), results)
                parked = await self._park_returned(envelopes, results, options)
        except TimeoutError:
            pass  # each of those that have no result is late
        except BrokerError as error:  # no answer can be heard, so that nothing was sent
            results = dict.fromkeys(range(len(every)), error)
        late = [position for position in range(len(every)) if position not in results]
        results.update({position: self._late(envelopes[position], deadline) for position in late})
        return self._handles(every, envelopes, results, parked, answers)

    def _handles(
        self,
        jobs: Sequence[Job[R]],
        envelopes: Sequence[Envelope],
        results: dict[int, BaseException | None],
        parked: set[int],
        answers: Sequence[Awaited | None],
    ) -> list[JobHandle[R]]:
        errors = {
            position: as_enqueue_error(error, envelopes[position])
            for position, error in results.items()
            if error is not None
        }
        for position, envelope in enumerate(envelopes):
            if position not in errors:
                self._tell(envelope, position in parked)
        if errors:
            enqueued = {n: each.job_id for n, each in enumerate(envelopes) if n not in errors}
            raise EnqueueManyError(enqueued, errors)
        return [
            make_handle(envelope.job_id, envelope.kind, position in parked, result_of(job), answer)
            for position, (job, envelope, answer) in enumerate(zip(jobs, envelopes, answers, strict=True))
        ]

    async def _park_returned(
        self, envelopes: Sequence[Envelope], results: dict[int, BaseException | None], options: EnqueueOptions
    ) -> set[int]:
        if options.get("on_unroutable") != "park":
            return set()
        returned = [n for n, error in results.items() if isinstance(error, UnroutableError)]
        outcome: dict[int, BaseException | None] = {}
        publications = [self._drafts.publication(envelopes[n], self._topology.to_parked()) for n in returned]
        await self._publisher.send_all(publications, outcome)
        results.update({n: outcome[position] for position, n in enumerate(returned)})
        return {n for n in returned if results[n] is None}

    async def _asking(self, job: Job[Any], envelope: Envelope) -> tuple[Envelope, Awaited]:
        """The envelope with the address for its answer, and the answer, which may come as soon as it is sent."""
        if self._results is None:
            from amqpjobs.results import Results  # loaded by those alone who ask

            self._results = Results(
                line=self._link,
                topology=self._topology,
                settings=self._settings,
                clock=self._clock,
                events=self._events,
            )
        asking = envelope.evolve(reply_to=await self._results.address())
        return asking, self._results.expect(job, asking)

    async def _send(self, envelope: Envelope, *, park: bool) -> bool:
        """Whether it was parked."""
        try:
            await self._publisher.send(self._drafts.publication(envelope))
        except UnroutableError:
            if not park:
                raise
            await self._publisher.send(self._drafts.publication(envelope, self._topology.to_parked()))
            return True
        return False

    async def close(self) -> None:
        """Await no results any more. Before the connection ends."""
        results, self._results = self._results, None
        if results is not None:
            await results.close()

    async def connected(self) -> Session:
        """The connection, as soon as there is one. Raises what `Link.session` raises."""
        return await self._link.session()

    async def passed(self, envelope: Envelope) -> Envelope:
        """What the middlewares make of it, as in a batch: nothing is sent yet."""
        return await around_enqueue(self._middlewares, _unsent)(envelope)

    async def deliver(self, envelope: Envelope, *, park: bool) -> None:
        """Let it pass the middlewares, send it, and wait for the confirm for as long as it takes.

        Raises what `Publisher.send` raises.
        """
        is_parked = False

        async def send(final: Envelope) -> Envelope:
            nonlocal is_parked
            is_parked = await self._send(final, park=park)
            return final

        self._tell(await around_enqueue(self._middlewares, send)(envelope), is_parked)

    async def send(self, envelope: Envelope, *, park: bool) -> None:
        """Send what has passed the middlewares, and wait for the confirm for as long as it takes.

        Raises what `Publisher.send` raises.
        """
        self._tell(envelope, await self._send(envelope, park=park))

    @property
    def unconfirmed(self) -> int:
        """Messages that the broker has not answered yet."""
        return self._publisher.unconfirmed

    @property
    def trouble(self) -> str:
        """Why nothing is confirmed, as far as one can tell."""
        if self._link.blocked:
            return f"The broker takes no publications, because it is short of memory or disk ({self._link.blocked})."
        if self._link.is_up:
            return "The broker is connected and confirms nothing: it may be short of memory or disk."
        return str(self._link.last_error or "There is no connection yet.")

    def publication(self, envelope: Envelope) -> Publication:
        """The message of an envelope, to where its kind or queue says."""
        return self._drafts.publication(envelope)

    def _deadline(self, options: CallOptions) -> float:
        given = options.get("deadline")
        return self._settings.enqueue_timeout if given is None else in_seconds(given)

    def _late(self, envelope: Envelope, deadline: float) -> EnqueueTimeoutError:
        what = f"Job {envelope.kind!r} ({envelope.job_id})"
        if self._link.blocked:
            text = (
                f"{what} was not confirmed within {deadline:g} s: the broker takes no publications, because it is "
                f"short of memory or disk ({self._link.blocked}). It may be queued or not; enqueue it again under the "
                "same job_id when `rabbitmq-diagnostics alarms` shows none."
            )
        elif self._link.is_up:
            text = f"{what} was not confirmed within {deadline:g} s: it may be queued or not."
        else:
            text = f"{what} was not sent within {deadline:g} s. {self._link.last_error or 'There is no connection.'}"
        error = EnqueueTimeoutError(text)
        error.job_id = envelope.job_id
        return error

    def _tell(self, envelope: Envelope, is_parked: bool) -> None:
        if is_parked:
            self._events.emit(JobParked(envelope))
        elif self._events.wanted(JobEnqueued):
            self._events.emit(JobEnqueued(envelope, max(0.0, seconds_until(envelope.run_at, self._clock.now()))))


async def _unsent(envelope: Envelope) -> Envelope:
    """The end of the middlewares in a batch, which is sent together after all have passed."""
    return envelope


def as_enqueue_error(error: BaseException, envelope: Envelope) -> EnqueueError:
    """Any failure of a publish as an EnqueueError that knows the job."""
    if isinstance(error, BrokerUnavailableError):
        error = EnqueueTimeoutError(str(error))
    elif not isinstance(error, EnqueueError):
        error = RefusedError(str(error))
    error.job_id = envelope.job_id
    return error
