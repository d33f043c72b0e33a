"""What an app schedules: a schedule, a job, and what to do about ticks that were missed.

A tick is one instant of one schedule. It has a name, `schedule@instant`, which is the id of its
job, so that a tick published twice can be told. Pure: nothing here knows the time.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypedDict

from amqpjobs.beat.schedule import RESOLUTION, Schedule, describe, find_next
from amqpjobs.clock import Seconds
from amqpjobs.draft import WrittenJob
from amqpjobs.errors import DefinitionError
from amqpjobs.job import Job, JobOptions, check_name, hint, options_of
from amqpjobs.wire import HeaderValue

#: What is done about ticks that are more than the grace late.
Misfire = Literal["skip", "once", "all"]
MISFIRES: Sequence[Misfire] = ("skip", "once", "all")
#: What is done about ticks that are due while the job of the last one is still queued or running.
Overlap = Literal["allow", "skip", "queue"]
OVERLAPS: Sequence[Overlap] = ("allow", "skip", "queue")
#: Seconds after which a run is taken for over whose end nobody told: a day, and the most it may be, a year.
OVERLAP_LIMIT, LONGEST_OVERLAP = 86_400.0, 366 * 86_400.0
#: Seconds that a tick may be late and no policy is asked: longer than another beat takes to take over.
GRACE = 30.0
#: Ticks that `misfire="all"` catches up with, and the most it may be told to.
CATCH_UP, MOST = 100, 10_000
#: The first stretch that is searched for the latest ticks; each next one is twice as long.
STRETCH = timedelta(seconds=1)


class TickOptions(TypedDict, total=False):
    """What is said of the job of each tick, as in `EnqueueOptions`.

    Ids, delays and deadlines are the beat's own.
    """

    expires: Seconds | None
    queue: str | None
    priority: int | None
    headers: Mapping[str, HeaderValue] | None
    max_attempts: int | None
    timeout: Seconds | None
    on_unroutable: Literal["raise", "park"]


@dataclass(frozen=True, slots=True)
class Tick:
    """One instant of one schedule."""

    schedule: str
    instant: datetime
    #: Whether it may have been published before, by an earlier try or another beat.
    is_doubtful: bool = False

    @property
    def job_id(self) -> str:
        """`report@2026-01-31T09:00:00Z`: the same from every beat."""
        return f"{self.schedule}@{self.instant.astimezone(UTC).isoformat().removesuffix('+00:00')}Z"


def tick_of(job_id: str) -> Tick | None:
    """The tick that has this id; None for what is the id of none."""
    schedule, _, instant = job_id.rpartition("@")
    try:
        return Tick(schedule, datetime.fromisoformat(instant).astimezone(UTC))
    except ValueError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """A schedule of an app, declared or added at runtime. Raises DefinitionError for what cannot be."""

    name: str
    schedule: Schedule
    job: Job[Any] | WrittenJob
    misfire: Misfire = "once"
    #: Ticks of misfire="all".
    limit: int = CATCH_UP
    #: Seconds.
    grace: float = GRACE
    overlap: Overlap = "allow"
    #: Seconds.
    overlap_limit: float = OVERLAP_LIMIT
    options: TickOptions = field(default_factory=TickOptions)

    def __post_init__(self) -> None:
        check_name(self.name, "Schedule")
        describe(self.schedule)
        for option in self.options:
            if option not in TickOptions.__annotations__:
                known = hint(option, list(TickOptions.__annotations__))
                raise DefinitionError(f"Schedule {self.name!r} has no option {option!r}.{known}")
        if self.misfire not in MISFIRES:
            raise DefinitionError(f"misfire of schedule {self.name!r} must be one of {MISFIRES}, not {self.misfire!r}.")
        if not 1 <= self.limit <= MOST:
            raise DefinitionError(f"limit of schedule {self.name!r} must be from 1 to {MOST:,}, not {self.limit!r}.")
        if not self.grace >= 0:
            raise DefinitionError(f"grace of schedule {self.name!r} must be 0 or more seconds, not {self.grace!r}.")
        if self.overlap not in OVERLAPS:
            raise DefinitionError(f"overlap of schedule {self.name!r} must be one of {OVERLAPS}, not {self.overlap!r}.")
        if not 0 < self.overlap_limit <= LONGEST_OVERLAP:
            raise DefinitionError(
                f"overlap_limit of schedule {self.name!r} must be more than 0 seconds and at most a year, "
                f"not {self.overlap_limit!r}."
            )

    @property
    def job_options(self) -> JobOptions:
        """What the class of its jobs says of them."""
        return self.job.options if isinstance(self.job, WrittenJob) else options_of(type(self.job))

    @property
    def definition(self) -> str:
        """What its fingerprint is made of: when it is due, and nothing else."""
        return describe(self.schedule)


@dataclass(frozen=True, slots=True)
class Due:
    """What a schedule has to publish now, oldest first, and up to when all else is settled."""

    ticks: Sequence[datetime] = ()
    #: Nothing before or at this instant is published any more, the ticks apart.
    settled: datetime | None = None

    @property
    def skips(self) -> bool:
        """Whether ticks were left out."""
        return self.settled is not None


def due(scheduled: Scheduled, schedule: Schedule, last: datetime, now: datetime) -> Due:
    """What to publish at `now`, when all up to `last` is settled.

    One tick, as long as none is later than the grace. Otherwise the policy says: "skip" leaves
    out those that are later than the grace, "once" all that are due but the latest one, "all"
    all that are due but the latest `limit`.
    """
    first = find_next(schedule, last)
    if first is None or first > now:
        return Due()
    if (now - first).total_seconds() <= scheduled.grace:
        return Due([first])
    if scheduled.misfire == "skip":
        return Due(settled=max(last, now - timedelta(seconds=scheduled.grace) - RESOLUTION))
    kept = latest(schedule, last, now, 1 if scheduled.misfire == "once" else scheduled.limit)
    return Due(kept) if kept[0] == first else Due(kept, settled=kept[0] - RESOLUTION)


def latest(schedule: Schedule, after: datetime, until: datetime, limit: int) -> list[datetime]:
    """The latest ticks of a stretch of time, `limit` at most, oldest first. It need not walk all of it."""
    span = STRETCH
    while True:
        start = max(after, until - span) if until - after > span else after
        found = deque(_between(schedule, start, until), maxlen=limit)
        if len(found) == limit or start == after:
            return list(found)
        span *= 2


def _between(schedule: Schedule, after: datetime, until: datetime) -> Iterator[datetime]:
    instant = find_next(schedule, after)
    while instant is not None and instant <= until:
        yield instant
        instant = find_next(schedule, instant)
