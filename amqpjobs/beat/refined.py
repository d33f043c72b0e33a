"""Schedules made of schedules: some instants left out, bounded, counted, spread, or several in one.

Each is asked by `find_next`, so that a user's own schedule can stand inside. All of them are plain functions
of what stands inside: `limited` counts instants since a start, not runs, for runs would need a memory.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from hashlib import blake2b
from typing import Self

from amqpjobs.beat.exclusion import Calendar, Exclusion, exclude
from amqpjobs.beat.schedule import RESOLUTION, Schedule, anchor, describe, find_next, require_instant, zone_of
from amqpjobs.clock import Seconds, in_seconds
from amqpjobs.errors import DefinitionError

#: So many instants on end may be left out.
LONGEST_EXCEPTION = 100_000
#: As far as `limited` counts; each of them is looked up once.
HIGHEST_LIMIT = 10_000


class Refinable(ABC):
    """What each schedule of ours can do besides being asked."""

    __slots__ = ()

    @abstractmethod
    def next_after(self, instant: datetime) -> datetime | None:
        """The first instant strictly later than this one, or None: never again."""

    def anchored(self, at: datetime, name: str = "") -> Self:
        """This schedule as first seen at this instant, under this name; most do not care."""
        return self

    def except_on(self, *exceptions: "date | Calendar | Schedule", timezone: str | None = None) -> "Excepted":
        """This schedule without these days, and without the instants of these schedules.

        A day is a `date`, or a function of a date that says True, such as a calendar of holidays; it is
        a day in the schedule's own zone unless `timezone` names another one.
        """
        return Excepted(self, exclude(exceptions, timezone or zone_of(self)))

    def between(self, start: datetime | None = None, end: datetime | None = None) -> "Between":
        """This schedule from `start` on, and before `end`."""
        return Between(self, start, end)

    def limited(self, times: int, *, start: datetime | None = None) -> "Limited":
        """The first so many instants from `start` on, by default from when a beat first saw the schedule.

        Instants are counted, whether or not their jobs could be enqueued. At most 10,000.
        """
        return Limited(self, times, start)

    def jittered(self, seconds: Seconds) -> "Jittered":
        """Each instant later by up to so many seconds, never past the next one.

        How much is drawn from a hash of the schedule's name, its text and the instant: each beat draws
        the same, and schedules of different names are spread.
        """
        return Jittered(self, timedelta(seconds=in_seconds(seconds)))


def any_of(*schedules: Schedule) -> "AnyOf":
    """Due whenever one of these is; once, if several are at the same instant.

    With one schedule of your own, `any_of(mine)` gives it the refinements that ours have.
    """
    return AnyOf(schedules)


@dataclass(frozen=True, slots=True)
class AnyOf(Refinable):
    schedules: tuple[Schedule, ...]

    def __post_init__(self) -> None:
        if not self.schedules:
            raise DefinitionError("any_of() needs at least one schedule, as in any_of(every(60), at(noon)).")
        str(self)

    def next_after(self, instant: datetime) -> datetime | None:
        found = [find_next(each, instant) for each in self.schedules]
        return min((each for each in found if each is not None), default=None)

    def anchored(self, at: datetime, name: str = "") -> Self:
        return replace(self, schedules=tuple(anchor(each, at, name) for each in self.schedules))

    @property
    def timezone(self) -> str:
        """The zone that all of them share, else UTC."""
        zones = {zone_of(each) for each in self.schedules}
        return zones.pop() if len(zones) == 1 else "UTC"

    def __str__(self) -> str:
        return f"any of ({'; '.join(describe(each) for each in self.schedules)})"


@dataclass(frozen=True, slots=True)
class Excepted(Refinable):
    inner: Schedule
    exclusion: Exclusion

    def __post_init__(self) -> None:
        str(self)

    def next_after(self, instant: datetime) -> datetime | None:
        for _ in range(LONGEST_EXCEPTION):
            found = find_next(self.inner, instant)
            passed = None if found is None else self.exclusion.find_end(found)
            if passed is None:
                return found
            instant = passed
        raise DefinitionError(
            f"{self} leaves out {LONGEST_EXCEPTION} instants on end, up to {instant.isoformat()}. "
            "Leave out less, or days by their date."
        )

    def anchored(self, at: datetime, name: str = "") -> Self:
        return replace(self, inner=anchor(self.inner, at, name), exclusion=self.exclusion.anchored(at, name))

    @property
    def timezone(self) -> str:
        return zone_of(self.inner)

    def __str__(self) -> str:
        return f"{describe(self.inner)} except on {self.exclusion}"


@dataclass(frozen=True, slots=True)
class Between(Refinable):
    inner: Schedule
    start: datetime | None
    end: datetime | None

    def __post_init__(self) -> None:
        start, end = _bound("The start", self.start), _bound("The end", self.end)
        if start is None and end is None:
            raise DefinitionError("between() needs a start or an end.")
        if start is not None and end is not None and end <= start:
            raise DefinitionError(f"between() ends at {end.isoformat()}, not after its start at {start.isoformat()}.")
        str(self)

    def next_after(self, instant: datetime) -> datetime | None:
        since = instant if self.start is None else max(instant, self.start - RESOLUTION)
        found = find_next(self.inner, since)
        return None if found is None or (self.end is not None and found >= self.end) else found

    def anchored(self, at: datetime, name: str = "") -> Self:
        return replace(self, inner=anchor(self.inner, at, name))

    @property
    def timezone(self) -> str:
        return zone_of(self.inner)

    def __str__(self) -> str:
        start = "" if self.start is None else f" from {_text(self.start)}"
        end = "" if self.end is None else f" until {_text(self.end)}"
        return f"{describe(self.inner)}{start}{end}"


@dataclass(frozen=True, slots=True)
class Limited(Refinable):
    inner: Schedule
    times: int
    start: datetime | None
    anchor: datetime | None = None
    #: The last one, if there are so many.
    last: datetime | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if not 1 <= self.times <= HIGHEST_LIMIT:
            raise DefinitionError(
                f"limited() takes 1 to {HIGHEST_LIMIT} times, not {self.times!r}; use between(end=…)."
            )
        _bound("The start of limited()", self.start)
        str(self)
        # Looked up once, and again when an anchor moves it.
        object.__setattr__(self, "last", self._find_last())

    def next_after(self, instant: datetime) -> datetime | None:
        found = find_next(self.inner, self._since(instant))
        return None if found is None or (self.last is not None and found > self.last) else found

    def anchored(self, at: datetime, name: str = "") -> Self:
        return replace(self, inner=anchor(self.inner, at, name), anchor=at)

    @property
    def timezone(self) -> str:
        return zone_of(self.inner)

    def _since(self, instant: datetime) -> datetime:
        first = self.start or self.anchor
        return instant if first is None else max(instant, first - RESOLUTION)

    def _find_last(self) -> datetime | None:
        """None also before it is anchored: nobody knows yet where to count from."""
        found = self.start or self.anchor
        if found is None:
            return None
        found -= RESOLUTION
        for _ in range(self.times):
            following = find_next(self.inner, found)
            if following is None:
                return None
            found = following
        return found

    def __str__(self) -> str:
        start = "first seen" if self.start is None else _text(self.start)
        return f"{describe(self.inner)} {self.times} times from {start}"


@dataclass(frozen=True, slots=True)
class Jittered(Refinable):
    inner: Schedule
    most: timedelta
    name: str = ""

    def __post_init__(self) -> None:
        if self.most < RESOLUTION:
            raise DefinitionError(f"jittered() needs more than 0 seconds, not {self.most.total_seconds():g}.")
        str(self)

    def next_after(self, instant: datetime) -> datetime | None:
        base = find_next(self.inner, self._look_back(instant))
        while base is not None:
            following = find_next(self.inner, base)
            moved = base + self._shift(base, following)
            if moved > instant:
                return moved
            base = following
        return None

    def anchored(self, at: datetime, name: str = "") -> Self:
        return replace(self, inner=anchor(self.inner, at, name), name=name)

    @property
    def timezone(self) -> str:
        return zone_of(self.inner)

    def _look_back(self, instant: datetime) -> datetime:
        """An instant from which on none is missed that may be moved past `instant`.

        None is moved as far as the next one, so that it is enough to have one that is not later than
        `instant`. Growing steps find it, for there may be one a day or a thousand a second.
        """
        back = min(self.most, timedelta(milliseconds=1))
        while back < self.most:
            found = find_next(self.inner, instant - back)
            if found is not None and found <= instant:
                break
            back = min(back * 8, self.most)
        return instant - back

    def _shift(self, base: datetime, following: datetime | None) -> timedelta:
        room = self.most if following is None else min(self.most, following - base)
        text = f"{self.name}\n{describe(self.inner)}\n{_text(base)}"
        share = int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
        return RESOLUTION * (share * (room // RESOLUTION) >> 64)

    def __str__(self) -> str:
        return f"{describe(self.inner)} jittered by {self.most.total_seconds():g} s"


def _bound(what: str, value: datetime | None) -> datetime | None:
    return None if value is None else require_instant(what, value)


def _text(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat()
