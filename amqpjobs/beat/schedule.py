"""What a schedule is, and how to ask one.

A schedule is a pure value. It knows no clock and no broker: asked for the next instant after another one,
it answers, and gives every beat the same answer. What to do when a clock jumps, or when an instant was
missed, is for whoever asks.

Schedules of ours are made by `cron`, `every`, `at` and `any_of`. A schedule of a user's own needs the two
methods of `Schedule` and no base class; because it may be wrong, it is asked by `find_next` only.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Protocol, runtime_checkable

from amqpjobs.errors import DefinitionError

#: The least step of an instant.
RESOLUTION = timedelta(microseconds=1)


@runtime_checkable
class Schedule(Protocol):
    """When a job is due. Anything that has these two methods will do."""

    def next_after(self, instant: datetime) -> datetime | None:
        """The first instant strictly later than this one, or None: never again.

        Takes and returns aware UTC. The same question has the same answer, today and in another process.
        """
        ...

    def __str__(self) -> str:
        """The definition as text, such as "every 60 s": equal for equal definitions, in every process.

        It is the fingerprint by which a beat tells a changed definition from a redeployed one.
        """
        ...


@runtime_checkable
class Anchorable(Protocol):
    """A schedule that may depend on when a beat first saw it, or on what it is called."""

    def anchored(self, at: datetime, name: str = "") -> Schedule:
        """This schedule as first seen at this instant, under this name."""
        ...


@runtime_checkable
class Zoned(Protocol):
    """A schedule that has days of its own, because it has a zone."""

    @property
    def timezone(self) -> str:
        """An IANA name, such as "Europe/Berlin"."""
        ...


def find_next(schedule: Schedule, instant: datetime) -> datetime | None:
    """Ask a schedule, and check what it says. Raises DefinitionError if it is no instant, or not a later one."""
    found = schedule.next_after(instant)
    if found is None:
        return None
    found = require_instant(f"What {schedule} gave", found)
    if found <= instant:
        raise DefinitionError(
            f"{schedule} gave {found.isoformat()} as the next instant after {instant.isoformat()}. "
            "next_after must return a later one, or None for never again."
        )
    return found


def anchor(schedule: Schedule, at: datetime, name: str = "") -> Schedule:
    """The schedule as a beat must ask it: first seen at this instant, under this name.

    The instant has to be kept, for it decides when `every(…, from_start=True)` is due and what
    `limited(…)` counts from; the name decides the jitter. The text of a schedule stays the same.
    Then `next_after(at - RESOLUTION)` gives the first instant, which may be `at` itself.
    """
    at = require_instant("An anchor", at)
    return schedule.anchored(at, name) if isinstance(schedule, Anchorable) else schedule


def preview(schedule: Schedule, after: datetime, limit: int) -> Iterator[datetime]:
    """The next instants after this one, at most so many."""
    after = require_instant("What to start after", after)
    for _ in range(limit):
        found = find_next(schedule, after)
        if found is None:
            return
        yield found
        after = found


def describe(schedule: Schedule) -> str:
    """Its text. Raises DefinitionError if it has none but Python's own, which differs in every process."""
    own = type(schedule)
    if own.__str__ is object.__str__ and own.__repr__ is object.__repr__:
        raise DefinitionError(
            f"The schedule {own.__qualname__} has no text, so nobody can tell whether its definition changed. "
            "Give it a __str__ that says what it does, such as 'at high tide in Cuxhaven'."
        )
    return str(schedule)


def require_instant(what: str, value: datetime) -> datetime:
    """The same instant in UTC. Raises DefinitionError if it is naive: nobody can tell what it means."""
    if value.utcoffset() is None:
        raise DefinitionError(
            f"{what} is {value.isoformat()}, which has no time zone. "
            "Use an aware datetime, such as datetime(2030, 1, 31, 9, tzinfo=ZoneInfo('Europe/Berlin'))."
        )
    return value.astimezone(UTC)


def zone_of(schedule: Schedule) -> str:
    """Whose days a schedule's days are: UTC's, if it has no zone."""
    return schedule.timezone if isinstance(schedule, Zoned) else "UTC"
