"""What the clocks of a zone show, and when.

A zone is cut into pieces in which the clock is a constant number of seconds ahead of UTC. Between two pieces
it jumps: forward over times that do not exist, or back to times that it shows twice. Both are told by one
number, how far the clock had come before a piece began. Instants are whole seconds since the epoch in UTC;
*walls* are the same count of what a clock on the wall shows.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from amqpjobs.errors import DefinitionError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
DAY = 86400
#: A year's pieces are found by looking at each of its days: the rules of no zone changed twice in one.
#: Two more days before it, since a clock that was put back takes up to a day to come as far again.
BEFORE = 2 * DAY
#: A schedule looks as far ahead: February has five Mondays every 28 years, or after 40 around 2100.
YEARS_AHEAD = 50
LAST_YEAR = 9990
#: Years of zones that are kept, at some 500 bytes each.
KEPT = 4096


class Piece(NamedTuple):
    """A stretch of time in which the clock does not jump."""

    start: int
    #: The first instant that is not part of it.
    end: int
    #: Seconds ahead of UTC.
    offset: int
    #: All walls below this one had been shown, or skipped, before it started.
    seen: int


def require_zone(name: str) -> None:
    """Raises DefinitionError for a zone that nobody knows."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise DefinitionError(
            f"There is no time zone {name!r}. Use a name of the IANA database, such as 'Europe/Berlin' or 'UTC'."
        ) from error


def read_pieces(zone: str, instant: int) -> Iterator[Piece]:
    """The pieces that end after this instant, in order, some fifty years far. Joints may be no jumps."""
    year = _datetime(instant).year
    for each in range(year, min(year + YEARS_AHEAD, LAST_YEAR) + 1):
        for piece in _year(zone, each):
            if piece.end > instant:
                yield piece


@lru_cache(KEPT)
def _year(zone: str, year: int) -> tuple[Piece, ...]:
    first, end = _seconds(datetime(year, 1, 1, tzinfo=UTC)), _seconds(datetime(year + 1, 1, 1, tzinfo=UTC))
    return tuple(piece for piece in _cut(ZoneInfo(zone), first - BEFORE, end) if piece.end > first)


def _cut(zone: ZoneInfo, start: int, end: int) -> Iterator[Piece]:
    offset = _offset(zone, start)
    seen = start + offset
    for day in range(start, end, DAY):
        following = min(day + DAY, end)
        if _offset(zone, following) == offset:
            continue
        jump = _find_jump(zone, day, following)
        yield Piece(start, jump, offset, seen)
        seen = max(seen, jump + offset)
        start, offset = jump, _offset(zone, following)
    yield Piece(start, end, offset, seen)


def _find_jump(zone: ZoneInfo, before: int, after: int) -> int:
    """The first instant with the new offset."""
    new = _offset(zone, after)
    while after - before > 1:
        middle = (before + after) // 2
        before, after = (before, middle) if _offset(zone, middle) == new else (middle, after)
    return after


def _offset(zone: ZoneInfo, instant: int) -> int:
    return (_datetime(instant).astimezone(zone).utcoffset() or timedelta()) // SECOND


def _datetime(instant: int) -> datetime:
    return EPOCH + timedelta(seconds=instant)


def _seconds(instant: datetime) -> int:
    return (instant - EPOCH) // SECOND
