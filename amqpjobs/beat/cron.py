"""Rules by the clock on the wall of a zone, in cron's old language.

When clocks change, we do what Vixie's cron does. A rule with a wildcard in its hours, minutes or seconds
follows elapsed time: whatever the wall shows counts, each time. One that names its times fires once for
each: at the first of two, and for a time that does not exist, at the next valid instant.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from amqpjobs.beat.fields import Fields, read_fields
from amqpjobs.beat.refined import Refinable
from amqpjobs.beat.zone import EPOCH, SECOND, Piece, read_pieces, require_zone
from amqpjobs.errors import DefinitionError

#: Whether a rule can fire at all is tried from here on; it has no other meaning.
SOME_DAY = datetime(2024, 1, 1, tzinfo=UTC)
#: What zones did before is of no use to anybody, and Python's dates end.
FIRST_INSTANT = -2_208_988_800  # 1900


def cron(expression: str, *, timezone: str = "UTC", seconds: Literal["first", "last"] | None = None) -> "Cron":
    """When the clock on the wall fits: "0 9 * * mon-fri" is nine o'clock on working days.

    Five fields, or a nickname such as @hourly; or six, if `seconds` says where they stand. See
    docs/schedules.md for the language, and for what happens when clocks change. Raises DefinitionError
    for a wrong expression, an unknown zone, and a rule that can never fire.
    """
    require_zone(timezone)
    rule = Cron(read_fields(expression, seconds), timezone)
    if rule.next_after(SOME_DAY) is None:
        raise DefinitionError(
            f"{expression!r} can never fire in {timezone}: no day and time fits all its fields. "
            "Is a day named that its month does not have, or an hour that clocks skip on that day?"
        )
    return rule


@dataclass(frozen=True, slots=True)
class Cron(Refinable):
    """Made by `cron`."""

    fields: Fields
    timezone: str

    def next_after(self, instant: datetime) -> datetime | None:
        """None: not in the next fifty years."""
        now = max((instant - EPOCH) // SECOND, FIRST_INSTANT)
        for piece in read_pieces(self.timezone, now):
            found = self._find_in(piece, now)
            if found is not None:
                return EPOCH + timedelta(seconds=found)
        return None

    def _find_in(self, piece: Piece, now: int) -> int | None:
        wall = max(now + 1, piece.start) + piece.offset
        if not self.fields.is_wild:
            if now < piece.start and self._fits_skipped(piece):
                return piece.start
            wall = max(wall, piece.seen)
        found = self.fields.find_next(wall)
        return None if found is None or found >= piece.end + piece.offset else found - piece.offset

    def _fits_skipped(self, piece: Piece) -> bool:
        """Whether a time that the clock jumped over just before this piece fits."""
        wall = piece.start + piece.offset
        found = self.fields.find_next(piece.seen) if piece.seen < wall else None
        return found is not None and found < wall

    def __str__(self) -> str:
        return f"cron {self.fields.text} {self.timezone}"
