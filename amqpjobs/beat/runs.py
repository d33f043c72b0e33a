"""What a leader knows of the runs of its ticks, from the stream of notices it follows during its term.

Only of schedules whose overlap policy asks for it; they wait until it has read what was there
before. The first end of a tick's job counts, also where several services run its kind. A tick that
was started need not be published again, whoever did it.
"""

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime

from amqpjobs.amqp.runs import Notice, Word
from amqpjobs.beat.plan import Scheduled, Tick, tick_of
from amqpjobs.beat.state import State

#: Ticks of one schedule that are remembered as started before they are settled here.
REMEMBERED = 1000


class Ends:
    """Which runs have ended. `on_end` is called when the one is over that a schedule waits for."""

    def __init__(self, scheduled: Iterable[Scheduled], state: State) -> None:
        self._state = state
        self._known = dict[str, dict[datetime, bool]]()
        #: Set once any schedule asks.
        self.wanted = asyncio.Event()
        #: Whether all was taken that was there when the term began.
        self.is_current = False
        self.on_current: Callable[[], object] = lambda: None
        self.on_end: Callable[[Tick], object] = lambda tick: None
        for each in scheduled:
            self.watch(each)

    @property
    def is_behind(self) -> bool:
        """Whether a schedule asks, and what was there before is not yet read."""
        return self.wanted.is_set() and not self.is_current

    def watch(self, scheduled: Scheduled) -> None:
        """Hear of this one's runs, if its policy asks."""
        if scheduled.overlap != "allow":
            self._known.setdefault(scheduled.name, {})
            self.wanted.set()

    def since(self, now: datetime) -> datetime:
        """From when on notices matter."""
        marks = [self._state.get(name) for name in self._known]
        return min([now, *(mark.run.since for mark in marks if mark is not None and mark.run is not None)])

    def take(self, notice: Notice) -> None:
        """A notice came."""
        tick = tick_of(notice.tick)
        known = None if tick is None else self._known.get(tick.schedule)
        mark = None if tick is None else self._state.get(tick.schedule)
        if tick is None or known is None or mark is None:
            return
        if tick.instant > mark.last and len(known) < REMEMBERED:
            known[tick.instant] = known.get(tick.instant, False) or notice.word is Word.ENDED
        if notice.word is Word.ENDED and self._state.end(tick.schedule, tick.instant):
            self.on_end(tick)

    def set_current(self) -> None:
        """All was taken that was there."""
        self.is_current = True
        self.on_current()

    def has_started(self, tick: Tick) -> bool:
        """Whether a copy of it was started."""
        return tick.instant in self._known.get(tick.schedule, ())

    def has_ended(self, tick: Tick) -> bool:
        return self._known.get(tick.schedule, {}).get(tick.instant, False)

    def settled(self, tick: Tick) -> None:
        """It will not be asked for again, nor will those before it."""
        known = self._known.get(tick.schedule)
        if known:
            for instant in [each for each in known if each <= tick.instant]:
                del known[instant]
