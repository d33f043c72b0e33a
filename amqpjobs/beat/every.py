"""Intervals, and a single instant.

An interval is counted from an origin by whole numbers, never from the last run, so that nothing drifts:
from the epoch by default, so that all processes agree and a minute begins at :00.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Self

from amqpjobs.beat.refined import Refinable
from amqpjobs.beat.schedule import require_instant
from amqpjobs.clock import Seconds, in_seconds
from amqpjobs.errors import DefinitionError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Below this nobody could keep up.
SHORTEST = timedelta(milliseconds=1)
LONGEST = timedelta(days=36525)


def every(span: Seconds, *, start: datetime | None = None, from_start: bool = False, at_start: bool = False) -> "Every":
    """Each so many seconds (0.001 to a hundred years), in real time: zones and their changes do not matter.

    Aligned to the epoch: `every(3600)` is due on each full hour of UTC. With `start`, at that instant and from
    then on. With `from_start`, counted from when a beat first saw the schedule, and with `at_start` also right
    then. Raises DefinitionError.
    """
    return Every(_interval(span), None if start is None else require_instant("The start", start), from_start, at_start)


def at(instant: datetime) -> "At":
    """Once, at this aware instant. Raises DefinitionError if it has no time zone."""
    return At(require_instant("What at() takes", instant))


@dataclass(frozen=True, slots=True)
class Every(Refinable):
    interval: timedelta
    start: datetime | None
    from_start: bool
    at_start: bool
    anchor: datetime | None = None

    def __post_init__(self) -> None:
        if self.start is not None and self.from_start:
            raise DefinitionError("every() takes a start, or from_start, not both: each says what to count from.")
        if self.at_start and not self.from_start:
            raise DefinitionError("at_start goes with from_start=True: other schedules do not know when they started.")

    def next_after(self, instant: datetime) -> datetime | None:
        """Before it is anchored, one that counts from its start counts from `instant`."""
        origin = self.start or self.anchor
        if origin is None:
            origin = instant if self.from_start else EPOCH
        elif instant < origin:
            return origin if self.start or self.at_start else origin + self.interval
        try:
            return origin + ((instant - origin) // self.interval + 1) * self.interval
        except OverflowError:
            return None

    def anchored(self, at: datetime, name: str = "") -> Self:
        return replace(self, anchor=at) if self.from_start else self

    def __str__(self) -> str:
        origin = ""
        if self.start is not None:
            origin = f" from {self.start.isoformat()}"
        elif self.from_start:
            origin = " from first seen, at once" if self.at_start else " from first seen"
        return f"every {self.interval.total_seconds():.15g} s{origin}"


@dataclass(frozen=True, slots=True)
class At(Refinable):
    instant: datetime

    def next_after(self, instant: datetime) -> datetime | None:
        return self.instant if self.instant > instant else None

    def __str__(self) -> str:
        return f"at {self.instant.isoformat()}"


def _interval(span: Seconds) -> timedelta:
    seconds = in_seconds(span)
    if not SHORTEST.total_seconds() <= seconds <= LONGEST.total_seconds():
        raise DefinitionError(f"every() takes 0.001 s to a hundred years, not {seconds!r} s.")
    return timedelta(seconds=seconds)
