"""What a schedule leaves out: days, and instants of other schedules."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Self
from zoneinfo import ZoneInfo

from amqpjobs.beat.schedule import RESOLUTION, Schedule, anchor, describe, find_next
from amqpjobs.beat.zone import require_zone
from amqpjobs.errors import DefinitionError

#: Whether a day is left out: given the local date.
Calendar = Callable[[date], bool]


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Days as dates or by calendars, in a zone, and schedules whose instants are left out."""

    dates: frozenset[date]
    calendars: tuple[Calendar, ...]
    schedules: tuple[Schedule, ...]
    timezone: str

    def find_end(self, instant: datetime) -> datetime | None:
        """The last instant that is left out together with this one, or None: it is not left out."""
        zone = ZoneInfo(self.timezone)
        day = instant.astimezone(zone).date()
        if day in self.dates or any(calendar(day) for calendar in self.calendars):
            midnight = datetime.combine(day + timedelta(days=1), time(), zone).astimezone(UTC)
            return max(instant, midnight - RESOLUTION)
        if any(find_next(each, instant - RESOLUTION) == instant for each in self.schedules):
            return instant
        return None

    def anchored(self, at: datetime, name: str) -> Self:
        return replace(self, schedules=tuple(anchor(each, at, name) for each in self.schedules))

    def __str__(self) -> str:
        days = [*(day.isoformat() for day in sorted(self.dates)), *(_name(each) for each in self.calendars)]
        where = [f"{', '.join(days)} {self.timezone}"] if days else []
        return ", ".join([*where, *(f"({describe(each)})" for each in self.schedules)])


def exclude(exceptions: Sequence[date | Calendar | Schedule], timezone: str) -> Exclusion:
    """Sort out what is what. Raises DefinitionError for an instant, an unknown zone, or nothing at all."""
    require_zone(timezone)
    if not exceptions:
        raise DefinitionError("except_on() needs a date, a calendar or a schedule to leave out.")
    dates, calendars, schedules = set[date](), list[Calendar](), list[Schedule]()
    for each in exceptions:
        if isinstance(each, datetime):
            raise DefinitionError(
                f"except_on() leaves out days, and {each.isoformat()} is an instant. "
                "Use its .date(), or at(…) to leave out that instant alone."
            )
        if isinstance(each, date):
            dates.add(each)
        elif isinstance(each, Schedule):
            schedules.append(each)
        else:
            calendars.append(each)
    return Exclusion(frozenset(dates), tuple(calendars), tuple(schedules), timezone)


def _name(calendar: Calendar) -> str:
    """Where a function is defined; never its address, which differs in every process."""
    named = calendar if hasattr(calendar, "__qualname__") else type(calendar)
    return f"{named.__module__}.{named.__qualname__}"
