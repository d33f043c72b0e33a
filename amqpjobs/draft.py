"""A job as it would be sent: its options checked, its envelope and its publication made.

It needs no connection, so whoever enqueues later can learn now whether that is possible at all.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from amqpjobs.amqp.publisher import check_size
from amqpjobs.clock import Clock, Seconds, in_seconds
from amqpjobs.codec import check_headers, encode
from amqpjobs.context import current_context
from amqpjobs.envelope import Envelope, make_another, make_envelope, new_id
from amqpjobs.handle import EnqueueOptions
from amqpjobs.job import Job, JobOptions, check_name, hint, options_of, payload_of
from amqpjobs.settings import Settings
from amqpjobs.sharding import key_in
from amqpjobs.topology import LONGEST_DELAY, Route, Topology
from amqpjobs.wire import Publication, make_publication

_OPTIONS = tuple(EnqueueOptions.__annotations__)


@dataclass(frozen=True, slots=True)
class WrittenJob:
    """A job as it goes over the wire, with what its class says of the enqueue; the class itself need not be known."""

    payload: bytes
    options: JobOptions


def written(job: Job[Any]) -> WrittenJob:
    """Raises what pydantic raises about what it cannot write."""
    return WrittenJob(payload_of(job), options_of(type(job)))


class Drafts:
    """Makes what one app sends."""

    def __init__(self, *, app: str, settings: Settings, topology: Topology, clock: Clock) -> None:
        self._app = app
        self._settings = settings
        self._topology = topology
        self._clock = clock

    def check(self, job: Job[Any] | WrittenJob, options: EnqueueOptions) -> None:
        """Raise what an enqueue raises before it needs the broker. Middlewares are not asked."""
        publication = self.publication(self.envelope(job, options))
        check_size(publication, self._settings.max_body)

    def envelope(self, job: Job[Any] | WrittenJob, options: EnqueueOptions) -> Envelope:
        """Raises TypeError, ValueError, DefinitionError or TooLargeError for what cannot be."""
        if options:
            _check_options(options)
        return self._envelope(job, options)

    def envelopes(self, jobs: Iterable[Job[Any]], options: EnqueueOptions) -> list[Envelope]:
        """Of many jobs with the same options. Raises as for one."""
        if options:
            _check_options(options)
        first = dict[type[Job[Any]], Envelope]()
        made = list[Envelope]()
        for job in jobs:
            model = first.get(type(job))
            if model is None or model.shard_key is not None:
                first[type(job)] = own = self._envelope(job, options)
                made.append(own)
            else:  # but for these two they are alike
                made.append(make_another(model, payload_of(job), new_id()))
        return made

    def _envelope(self, job: Job[Any] | WrittenJob, options: EnqueueOptions) -> Envelope:
        own, payload = (
            (job.options, job.payload) if isinstance(job, WrittenJob) else (options_of(type(job)), payload_of(job))
        )
        now = self._clock.now()
        expires = _first(options.get("expires"), own.expires)
        timeout = options.get("timeout")
        headers = {**own.headers, **(options.get("headers") or {})}
        if headers:
            check_headers(headers)
        parent = current_context()
        job_id = options.get("job_id") or new_id()
        return make_envelope(
            kind=own.kind,
            payload=payload,
            job_id=job_id,
            exchange=own.exchange,
            queue=options.get("queue") or own.queue,
            version=own.version,
            enqueued_at=now,
            run_at=_run_at(options, own.delay, now) if options or own.delay else None,
            expires_at=None if expires is None else now + timedelta(seconds=in_seconds(expires)),
            max_attempts=options.get("max_attempts"),
            timeout=None if timeout is None else in_seconds(timeout),
            priority=_first(options.get("priority"), own.priority),
            parent=parent.job_id if parent else None,
            root=(parent.envelope.root or parent.job_id) if parent else None,
            shard_key=None if own.shard_by is None else key_in(payload, own.shard_by, job_id),
            app_id=self._app,
            headers=headers,
        )

    def publication(self, envelope: Envelope, route: Route | None = None) -> Publication:
        """The message of an envelope, by default to where its kind or queue says."""
        now = self._clock.now() if envelope.run_at or not envelope.enqueued_at else envelope.enqueued_at
        route = route or self._route(envelope, now)
        return make_publication(
            exchange=route.exchange,
            routing_key=route.key,
            body=envelope.payload,
            properties=encode(envelope, now),
        )

    def _route(self, envelope: Envelope, now: datetime) -> Route:
        seconds = seconds_until(envelope.run_at, now)
        if seconds > 0:
            return self._topology.delayed(seconds, kind=envelope.kind, exchange=envelope.exchange, queue=envelope.queue)
        if envelope.queue:
            return self._topology.to_queue(envelope.queue)
        return self._topology.by_kind(envelope.kind, envelope.exchange)


def _check_options(options: EnqueueOptions) -> None:
    for name in options:
        if name not in _OPTIONS:
            raise TypeError(f"enqueue() has no option {name!r}.{hint(name, _OPTIONS)}")
    job_id, queue, priority = options.get("job_id"), options.get("queue"), options.get("priority")
    if job_id is not None and not (1 <= len(job_id.encode()) <= 255 and job_id.isprintable()):
        raise ValueError("job_id must have 1 to 255 bytes, all of them printable.")
    if queue is not None:
        check_name(queue, "Queue")
    if priority is not None and priority not in range(256):
        raise ValueError(f"priority must be from 0 to 255, not {priority!r}.")
    max_attempts = options.get("max_attempts")
    if max_attempts is not None and not 1 <= max_attempts < 2**31:
        raise ValueError(f"max_attempts must be 1 or more, as it counts the first run too, not {max_attempts!r}.")
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


def seconds_until(run_at: datetime | None, now: datetime) -> float:
    """How long to wait; 0 without a time, negative when it has passed."""
    return 0.0 if run_at is None else (run_at - now).total_seconds()


def _first(*values: Any) -> Any:
    for value in values:
        if value is not None:
            return value
    return None
