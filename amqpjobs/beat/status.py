"""How schedules are: what the code says, beside what beats have written down. Pure, as `plan.py` is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from amqpjobs.beat.added import added_from
from amqpjobs.beat.plan import Scheduled
from amqpjobs.beat.runtime import Leader, Runtime
from amqpjobs.beat.schedule import anchor, find_next
from amqpjobs.beat.state import State, fingerprint_of
from amqpjobs.errors import AmqpJobsError


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleStatus:
    """How one schedule is. Times are UTC."""

    name: str
    #: Its text, such as "every 60 s".
    schedule: str
    #: Of its jobs.
    kind: str
    misfire: str
    #: Added at runtime; else the code declares it.
    is_added: bool
    paused_since: datetime | None
    #: The instant of the last tick that was published; triggered jobs do not count.
    last_run: datetime | None
    #: The next instant that is not settled, perhaps in the past; None while it is paused, and when there is none.
    next_run: datetime | None
    #: Seconds by which that one is late.
    lag: float = 0.0
    #: Why no beat can follow it, or what else is odd; "" if nothing.
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ScheduleOverview:
    """All schedules of an app, and its beats."""

    schedules: Sequence[ScheduleStatus]
    #: The beat that leads, or was the last to. None: there never was one.
    leader: Leader | None
    #: Whether a beat is connected that leads, or is just about to.
    is_led: bool


def statuses_in(state: State, declared: Mapping[str, Scheduled], now: datetime) -> Iterator[ScheduleStatus]:
    """The declared ones in their order, those that were added, and names that are paused and nothing else."""
    runtime = state.runtime
    for each in declared.values():
        yield _status_of(each, state, now, is_added=False)
    for name, data in runtime.added.items():
        if name in declared:
            problem = "hidden by the declared one of this name"
        else:
            try:
                yield _status_of(added_from(data).scheduled(), state, now, is_added=True)
                continue
            except AmqpJobsError as error:
                problem = str(error)
        yield _broken(name, str(data.get("kind", "")), problem, runtime, is_added=True)
    for name in runtime.paused:
        if name not in declared and name not in runtime.added:
            yield _broken(name, "", "neither declared here nor added", runtime, is_added=False)


def _broken(name: str, kind: str, problem: str, runtime: Runtime, *, is_added: bool) -> ScheduleStatus:
    return ScheduleStatus(
        name=name,
        schedule="",
        kind=kind,
        misfire="",
        is_added=is_added,
        paused_since=runtime.paused.get(name),
        last_run=None,
        next_run=None,
        problem=problem,
    )


def _status_of(scheduled: Scheduled, state: State, now: datetime, *, is_added: bool) -> ScheduleStatus:
    mark, paused, problem = state.get(scheduled.name), state.runtime.paused.get(scheduled.name), ""
    if mark is None:
        problem = "no beat has seen it yet"
    elif mark.fingerprint != fingerprint_of(scheduled):
        problem = "beats follow another definition of it"
    since, last = (now, now) if mark is None or problem else (mark.anchor, mark.last)
    next_run: datetime | None = None
    if paused is None:
        try:
            next_run = find_next(anchor(scheduled.schedule, since, scheduled.name), last)
        except Exception as error:  # of a user's own schedule, most likely
            problem = f"it cannot say when it is due: {error!r}"
    return ScheduleStatus(
        name=scheduled.name,
        schedule=scheduled.definition,
        kind=scheduled.job_options.kind,
        misfire=scheduled.misfire,
        is_added=is_added,
        paused_since=paused,
        last_run=None if mark is None else mark.ran,
        next_run=next_run,
        lag=0.0 if next_run is None else max(0.0, (now - next_run).total_seconds()),
        problem=problem,
    )
