"""A term: what a leader does from the moment it leads until it no longer does.

A heap holds when each schedule is due next. Whatever is due is published in tasks of their own,
so that a tick that fails or takes long holds up no other schedule; the ticks of one schedule go
one after the other. A tick is settled when its job is confirmed, and written down right after;
a beat that dies in between leaves it to the next one, which publishes it again under the same id.

The time of day decides, not the time passed, and it may jump. So no sleep is longer than a nap.
A jump forward makes ticks late, and the policies of their schedules say what follows. A jump back
lets schedules wait until it is their time again, at most for an hour (see `state.py`).
"""

import asyncio
import contextlib
import heapq
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count

from amqpjobs.beat.plan import Scheduled, Tick, due
from amqpjobs.beat.schedule import Schedule, anchor, find_next
from amqpjobs.beat.state import Keeper, State
from amqpjobs.clock import Clock, end_task
from amqpjobs.events import (
    ClockWentBack,
    Event,
    Events,
    ScheduleFailed,
    StateNotKept,
    TickFailed,
    TickPublished,
    TicksSkipped,
)

#: Ticks that are published at once.
LANES = 200
#: Seconds after which the clock is looked at again, whatever is due.
NAP = 1.0
#: Seconds until a tick that failed is tried again: 0.5, 1, 2 … and no longer than the last.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
#: Seconds until a schedule is asked again that raised, and until the state is written again.
PAUSE = 5.0
#: Seconds for one write of the state.
KEEP_WITHIN = 10.0
#: Schedules asked before others may go on.
BATCH = 100

Publish = Callable[[Scheduled, Tick], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Entry:
    """One schedule, and how far it is."""

    scheduled: Scheduled
    schedule: Schedule
    number: int
    #: What is to be published now, oldest first.
    ticks: deque[datetime] = field(default_factory=deque[datetime])
    failures: int = 0
    #: Nothing of it is published any more.
    is_out: bool = False


class Term:
    """Publishes the ticks of schedules while it runs."""

    def __init__(
        self,
        app: str,
        scheduled: Sequence[Scheduled],
        state: State,
        *,
        clock: Clock,
        events: Events,
        publish: Publish,
        keeper: Keeper,
        nap: float = NAP,
    ) -> None:
        """`state` has taken up these schedules; `publish` bounds how long it takes, or raises."""
        self._app = app
        self._state = state
        self._clock = clock
        self._events = events
        self._publish = publish
        self._keeper = keeper
        self._nap = nap
        self._entries = dict[str, _Entry]()
        self._numbers = count()
        for each in scheduled:
            self._enter(each)
        #: When to look at whom; the number decides among equals, since entries have no order.
        self._heap: list[tuple[datetime, int, _Entry]] = []
        self._publishing = set[asyncio.Task[None]]()
        self._news = asyncio.Event()
        self._unkept = asyncio.Event()
        self._is_filled = False
        self._is_stopping = False
        self._seen = clock.now()

    async def run(self) -> None:
        """Until `stop`; what is being published then is waited for, and written down."""
        await self._fill()
        keeping = asyncio.create_task(self._keep(), name="amqpjobs beat state")
        try:
            while not self._is_stopping:
                self._notice_jump()
                self._begin_due()
                await self._rest()
            if self._publishing:
                await asyncio.wait(self._publishing)
        finally:
            for task in [*self._publishing, keeping]:
                await end_task(task)
        await self._keep_once()

    def stop(self) -> None:
        """Begin nothing more."""
        self._is_stopping = True
        self._news.set()

    def admit(self, scheduled: Scheduled) -> None:
        """Follow one more; the state has taken it up."""
        entry = self._enter(scheduled)
        if self._is_filled:  # else it is with the others
            self._push_next(entry)
            self._news.set()

    def dismiss(self, name: str) -> None:
        """Follow it no longer, if that was done; a tick that is just being published may still come."""
        entry = self._entries.pop(name, None)
        if entry is not None:
            entry.is_out = True

    def _enter(self, scheduled: Scheduled) -> _Entry:
        anchored = anchor(scheduled.schedule, self._state[scheduled.name].anchor, scheduled.name)
        entry = self._entries[scheduled.name] = _Entry(scheduled, anchored, next(self._numbers))
        return entry

    async def _fill(self) -> None:
        self._is_filled = True
        for entry in list(self._entries.values()):
            self._push_next(entry)
            if entry.number % BATCH == 0:
                await self._clock.sleep(0)

    def _notice_jump(self) -> None:
        """After the clock went back, ask anew when all are due that wait."""
        now, before = self._clock.now(), self._seen
        self._seen = max(now, before)
        if (before - now).total_seconds() <= self._nap:
            return
        self._seen = now
        if wrong := self._state.set_right(now):
            self._unkept.set()
            self._tell(ClockWentBack(wrong))
        waiting, self._heap = [entry for _, _, entry in self._heap], []
        for entry in waiting:
            self._push_next(entry)

    def _begin_due(self) -> None:
        now = self._clock.now()
        while self._heap and self._heap[0][0] <= now and len(self._publishing) < LANES:
            _, _, entry = heapq.heappop(self._heap)
            task = asyncio.create_task(self._fire(entry))
            self._publishing.add(task)
            task.add_done_callback(self._fired)

    def _fired(self, task: "asyncio.Task[None]") -> None:
        self._publishing.discard(task)
        self._news.set()

    async def _rest(self) -> None:
        """Until somebody is due, something was published, or the nap is over."""
        pause = self._nap
        if self._heap and len(self._publishing) < LANES:
            pause = min(pause, (self._heap[0][0] - self._clock.now()).total_seconds())
        if pause > 0:
            with contextlib.suppress(TimeoutError):
                async with self._clock.timeout(pause):
                    await self._news.wait()
        self._news.clear()

    async def _fire(self, entry: _Entry) -> None:
        """Publish the next tick of a schedule, if one is due, and say when to look at it again."""
        if entry.is_out:
            return
        try:
            self._decide(entry)
        except Exception as error:  # of a user's own schedule, most likely
            self._asked_in_vain(entry, error)
            return
        if not entry.ticks:
            self._push_next(entry)
            return
        tick = Tick(entry.scheduled.name, entry.ticks[0])
        try:
            await self._publish(entry.scheduled, tick)
        except Exception as error:  # whatever a middleware of the user's raises: no tick is forgotten
            self._failed(entry, tick, error)
        else:
            self._settle(entry, tick)

    def _decide(self, entry: _Entry) -> None:
        if entry.ticks:  # of a policy that publishes several, or of a try that failed
            return
        name = entry.scheduled.name
        last = self._state[name].last
        found = due(entry.scheduled, entry.schedule, last, self._clock.now())
        entry.ticks.extend(found.ticks)
        if found.settled is not None:
            self._tell(TicksSkipped(name, last, found.settled))
            self._settled(name, found.settled)

    def _settle(self, entry: _Entry, tick: Tick) -> None:
        entry.ticks.popleft()
        entry.failures = 0
        self._settled(tick.schedule, tick.instant)
        self._state.note_run(tick.schedule, tick.instant)
        late = (self._clock.now() - tick.instant).total_seconds()
        self._tell(TickPublished(tick.schedule, tick.instant, tick.job_id, late))
        self._push_next(entry)

    def _failed(self, entry: _Entry, tick: Tick, error: Exception) -> None:
        entry.failures += 1
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(entry.failures - 1, 16))
        self._tell(TickFailed(tick.schedule, tick.instant, tick.job_id, error, entry.failures, pause))
        self._push(entry, self._clock.now() + timedelta(seconds=pause))

    def _settled(self, name: str, instant: datetime) -> None:
        self._state.settle(name, instant)
        self._unkept.set()

    def _push_next(self, entry: _Entry) -> None:
        """When it is due next, at once while it has more to publish, and never where it is never due."""
        if entry.is_out:
            return
        if entry.ticks:
            self._push(entry, self._clock.now())
            return
        try:
            instant = find_next(entry.schedule, self._state[entry.scheduled.name].last)
        except Exception as error:
            self._asked_in_vain(entry, error)
            return
        if instant is not None:
            self._push(entry, instant)

    def _asked_in_vain(self, entry: _Entry, error: Exception) -> None:
        self._tell(ScheduleFailed(entry.scheduled.name, error, PAUSE))
        self._push(entry, self._clock.now() + timedelta(seconds=PAUSE))

    def _push(self, entry: _Entry, at: datetime) -> None:
        heapq.heappush(self._heap, (at, entry.number, entry))

    def _tell(self, event: Event) -> None:
        self._events.emit(event)

    # What was published is written down

    async def _keep(self) -> None:
        while True:
            await self._keep_once()
            await self._unkept.wait()

    async def _keep_once(self) -> None:
        """Write down all there is, however often that takes; while one write is under way, the next gathers."""
        self._unkept.clear()
        if self._state.is_kept:
            return
        try:
            async with self._clock.timeout(KEEP_WITHIN):
                await self._state.keep(self._keeper)
        except Exception as error:
            self._tell(StateNotKept(self._app, error, PAUSE))
            self._unkept.set()
            if not self._is_stopping:
                await self._clock.sleep(PAUSE)
