"""What happened, told to whoever watches. Subscribers may only watch: an error of theirs is logged.

Events are made only when somebody subscribed to their class, so that they cost nothing else.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Self, TypeVar, dataclass_transform

from amqpjobs.envelope import Envelope
from amqpjobs.outcome import Outcome
from amqpjobs.wire import maker_of

_log = logging.getLogger(__name__)


@dataclass_transform(frozen_default=True)
class Event:
    """Base of all events: frozen dataclasses, each made one when it first happens.

    There are many, and a process sees few of them: to make them all takes as long as to connect ten times.
    """

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        if "__dataclass_fields__" not in cls.__dict__:
            _complete(cls)
        return super().__new__(cls)


E = TypeVar("E", bound=Event)


def _complete(kind: type[Event]) -> None:
    """From the base on: a dataclass takes the fields of those above it that are dataclasses already."""
    for each in reversed(kind.__mro__[:-1]):
        if "__dataclass_fields__" not in each.__dict__:
            dataclass(frozen=True)(each)


@cache
def maker_of_event(kind: type[E]) -> type[E]:
    """Makes what the class makes, for where that is done for every job. See `amqpjobs.wire.maker_of`."""
    _complete(kind)
    return maker_of(kind)


class JobEnqueued(Event):
    """The broker confirmed a job. `delay` is how many seconds from now it may run."""

    envelope: Envelope
    delay: float


class JobParked(Event):
    """No queue is bound for the job yet; it waits in the parked queue."""

    envelope: Envelope


class JobDropped(Event):
    """A buffer gave a job up. What `error` says of it may be that nobody knows whether it is queued."""

    envelope: Envelope
    error: BaseException


class JobStarted(Event):
    """A worker starts an attempt."""

    envelope: Envelope


class JobEnded(Event):
    """An attempt has its outcome, and the broker has been told. `seconds` is how long it ran."""

    envelope: Envelope
    outcome: Outcome
    seconds: float


class MessageDied(Event):
    """A message that could not be read as a job went to the dead letters."""

    queue: str
    message_id: str | None
    outcome: Outcome


class SettleFailed(Event):
    """The broker could not be told the outcome; it is tried again after `pause`, or the job comes back."""

    envelope: Envelope | None
    error: BaseException
    pause: float | None


class ReplyUndelivered(Event):
    """The answer to a job reached nobody, as when its caller is gone. The job has ended all the same."""

    envelope: Envelope
    why: str


class MailboxOpened(Event):
    """This process hears the answers to its jobs, in a queue of its own."""

    queue: str


class MailboxClosed(Event):
    """It awaits no answers any more."""

    queue: str


class MailboxFailed(Event):
    """It cannot hear them, for a reason that waiting does not mend. It tries again when a result is next asked for."""

    queue: str
    error: BaseException


class ReplyDropped(Event):
    """A message in the queue of this process's answers is of no use: it is `garbage`, or nobody awaits it any more."""

    queue: str
    job_id: str | None
    garbage: str = ""


class ConnectionOpened(Event):
    """A connection is up. `role` says whose, `url` has no password; `is_again`: after one that was lost."""

    role: str
    url: str
    broker: str
    is_again: bool = False


class ConnectionLost(Event):
    """A connection was lost or could not be opened; the next try is after `pause` seconds."""

    role: str
    url: str
    error: BaseException | None
    pause: float


class ConnectionBlocked(Event):
    """The broker takes no publications on a connection: it is short of memory or disk, as `reason` says.

    It lasts until ConnectionUnblocked, or ConnectionLost for the same role.
    """

    role: str
    url: str
    reason: str


class ConnectionUnblocked(Event):
    """The broker takes publications again. `seconds` is how long it did not."""

    role: str
    url: str
    seconds: float


class TopologyDrifted(Event):
    """A queue has another value than ours in an argument that is safe to leave."""

    queue: str
    argument: str
    ours: str
    theirs: str


class ParkedReleased(Event):
    """Jobs that waited for their kind to be bound were let out."""

    count: int


class WorkerStarted(Event):
    """The worker consumes."""

    queues: Sequence[str]
    kinds: Sequence[str]
    concurrency: int


class WorkerStopping(Event):
    """No new job is started; `running` still run, `returned` were handed back."""

    running: int
    returned: int


class WorkerStopped(Event):
    """All is settled. `cancelled` runs were cut short and handed back."""

    cancelled: int


class LimitReached(Event):
    """A process of workers stops by itself. `limit` is "max_jobs", "max_memory" or "burst".

    `value` is how many jobs it ended, how many bytes it holds, or 0 jobs that are left.
    """

    limit: str
    value: int


class ProcessStarted(Event):
    """A supervisor started a worker process. `number` is its place, from 1."""

    number: int
    pid: int


class ProcessEnded(Event):
    """A worker process ended. `seconds` is how long it consumed; the next one starts after `pause`, if not None."""

    number: int
    pid: int
    how: str
    code: int
    seconds: float
    pause: float | None


class Reloading(Event):
    """A supervisor replaces its `count` worker processes, one by one."""

    count: int


class Reloaded(Event):
    """It has replaced `count` of `of`; the others stay as they are when a new one could not start."""

    count: int
    of: int


class SupervisorStopping(Event):
    """A supervisor asked its `count` worker processes to stop; `why` is None for a signal."""

    count: int
    why: str | None = None


class BeatStarted(Event):
    """A beat is there, and leads when nobody else does. `schedules` is how many the app has."""

    app: str
    schedules: int


class BeatLeading(Event):
    """A beat leads. `begun` are the schedules that are new or have changed: nothing of their past is due."""

    app: str
    schedules: int
    begun: Sequence[str]


class BeatDeposed(Event):
    """A beat leads no longer; `error` is None when it was stopped."""

    app: str
    error: BaseException | None


class TickPublished(Event):
    """The broker confirmed the job of a tick, `late` seconds after its instant."""

    schedule: str
    instant: datetime
    job_id: str
    late: float


class TickFailed(Event):
    """A tick could not be published, for the `failures`th time; it is tried again after `pause` seconds."""

    schedule: str
    instant: datetime
    job_id: str
    error: BaseException
    failures: int
    pause: float


class TicksSkipped(Event):
    """A schedule's ticks after `after` and up to `until` were left out, as its misfire policy says."""

    schedule: str
    after: datetime
    until: datetime


class TicksOverlapped(Event):
    """A schedule's ticks after `after` and up to `until` were left out, as its overlap policy says.

    The run of `run` was not over; None: it was not when they were due.
    """

    schedule: str
    after: datetime
    until: datetime
    run: datetime | None


class TickWaiting(Event):
    """A schedule is due while the run of `run` is not over: the latest tick that is due then will be published."""

    schedule: str
    run: datetime


class TickFound(Event):
    """A tick was not published again: a copy of it, of an earlier try or another beat, had been started."""

    schedule: str
    instant: datetime
    job_id: str


class RunOver(Event):
    """The job of the last tick, `run`, has ended, as a worker told. Of schedules that do not allow overlaps."""

    schedule: str
    run: datetime


class RunPresumedOver(Event):
    """Nobody told of the end of the run of `run` within the schedule's `limit` (seconds)."""

    schedule: str
    run: datetime
    limit: float


class TickDropped(Event):
    """A worker did not run this copy of a tick, because another one was started."""

    envelope: Envelope


class RunNotTold(Event):
    """That a copy of a tick has `word` (started or ended) could not be told, or what was told before not be read.

    The tick runs all the same; its schedule may learn of the end only by its limit.
    """

    envelope: Envelope
    word: str
    error: BaseException


class ScheduleFailed(Event):
    """A schedule could not say when it is due next; it is asked again after `pause` seconds."""

    schedule: str
    error: BaseException
    pause: float


class ClockWentBack(Event):
    """Schedules had been settled until far in the future, by a wrong clock; they go on from now."""

    schedules: Sequence[str]


class StateNotKept(Event):
    """What was published could not be written down; should the beat die now, it is published again.

    It is tried again after `pause` seconds.
    """

    app: str
    error: BaseException
    pause: float


class ScheduleChanged(Event):
    """The leader did what it was told, and has written it down.

    `verb` is add, remove, pause, resume or trigger; `by` is who asked, as they call themselves; `job_id` is that of
    a triggered job.
    """

    app: str
    schedule: str
    verb: str
    by: str
    job_id: str | None = None


class ScheduleRefused(Event):
    """The leader did not do what it was told. `verb` and `schedule` are "" where the command could not be read."""

    app: str
    schedule: str
    verb: str
    by: str
    problem: str


class ScheduleLeftOut(Event):
    """A schedule that was added at runtime is kept, and not followed by this beat."""

    app: str
    schedule: str
    problem: str


@dataclass(frozen=True, slots=True)
class ShardGivenUp(Event):
    """A worker had more than its share of a sharded queue and let go of one shard, which the next in line gets.

    `handed_back` deliveries had not begun and went back; `workers` are in line for it.
    """

    queue: str
    shard: str
    handed_back: int
    workers: int


class Events:
    """Who watches what."""

    def __init__(self) -> None:
        self._subscribers: dict[type[Event], list[Callable[[Any], None]]] = {}

    def subscribe(self, kind: type[E], subscriber: Callable[[E], None]) -> None:
        """Call `subscriber` with each event of just this class. It must not block."""
        self._subscribers.setdefault(kind, []).append(subscriber)

    def unsubscribe(self, kind: type[E], subscriber: Callable[[E], None]) -> None:
        """Call it no more. Raises ValueError if it was not called for these."""
        subscribers = self._subscribers.get(kind, [])
        subscribers.remove(subscriber)
        if not subscribers:
            del self._subscribers[kind]

    def wanted(self, kind: type[Event]) -> bool:
        """Whether anybody watches; who makes events on the hot path asks first."""
        return kind in self._subscribers

    def emit(self, event: Event) -> None:
        """Tell everybody who watches."""
        for subscriber in self._subscribers.get(type(event), ()):
            try:
                subscriber(event)
            except Exception:
                _log.exception("An event subscriber failed on %s", type(event).__name__)
