"""The fields of a cron expression, and the next time on the wall that fits them.

croniter reads the expression. It does not walk: it takes some 100 µs a step, and what it does when clocks
change is not what we promise. Walls are whole seconds, as in `zone`.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from croniter import croniter

from amqpjobs.beat.zone import DAY, YEARS_AHEAD
from amqpjobs.errors import DefinitionError

NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
#: In the order of five fields, with seconds last; and how many values each has.
NAMES = {"minutes": 60, "hours": 24, "days of the month": 31, "months": 12, "days of the week": 7, "seconds": 60}
ORDINAL = date(1970, 1, 1).toordinal()


@dataclass(frozen=True, slots=True)
class Days:
    """Which days fit."""

    months: frozenset[int]
    days: frozenset[int]
    #: The last day of the month.
    last: bool
    #: Working days (Monday to Friday) nearest to these days of the month.
    nearest: frozenset[int]
    #: From Sunday, 0.
    weekdays: frozenset[int]
    #: Only some of a weekday in a month: (weekday, 1 to 5, or 0 for the last).
    nth: frozenset[tuple[int, int]]
    any_day: bool
    any_weekday: bool

    def find_next(self, day: int) -> int | None:
        """The first day that fits, from this one on, in days since the epoch; None: not in fifty years."""
        if self.any_day and self.any_weekday and len(self.months) == 12:
            return day
        try:
            found = date.fromordinal(ORDINAL + day)
            end = found.replace(year=found.year + YEARS_AHEAD, day=1)
            while found < end:
                if found.month not in self.months:
                    found = (found.replace(day=1) + timedelta(days=32)).replace(day=1)
                elif self._fits(found):
                    return found.toordinal() - ORDINAL
                else:
                    found += timedelta(days=1)
        except (OverflowError, ValueError):  # beyond the year 9999
            pass
        return None

    def _fits(self, day: date) -> bool:
        """Where both kinds of days are restricted, either is enough: cron's oldest surprise."""
        if self.any_weekday:
            return self.any_day or self._fits_month(day)
        if self.any_day:
            return self._fits_week(day)
        return self._fits_month(day) or self._fits_week(day)

    def _fits_month(self, day: date) -> bool:
        if day.day in self.days:
            return True
        if self.last and (day + timedelta(days=1)).day == 1:
            return True
        return any(_find_working_day(day, wanted) == day for wanted in self.nearest)

    def _fits_week(self, day: date) -> bool:
        weekday = day.isoweekday() % 7
        if weekday in self.weekdays:
            return True
        is_last = (day + timedelta(days=7)).month != day.month
        return (weekday, (day.day + 6) // 7) in self.nth or (is_last and (weekday, 0) in self.nth)


@dataclass(frozen=True, slots=True)
class Fields:
    """A cron expression, read."""

    #: Its canonical text: six fields begin with the seconds.
    text: str
    days: Days
    hours: tuple[int, ...]
    minutes: tuple[int, ...]
    seconds: tuple[int, ...]
    #: Hours, minutes or seconds have a wildcard: the rule follows elapsed time.
    is_wild: bool

    def find_next(self, wall: int) -> int | None:
        """The first wall that fits, from this one on; None: not in fifty years."""
        today, second = divmod(wall, DAY)
        day = self.days.find_next(today)
        if day is not None and day == today:
            found = self._find_in_day(second)
            if found is not None:
                return day * DAY + found
            day = self.days.find_next(today + 1)
        return None if day is None else day * DAY + self.hours[0] * 3600 + self.minutes[0] * 60 + self.seconds[0]

    def _find_in_day(self, wanted: int) -> int | None:
        minute, second = divmod(wanted, 60)
        hour, minute = divmod(minute, 60)
        if hour in self.hours:
            if minute in self.minutes and second <= self.seconds[-1]:
                return wanted - second + self.seconds[bisect_left(self.seconds, second)]
            if minute < self.minutes[-1]:
                return hour * 3600 + self.minutes[bisect_left(self.minutes, minute + 1)] * 60 + self.seconds[0]
        if hour < self.hours[-1]:
            return self.hours[bisect_left(self.hours, hour + 1)] * 3600 + self.minutes[0] * 60 + self.seconds[0]
        return None


def read_fields(expression: str, seconds: Literal["first", "last"] | None) -> Fields:
    """Raises DefinitionError for what is no cron expression, or not what it seems to be."""
    words = _split(expression, seconds)
    for (name, size), word in zip(NAMES.items(), words, strict=False):
        _check(expression, name, size, word)
    try:
        read = croniter(" ".join(words))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DefinitionError(
            f"{expression!r} is no cron expression: {error}. "
            "It has five fields, minute, hour, day of the month, month and day of the week: '0 9 * * mon-fri'."
        ) from error
    values = [[str(value) for value in field] for field in read.expanded]
    minutes, hours = _numbers(values[0], 0, 60), _numbers(values[1], 0, 24)
    nth = frozenset(
        (int(weekday), int(each) if str(each).isdecimal() else 0)
        for weekday, some in read.nth_weekday_of_month.items()
        for each in some
    )
    return Fields(
        text=" ".join([*words[5:], *words[:5]]),
        days=Days(
            months=frozenset(_numbers(values[3], 1, 13)),
            days=frozenset(_numbers(values[2], 1, 32)) - read.nearest_weekday,
            last="l" in values[2],
            nearest=frozenset(read.nearest_weekday),
            weekdays=frozenset(_numbers(values[4], 0, 7)) - {weekday for weekday, _ in nth},
            nth=nth,
            any_day="*" in values[2],
            any_weekday="*" in values[4] and not nth,
        ),
        hours=hours,
        minutes=minutes,
        seconds=_numbers(values[5], 0, 60) if len(values) > 5 else (0,),
        is_wild=len(hours) == 24 or len(minutes) == 60 or any(_is_wild(each) for each in [*words[:2], *words[5:]]),
    )


def _split(expression: str, seconds: Literal["first", "last"] | None) -> list[str]:
    """The fields, seconds last if there are any."""
    words = NICKNAMES.get(expression.strip().lower(), expression).lower().split()
    if words and words[0].startswith("@"):
        raise DefinitionError(f"There is no nickname {expression!r}. There are {', '.join(NICKNAMES)}.")
    if len(words) == 6 and seconds is None:
        raise DefinitionError(
            f"{expression!r} has six fields, and programs differ in where the seconds stand. "
            "Say cron(…, seconds='first') or cron(…, seconds='last')."
        )
    if len(words) != (5 if seconds is None else 6):
        raise DefinitionError(
            f"{expression!r} has {len(words)} fields. Use five, minute, hour, day of the month, month and day of the "
            "week, or six with seconds='first' or 'last'. There are no years: use .between(start, end)."
        )
    return [*words[1:], words[0]] if seconds == "first" else words


def _check(expression: str, name: str, size: int, word: str) -> None:
    """What croniter accepts, and takes for something else than is written, or draws anew in each process."""
    for part in word.split(","):
        if re.match(r"[hr](\W|$)", part):
            raise DefinitionError(
                f"{part!r} in {expression!r} is drawn by chance, and each beat would draw its own. "
                "Write a number, and spread with .jittered(seconds)."
            )
        bounds, _, step = part.partition("/")
        low, _, high = bounds.partition("-")
        if high and low == high:
            raise DefinitionError(f"The range {bounds!r} of {name} in {expression!r} is one value: write {low!r}.")
        if step.isdecimal() and int(step) >= size:
            raise DefinitionError(
                f"The step of {part!r} in {expression!r} is too wide: there are {size} {name}, and each hour, day or "
                "week begins anew. Use every(seconds) for an interval."
            )


def _is_wild(word: str) -> bool:
    """`*`, `*/5`, and `0/5`, which means the same; not `9-17/2`, which names hours."""
    return any(part.startswith("*") or ("/" in part and "-" not in part) for part in word.split(","))


def _numbers(values: Sequence[str], low: int, end: int) -> tuple[int, ...]:
    if "*" in values:
        return tuple(range(low, end))
    return tuple(sorted(int(value) for value in values if value.isdecimal()))


def _find_working_day(day: date, wanted: int) -> date:
    """The Monday to Friday nearest to this day of the month, and in the same month."""
    first = day.replace(day=1)
    last = (first + timedelta(days=32)).replace(day=1) - timedelta(days=1)
    found = first.replace(day=min(wanted, last.day))
    if found.weekday() == 5:
        return found + timedelta(days=-1 if found > first else 2)
    if found.weekday() == 6:
        return found + timedelta(days=1 if found < last else -2)
    return found
