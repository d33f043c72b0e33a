"""Schedules of the simplest kind, and the ids their ticks have."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Each:
    """Each so many seconds since the epoch."""

    seconds: float

    def next_after(self, instant: datetime) -> datetime:
        span = timedelta(seconds=self.seconds)
        return EPOCH + ((instant - EPOCH) // span + 1) * span

    def __str__(self) -> str:
        return f"each {self.seconds:g} s"


def instant_of(job_id: str) -> datetime:
    """The instant in the id of a tick's job."""
    return datetime.fromisoformat(job_id.rpartition("@")[2])
