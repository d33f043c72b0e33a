"""Enqueue: a typed job in, a confirmed message out.

`Job → Envelope → middlewares → Publication → confirm → handle`, all within one deadline.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast

from typing_extensions import Unpack

from amqpjobs.amqp.connection import Link
from amqpjobs.amqp.publisher import Publisher
from amqpjobs.clock import Clock, Seconds, in_seconds
from amqpjobs.codec import check_headers, encode
from amqpjobs.context import current_context
from amqpjobs.envelope import Envelope, new_id
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
from amqpjobs.handle import EnqueueOptions, JobHandle, result_of
from amqpjobs.job import Job, check_name, hint, options_of, payload_of
from amqpjobs.middleware import EnqueueMiddleware, around_enqueue
from amqpjobs.settings import Settings
from amqpjobs.topology import LONGEST_DELAY, Route, Topology
from amqpjobs.wire import Publication

R = TypeVar("R")

_OPTIONS = tuple(EnqueueOptions.__annotations__)


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
        link: Link,
        publisher: Publisher,
        middlewares: Sequence[EnqueueMiddleware] = (),
    ) -> None:
        self._app = app
        self._settings = settings
        self._topology = topology
        self._clock = clock
        self._events = events
        self._link = link
        self._publisher = publisher
        self._middlewares = middlewares

    async def enqueue(self, job: Job[R], **options: Unpack[EnqueueOptions]) -> JobHandle[R]:
        """Enqueue one job; see `App.enqueue`."""
        envelope = self._envelope(job, options)
        deadline = self._deadline(options)
        is_parked = False

        async def send(final: Envelope) -> Envelope:
            nonlocal is_parked
            is_parked = await self._send(final, park=options.get("on_unroutable") == "park")
            return final

        try:
            async with self._clock.timeout(deadline):
                envelope = await around_enqueue(self._middlewares, send)(envelope)
        except TimeoutError as error:
            raise self._late(envelope, deadline) from error
        except (EnqueueError, BrokerError) as error:
            raise _with_id(error, envelope) from error.__cause__
        self._tell(envelope, is_parked)
        return JobHandle(envelope.job_id, envelope.kind, is_parked, result_of(job))

    async def enqueue_many(self, jobs: Iterable[Job[R]], **options: Unpack[EnqueueOptions]) -> list[JobHandle[R]]:
        """Enqueue jobs with their confirms pipelined; see `App.enqueue_many`."""
        every = list(jobs)
        if options.get("job_id") is not None and len(every) > 1:
            raise ValueError("job_id is for one job; enqueue_many gives each its own.")
        deadline = self._deadline(options)
        envelopes = [self._envelope(job, options) for job in every]
        results: dict[int, BaseException | None] = {}
        try:
            async with self._clock.timeout(deadline):
                if self._middlewares:
                    through = around_enqueue(self._middlewares, _unsent)
                    envelopes = [await through(envelope) for envelope in envelopes]
                await self._publisher.send_all((self.publication(each) for each in envelopes), results)
                parked = await self._park_returned(envelopes, results, options)
        except TimeoutError:
            parked = set[int]()
        late = [position for position in range(len(every)) if position not in results]
        results.update({position: self._late(envelopes[position], deadline) for position in late})
        return self._handles(every, envelopes, results, parked)

    def _handles(
        self,
        jobs: Sequence[Job[R]],
        envelopes: Sequence[Envelope],
        results: dict[int, BaseException | None],
        parked: set[int],
    ) -> list[JobHandle[R]]:
        errors = {
            position: _with_id(error, envelopes[position]) for position, error in results.items() if error is not None
        }
        for position, envelope in enumerate(envelopes):
            if position not in errors:
                self._tell(envelope, position in parked)
        if errors:
            enqueued = {n: each.job_id for n, each in enumerate(envelopes) if n not in errors}
            raise EnqueueManyError(enqueued, errors)
        return [
            JobHandle(envelope.job_id, envelope.kind, position in parked, result_of(job))
            for position, (job, envelope) in enumerate(zip(jobs, envelopes, strict=True))
        ]

    async def _park_returned(
        self, envelopes: Sequence[Envelope], results: dict[int, BaseException | None], options: EnqueueOptions
    ) -> set[int]:
        if options.get("on_unroutable") != "park":
            return set()
        returned = [n for n, error in results.items() if isinstance(error, UnroutableError)]
        outcome: dict[int, BaseException | None] = {}
        publications = [self.publication(envelopes[n], self._topology.to_parked()) for n in returned]
        await self._publisher.send_all(publications, outcome)
        results.update({n: outcome[position] for position, n in enumerate(returned)})
        return {n for n in returned if results[n] is None}

    async def _send(self, envelope: Envelope, *, park: bool) -> bool:
        """Whether it was parked."""
        try:
            await self._publisher.send(self.publication(envelope))
        except UnroutableError:
            if not park:
                raise
            await self._publisher.send(self.publication(envelope, self._topology.to_parked()))
            return True
        return False

    def publication(self, envelope: Envelope, route: Route | None = None) -> Publication:
        """The message of an envelope, by default to where its kind or queue says."""
        now = self._clock.now()
        route = route or self._route(envelope, now)
        return Publication(
            exchange=route.exchange,
            routing_key=route.key,
            body=envelope.payload,
            properties=encode(envelope, now),
        )

    def _route(self, envelope: Envelope, now: datetime) -> Route:
        seconds = _seconds_until(envelope.run_at, now)
        if seconds > 0:
            return self._topology.delayed(seconds, kind=envelope.kind, exchange=envelope.exchange, queue=envelope.queue)
        if envelope.queue:
            return self._topology.to_queue(envelope.queue)
        return self._topology.by_kind(envelope.kind, envelope.exchange)

    def _envelope(self, job: Job[Any], options: EnqueueOptions) -> Envelope:
        _check_options(options)
        own, now = options_of(type(job)), self._clock.now()
        expires = _first(options.get("expires"), own.expires)
        timeout = options.get("timeout")
        headers = dict(own.headers) | dict(options.get("headers") or {})
        if headers:
            check_headers(headers)
        parent = current_context()
        job_id = options.get("job_id") or new_id()
        return Envelope(
            kind=own.kind,
            payload=payload_of(job),
            job_id=job_id,
            exchange=own.exchange,
            queue=options.get("queue") or own.queue,
            version=own.version,
            enqueued_at=now,
            run_at=_run_at(options, own.delay, now),
            expires_at=None if expires is None else now + timedelta(seconds=in_seconds(expires)),
            max_attempts=options.get("max_attempts"),
            timeout=None if timeout is None else in_seconds(timeout),
            priority=_first(options.get("priority"), own.priority),
            parent=parent.job_id if parent else None,
            root=(parent.envelope.root or parent.job_id) if parent else None,
            app_id=self._app,
            headers=headers,
        )

    def _deadline(self, options: EnqueueOptions) -> float:
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
            self._events.emit(JobEnqueued(envelope, max(0.0, _seconds_until(envelope.run_at, self._clock.now()))))


async def _unsent(envelope: Envelope) -> Envelope:
    """The end of the middlewares in a batch, which is sent together after all have passed."""
    return envelope


def _with_id(error: BaseException, envelope: Envelope) -> EnqueueError:
    """Any failure of a publish as an EnqueueError that knows the job."""
    if isinstance(error, BrokerUnavailableError):
        error = EnqueueTimeoutError(str(error))
    elif not isinstance(error, EnqueueError):
        error = RefusedError(str(error))
    error.job_id = envelope.job_id
    return error


def _check_options(options: EnqueueOptions) -> None:
    for name in options:
        if name not in _OPTIONS:
            raise TypeError(f"enqueue() has no option {name!r}.{hint(name, _OPTIONS)}")
    job_id, queue, priority = options.get("job_id"), options.get("queue"), options.get("priority")
    if job_id is not None and not (1 <= len(job_id.encode()) <= 255 and job_id.isprintable()):
        raise ValueError("job_id must have 1 to 255 bytes, all of them printable.")
    if queue is not None:
        check_name(queue, "Queue")
    if priority is not None and not 0 <= priority <= 255:
        raise ValueError(f"priority must be from 0 to 255, not {priority!r}.")
    if (options.get("max_attempts") or 1) < 1:
        raise ValueError("max_attempts must be 1 or more: it counts the first run too.")
    for name in ("expires", "timeout", "deadline"):
        span = cast("Seconds | None", options.get(name))
        if span is not None and not 0 < in_seconds(span) <= LONGEST_DELAY:
            raise ValueError(f"{name} must be more than 0 seconds and at most 13.6 years, not {span!r}.")
    if options.get("on_unroutable", "raise") not in ("raise", "park"):
        raise ValueError('on_unroutable must be "raise" or "park".')


def _run_at(options: EnqueueOptions, class_delay: float | None, now: datetime) -> datetime | None:
    delay, run_at = options.get("delay"), options.get("run_at")
    if delay is not None and run_at is not None:
        raise ValueError("Give delay or run_at, not both.")
    if run_at is not None:
        if run_at.utcoffset() is None:
            raise ValueError(
                f"run_at must carry a time zone, and {run_at.isoformat()} has none: "
                "use datetime.now(UTC) or datetime(…, tzinfo=ZoneInfo(…))."
            )
        seconds = (run_at - now).total_seconds()
    else:
        seconds = in_seconds(_first(delay, class_delay, 0.0))
        if not seconds >= 0:  # NaN neither
            raise ValueError(f"delay must be 0 or more seconds, not {delay!r}.")
    if seconds > LONGEST_DELAY:
        raise ValueError(f"A job can wait {LONGEST_DELAY:,.0f} s (13.6 years) at most, not {seconds:,.0f} s.")
    return run_at or (now + timedelta(seconds=seconds) if seconds > 0 else None)


def _seconds_until(run_at: datetime | None, now: datetime) -> float:
    return 0.0 if run_at is None else (run_at - now).total_seconds()


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
