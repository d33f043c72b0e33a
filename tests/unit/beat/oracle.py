"""When a cron rule is due, found without any of our code: by looking at each minute there is.

Each minute of UTC is turned into local time by zoneinfo, and compared with fields that are read here. Only what
the rules for changed clocks say is known: a rule with a wildcard follows what the wall shows, another one is due
at the first of two equal times (`fold` tells), and where the wall jumps forward, for what it jumped over.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

MINUTE = timedelta(minutes=1)
ZONES = (
    "UTC",
    "Europe/Berlin",
    "Europe/Dublin",  # summer time is its standard time
    "America/New_York",
    "America/St_Johns",  # half an hour off, and until 2011 it changed at one minute past midnight
    "America/Sao_Paulo",  # changed at midnight, until 2019
    "Africa/Casablanca",  # four changes a year around Ramadan, then two
    "Asia/Kathmandu",
    "Australia/Lord_Howe",  # changes by half an hour
    "Pacific/Apia",  # had no 30 December 2011
)
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]


class Rule:
    """Five fields: numbers, names, ranges (also over the end), steps, lists."""

    def __init__(self, text: str) -> None:
        minute, hour, day, month, weekday = text.split()
        hours, minutes = read(hour, 0, 23), read(minute, 0, 59)
        self.times = {each * 60 + other for each in hours for other in minutes}
        self.is_wild = "*" in minute + hour or len(hours) == 24 or len(minutes) == 60
        months, days = read(month, 1, 12, MONTHS, first=1), read(day, 1, 31)
        weekdays = {each % 7 for each in read(weekday, 0, 7, WEEKDAYS)}

        @cache
        def fits_day(local: date) -> bool:
            by_day, by_weekday = local.day in days, (local.weekday() + 1) % 7 in weekdays
            either = by_day or by_weekday if "*" not in (day, weekday) else by_day and by_weekday
            return local.month in months and either

        self.fits_day: Callable[[date], bool] = fits_day

    def fits(self, wall: datetime) -> bool:
        return wall.hour * 60 + wall.minute in self.times and self.fits_day(wall.date())


def read(field: str, low: int, high: int, names: Sequence[str] = (), first: int = 0) -> set[int]:
    def number(word: str) -> int:
        return names.index(word) + first if word in names else int(word)

    found = set[int]()
    for part in field.split(","):
        bounds, _, step = part.partition("/")
        start, _, end = bounds.partition("-")
        if bounds == "*":
            found.update(range(low, high + 1, int(step or 1)))
        elif not end:
            found.add(number(start))
        elif number(start) <= number(end):
            found.update(range(number(start), number(end) + 1, int(step or 1)))
        else:
            found |= {*range(number(start), high + 1), *range(low, number(end) + 1)}
    return found


def find_due(rules: Sequence[Rule], zone: str, start: datetime, end: datetime) -> list[list[datetime]]:
    """For each rule, all its instants from `start` to before `end`."""
    due: list[list[datetime]] = [[] for _ in rules]
    local_zone = ZoneInfo(zone)
    at_time = [[number for number, rule in enumerate(rules) if time in rule.times] for time in range(24 * 60)]
    expected, instant = _wall(start - MINUTE, zone) + MINUTE, start
    while instant < end:
        local = instant.astimezone(local_zone)
        wall = local.replace(tzinfo=None, fold=0)
        fitting = {number for number in at_time[wall.hour * 60 + wall.minute] if rules[number].fits_day(wall.date())}
        if local.fold:
            fitting = {number for number in fitting if rules[number].is_wild}
        for skipped in _between(expected, wall):
            fitting |= {number for number, rule in enumerate(rules) if not rule.is_wild and rule.fits(skipped)}
        for number in fitting:
            due[number].append(instant)
        expected, instant = wall + MINUTE, instant + MINUTE
    return due


def find_jumps(zone: str, start: datetime, end: datetime) -> list[datetime]:
    """The midnights of UTC before its clocks change."""
    found, day = list[datetime](), start
    while day < end:
        following = day + timedelta(days=1)
        if day.astimezone(ZoneInfo(zone)).utcoffset() != following.astimezone(ZoneInfo(zone)).utcoffset():
            found.append(day)
        day = following
    return found


def make_rule(seed: str) -> str:
    """A rule by chance, the same for the same seed; dense ones are rare."""
    chance = random.Random(seed)
    minute = chance.choices([_number(chance, 0, 59), _some(chance, 0, 59), "*"], [5, 6, 0.3])[0]
    hour = chance.choices([_number(chance, 0, 4), _number(chance, 0, 23), _some(chance, 0, 23), "*"], [3, 2, 4, 2])[0]
    day = chance.choices(["*", _some(chance, 1, 31)], [3, 1])[0]
    month = chance.choices(["*", _some(chance, 1, 12), chance.choice(MONTHS), "mar-oct", "oct-mar"], [6, 1, 1, 1, 1])[0]
    weekday = chance.choices(["*", _some(chance, 0, 6), "mon-fri", "sat,sun", "fri-mon", "7"], [6, 1, 1, 1, 1, 1])[0]
    return f"{minute} {hour} {day} {month} {weekday}"


def _some(chance: random.Random, low: int, high: int) -> str:
    one, other = sorted(chance.sample(range(low, high + 1), 2))
    step = chance.randint(2, max(2, (high - low) // 2))
    forms = [f"{one},{other}", f"{one}-{other}", f"{one}-{other}/{step}", f"*/{step}", f"{other}-{one}"]
    return chance.choice(forms)


def _number(chance: random.Random, low: int, high: int) -> str:
    return str(chance.randint(low, high))


def _wall(instant: datetime, zone: str) -> datetime:
    return instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None, fold=0)


def _between(start: datetime, end: datetime) -> Iterator[datetime]:
    while start < end:
        yield start
        start += MINUTE


def utc(year: int, month: int = 1, day: int = 1, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
