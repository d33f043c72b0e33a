"""Metrics of what is enqueued and run, through the API alone. `docs/metrics.md` promises their names.

No attribute has more values than the code has kinds, queues and classes of errors: what arrives from elsewhere
is called `_OTHER`. So is what goes beyond a bound, of code that has very many.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from opentelemetry.metrics import Meter

from amqpjobs.context import JobContext
from amqpjobs.envelope import Envelope
from amqpjobs.errors import EnqueueManyError
from amqpjobs.middleware import EnqueueNext, RunNext, SettleNext
from amqpjobs.outcome import Cancelled, Completed, Dead, Outcome, Retrying, Returned
from amqpjobs.telemetry import names
from amqpjobs.telemetry.carrier import requeues_of
from amqpjobs.telemetry.outcomes import word_of
from amqpjobs.telemetry.series import MOST_ERRORS, OTHER, BoundedCounter, BoundedHistogram, Few
from amqpjobs.telemetry.spans import Attributes, Observed, kind_of, operation, same, sent_to, taken_from
from amqpjobs.wire import Delivery

#: Seconds: from what takes no time to what takes an hour. The conventions' own end at 10 s.
DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
#: Seconds that a job waited: a backlog may be a day old.
WAITS = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400)
ATTEMPTS = (1, 2, 3, 5, 8, 13, 21)

_together: ContextVar[frozenset[str]] = ContextVar("amqpjobs_measured_together", default=frozenset())


class Measures:
    """The instruments, and what is written on them."""

    def __init__(self, app: Observed, meter: Meter) -> None:
        self._app = app
        self._errors = Few(MOST_ERRORS)
        self._sent = BoundedCounter(
            meter.create_counter(
                "messaging.client.sent.messages", "{message}", "Jobs that were enqueued, or could not be"
            )
        )
        self._consumed = BoundedCounter(
            meter.create_counter(
                "messaging.client.consumed.messages", "{message}", "Jobs that were handed to a handler"
            )
        )
        self._operations = _histogram(
            meter, "messaging.client.operation.duration", "s", "How long an enqueue or settling took", DURATIONS
        )
        self._runs = _histogram(meter, "messaging.process.duration", "s", "How long an attempt ran", DURATIONS)
        self._waits = _histogram(
            meter, "amqpjobs.job.wait.duration", "s", "From when a job could run to its first attempt", WAITS
        )
        self._attempts = _histogram(
            meter, "amqpjobs.job.attempts", "{attempt}", "Attempts of jobs that have come to their end", ATTEMPTS
        )
        self._ended = BoundedCounter(meter.create_counter("amqpjobs.job.outcomes", "{job}", "How attempts ended"))
        self._active = BoundedCounter(meter.create_up_down_counter("amqpjobs.job.active", "{job}", "Jobs that run now"))

    # Enqueues

    async def __call__(self, envelope: Envelope, following: EnqueueNext) -> Envelope:
        """An enqueue middleware."""
        if envelope.job_id in _together.get():
            return await following(envelope)
        with self._sending(1, sent_to(envelope, self._app.topology)):
            return await following(envelope)

    @contextmanager
    def together(self, envelopes: Sequence[Envelope]) -> Generator[None]:
        """Of many jobs that are enqueued together one duration, and each one in the count."""
        token = _together.set(frozenset(each.job_id for each in envelopes))
        try:
            with self._sending(len(envelopes), same([sent_to(each, self._app.topology) for each in envelopes])):
                yield
        finally:
            _together.reset(token)

    @contextmanager
    def _sending(self, count: int, to: Attributes) -> Generator[None]:
        told, started = self._told("send", "send", {names.DESTINATION: to.get(names.DESTINATION, OTHER)}), self._now()
        try:
            yield
        except BaseException as error:
            failed = told | self._failed(error)
            confirmed = len(error.enqueued) if isinstance(error, EnqueueManyError) else 0
            if confirmed:
                self._sent.add(confirmed, told)
            self._sent.add(count - confirmed, failed)
            self._operations.record(self._now() - started, failed)
            raise
        self._sent.add(count, told)
        self._operations.record(self._now() - started, told)

    # Runs

    async def run(self, context: JobContext[Any], following: RunNext) -> Outcome:
        """A run middleware."""
        job = self._job(context.envelope)
        told, started = self._told("process", "process", job), self._now()
        self._consumed.add(1, told)
        if (wait := self._waited(context.envelope)) is not None:
            self._waits.record(wait, job)
        self._active.add(1, job)
        try:
            outcome = await following(context)
        except BaseException as error:
            self._runs.record(self._now() - started, told | self._failed(error))
            raise
        finally:
            self._active.add(-1, job)
        self._runs.record(self._now() - started, told | self._failure(outcome))
        return outcome

    async def settle(
        self, delivery: Delivery, envelope: Envelope | None, outcome: Outcome, following: SettleNext
    ) -> bool:
        """A settle middleware."""
        job, started = self._job(envelope, delivery), self._now()
        is_settled = await following(delivery, envelope, outcome)
        word = "nack" if isinstance(outcome, Returned) else "ack"
        failed: Attributes = {} if is_settled else {names.ERROR_TYPE: "channel_closed"}
        self._operations.record(self._now() - started, self._told(word, "settle", job | failed))
        if is_settled:
            reason = {names.JOB_DEAD_REASON: outcome.reason.value} if isinstance(outcome, Dead) else {}
            self._ended.add(1, {**job, names.JOB_OUTCOME: word_of(outcome), **reason})
            if envelope is not None and isinstance(outcome, Completed | Dead | Cancelled):
                self._attempts.record(envelope.attempt, job)
        return is_settled

    def _job(self, envelope: Envelope | None, delivery: Delivery | None = None) -> Attributes:
        if envelope is not None and (handler := self._app.registry.get(envelope.kind)) is not None:
            to = taken_from(envelope, self._app.topology)[names.DESTINATION]
            return {names.JOB_KIND: handler.kind, names.DESTINATION: to}
        queue = envelope.queue if envelope is not None else delivery.queue if delivery is not None else ""
        return {names.JOB_KIND: OTHER, names.DESTINATION: self._app.topology.work_queue(queue)}

    def _waited(self, envelope: Envelope) -> float | None:
        """Seconds, at the first attempt; None where nobody knows them."""
        if envelope.attempt > 1 or envelope.first_at is not None or requeues_of(envelope):
            return None
        since = envelope.run_at or enqueued_at(envelope)
        return None if since is None else max(0.0, (self._app.clock.now() - since).total_seconds())

    def _told(self, name: str, what: str, more: Attributes) -> Attributes:
        return operation(name, what, self._app.settings) | more

    def _failure(self, outcome: Outcome) -> Attributes:
        return self._failed(outcome.error) if isinstance(outcome, Retrying | Dead) else {}

    def _failed(self, error: BaseException | None) -> Attributes:
        kind = OTHER if error is None else kind_of(error)
        return {names.ERROR_TYPE: kind if self._errors.has(kind) else OTHER}

    def _now(self) -> float:
        return self._app.clock.monotonic()


def enqueued_at(envelope: Envelope) -> datetime | None:
    """To the millisecond where the job id is one of ours: AMQP's timestamp has whole seconds."""
    stamp = envelope.enqueued_at
    try:
        job_id = UUID(envelope.job_id)
    except ValueError:
        return stamp
    if stamp is None or job_id.version != 7:
        return stamp
    made = datetime.fromtimestamp((job_id.int >> 80) / 1000, UTC)
    return made if 0 <= (made - stamp).total_seconds() < 1 else stamp


def _histogram(meter: Meter, name: str, unit: str, description: str, boundaries: Sequence[float]) -> BoundedHistogram:
    made = meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=boundaries)
    return BoundedHistogram(made)
