"""The broker's time, and everything that waits for it: one heap for TTLs, expiries and retries.

Time can be moved. `Timers.advance` goes to each timer's own moment, in order, before it runs it, so that
what a timer sets (a message dead-lettered into the next queue with a TTL) fires in the same advance and at
its right time. Heartbeats are not here: a peer that is silent is silent in real time.
"""

import asyncio
import heapq
import time
from collections.abc import Callable
from itertools import count
from typing import Protocol


class Clock(Protocol):
    """Seconds since 1970, which never go back."""

    def now(self) -> float: ...

    def forward(self, moment: float) -> None:
        """Go to a moment that is not past."""
        ...

    @property
    def is_moving(self) -> bool:
        """Whether it goes on by itself."""
        ...


class RealClock:
    """The machine's time, plus how far it was moved."""

    is_moving = True

    def __init__(self) -> None:
        self._ahead = time.time() - time.monotonic()

    def now(self) -> float:
        return time.monotonic() + self._ahead

    def forward(self, moment: float) -> None:
        self._ahead += max(0.0, moment - self.now())


class VirtualClock:
    """Stands still until it is moved."""

    is_moving = False

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def forward(self, moment: float) -> None:
        self._now = max(self._now, moment)


class Timer:
    """Something to be done at a moment, unless it is cancelled before."""

    __slots__ = ("act", "at")

    def __init__(self, at: float, act: Callable[[], None]) -> None:
        self.at = at
        self.act: Callable[[], None] | None = act

    def cancel(self) -> None:
        self.act = None

    @property
    def is_waiting(self) -> bool:
        return self.act is not None


#: Cancelled timers are left in the heap until they are more than these and more than the others.
_LEFTOVERS = 1000


class Timers:
    """Runs what is due. With a moving clock `start` binds it to the running event loop."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0
        self._clean_at = _LEFTOVERS

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop if self.clock.is_moving else None
        self._set_alarm()

    def stop(self) -> None:
        self._loop = None
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    @property
    def size(self) -> int:
        """How many it remembers, some cancelled ones among them."""
        return len(self._heap)

    def now(self) -> float:
        return self.clock.now()

    @property
    def next_due(self) -> float | None:
        """The moment of the next one, if any waits."""
        while self._heap and not self._heap[0][2].is_waiting:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def at(self, moment: float, act: Callable[[], None]) -> Timer:
        """Have something done at a moment; at the same moment, in this order."""
        timer = Timer(moment, act)
        heapq.heappush(self._heap, (moment, next(self._numbers), timer))
        if len(self._heap) > self._clean_at:
            self._clean()
        if self._loop is not None and (self._alarm is None or moment < self._alarm_at):
            self._set_alarm()
        return timer

    def advance(self, seconds: float) -> None:
        """Move time on, and do what becomes due on the way."""
        self.advance_to(self.clock.now() + seconds)

    def advance_to(self, target: float) -> None:
        """The same, to a moment."""
        while self._heap and self._heap[0][0] <= target:
            moment, _, timer = heapq.heappop(self._heap)
            if timer.is_waiting:
                self.clock.forward(moment)
                self._run(timer)
        self.clock.forward(target)
        self._set_alarm()

    def run_due(self) -> None:
        """Do what is due now."""
        while self._heap and self._heap[0][0] <= self.clock.now():
            self._run(heapq.heappop(self._heap)[2])

    @staticmethod
    def _run(timer: Timer) -> None:
        act, timer.act = timer.act, None
        if act is not None:
            act()

    def _wake(self) -> None:
        self._alarm = None
        try:
            self.run_due()
        finally:  # one that fails must not stop the others
            self._set_alarm()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        due = self.next_due
        if self._loop is not None and due is not None:
            self._alarm_at = due
            self._alarm = self._loop.call_later(max(0.0, self._alarm_at - self.clock.now()), self._wake)

    def _clean(self) -> None:
        self._heap = [entry for entry in self._heap if entry[2].is_waiting]
        heapq.heapify(self._heap)
        self._clean_at = max(_LEFTOVERS, 2 * len(self._heap))
