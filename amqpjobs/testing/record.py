"""What happened to jobs in a test, in the order it happened."""

from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from amqpjobs.codec import job_from
from amqpjobs.envelope import Envelope
from amqpjobs.events import Events, JobEnded, JobEnqueued, JobParked, JobStarted, MailboxClosed, MailboxOpened
from amqpjobs.job import Job, options_of
from amqpjobs.middleware import EnqueueNext
from amqpjobs.outcome import Outcome

J = TypeVar("J", bound=Job[Any])


@dataclass(slots=True)
class Run:
    """A job that has begun and was not settled."""

    envelope: Envelope
    #: How many copies of it run.
    count: int = 0
    #: Since when, as `Rest` counts, it has done something other than sleep by the clock; None while it sleeps.
    awake_since: float | None = None
    #: Whether it has been awake for so long that it is taken to wait for a time that does not move.
    is_stuck: bool = False


class Record:
    """Watches an app from `watch` to `unwatch`."""

    def __init__(self) -> None:
        self._enqueued: list[tuple[Envelope, float]] = []
        self._ended: list[tuple[Envelope, Outcome]] = []
        #: By job id.
        self.runs: dict[str, Run] = {}
        #: Calls of enqueue that have not returned.
        self.enqueuing = 0
        #: Queues in which answers to jobs are heard.
        self.mailboxes = set[str]()

    def watch(self, events: Events) -> None:
        events.subscribe(JobEnqueued, self._note_enqueued)
        events.subscribe(JobParked, self._note_parked)
        events.subscribe(JobStarted, self._note_started)
        events.subscribe(JobEnded, self._note_ended)
        events.subscribe(MailboxOpened, self._note_opened)
        events.subscribe(MailboxClosed, self._note_closed)

    def unwatch(self, events: Events) -> None:
        events.unsubscribe(JobEnqueued, self._note_enqueued)
        events.unsubscribe(JobParked, self._note_parked)
        events.unsubscribe(JobStarted, self._note_started)
        events.unsubscribe(JobEnded, self._note_ended)
        events.unsubscribe(MailboxOpened, self._note_opened)
        events.unsubscribe(MailboxClosed, self._note_closed)

    async def around_enqueue(self, envelope: Envelope, following: EnqueueNext) -> Envelope:
        """A middleware that counts who is enqueuing."""
        self.enqueuing += 1
        try:
            return await following(envelope)
        finally:
            self.enqueuing -= 1

    def enqueued(self, job: type[J]) -> list[tuple[J, float]]:
        """The jobs of a class, read again from what was sent, each with its delay when it was sent."""
        read = partial(job_from, job)
        return [
            (read(envelope.payload, envelope.version), delay)
            for envelope, delay in self._enqueued
            if _is_of(job, envelope)
        ]

    def outcomes(self, job: type[Job[Any]]) -> list[Outcome]:
        return [outcome for envelope, outcome in self._ended if _is_of(job, envelope)]

    @property
    def news(self) -> int:
        """How much has happened: jobs that were enqueued, and attempts that ended."""
        return len(self._enqueued) + len(self._ended)

    @property
    def kinds(self) -> list[str]:
        """What was enqueued, of whatever class."""
        return [envelope.kind for envelope, _ in self._enqueued]

    def _note_enqueued(self, event: JobEnqueued) -> None:
        self._enqueued.append((event.envelope, event.delay))

    def _note_parked(self, event: JobParked) -> None:
        self._enqueued.append((event.envelope, 0.0))

    def _note_opened(self, event: MailboxOpened) -> None:
        self.mailboxes.add(event.queue)

    def _note_closed(self, event: MailboxClosed) -> None:
        self.mailboxes.discard(event.queue)

    def _note_started(self, event: JobStarted) -> None:
        self.runs.setdefault(event.envelope.job_id, Run(event.envelope)).count += 1

    def _note_ended(self, event: JobEnded) -> None:
        run = self.runs.get(event.envelope.job_id)
        if run is not None:
            run.count -= 1
            if not run.count:
                del self.runs[event.envelope.job_id]
        self._ended.append((event.envelope, event.outcome))


def _is_of(job: type[Job[Any]], envelope: Envelope) -> bool:
    options = options_of(job)
    return envelope.kind == options.kind or envelope.kind in options.aliases
