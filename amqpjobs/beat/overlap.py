"""What becomes of a schedule's ticks while the job of its last one is queued or running.

Pure: what is due, which run is open and what time it is go in, and what to do comes out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from amqpjobs.beat.plan import Scheduled, latest
from amqpjobs.beat.schedule import RESOLUTION, Schedule, find_next
from amqpjobs.beat.state import Mark


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the overlap policy makes of what is due; an empty one leaves all to the misfire policy."""

    #: Everything up to here is left out.
    left_out: datetime | None = None
    #: Nothing is published now: what is due waits until the run is over, or until then.
    waits_until: datetime | None = None
    #: What has waited and is to be published now, whatever the misfire policy says.
    ticks: Sequence[datetime] = ()
    #: The open run is taken for over, since nobody told of its end.
    is_presumed_over: bool = False


def judge(scheduled: Scheduled, schedule: Schedule, mark: Mark, now: datetime, *, has_waited: bool) -> Verdict:
    """`has_waited`: whether ticks were due before that had to wait for a run."""
    run = mark.open
    limit = None if run is None else run.since + timedelta(seconds=scheduled.overlap_limit)
    if limit is not None and now < limit:
        due = latest(schedule, mark.last, now, 1)
        if not due:
            return Verdict()
        return Verdict(left_out=due[0]) if scheduled.overlap == "skip" else Verdict(waits_until=limit)
    is_presumed_over = run is not None
    if scheduled.overlap == "skip" or not (has_waited or is_presumed_over):
        return Verdict(is_presumed_over=is_presumed_over)
    ticks = latest(schedule, mark.last, now, 1)
    is_first = not ticks or find_next(schedule, mark.last) == ticks[0]
    return Verdict(left_out=None if is_first else ticks[0] - RESOLUTION, ticks=ticks, is_presumed_over=is_presumed_over)
