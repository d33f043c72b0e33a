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

from amqpjobs.beat.overlap import judge
from amqpjobs.beat.plan import Scheduled, Tick, due
from amqpjobs.beat.runs import Ends
from amqpjobs.beat.schedule import Schedule, anchor, find_next
from amqpjobs.beat.state import Keeper, Run, State
from amqpjobs.clock import Clock, end_task
from amqpjobs.events import (
    ClockWentBack,
    Event,
    Events,
    RunOver,
    RunPresumedOver,
    ScheduleFailed,
    StateNotKept,
    TickFailed,
    TickFound,
    TickPublished,
    TicksOverlapped,
    TicksSkipped,
    TickWaiting,
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
#: Seconds after which a schedule is looked at again that waits for the end of a run.
LOOK_AGAIN = 60.0
#: Ticks up to so long after a term's begin may have been published before: the last leader's clock was another one.
SKEW = timedelta(seconds=5)

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
    #: Its place in the heap; older ones are void.
    turn: int = 0
    #: Whether ticks wait for the end of a run.
    is_waiting: bool = False
    #: Whether the last leader left a run open, so that ticks may have waited for its end.
    had_run: bool = False
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
        ends: Ends | None = None,
        nap: float = NAP,
    ) -> None:
        """`state` has taken up these schedules; `publish` bounds how long it takes, or raises.

        Without `ends` no run is known to have ended: for schedules that all allow overlaps.
        """
        self._app = app
        self._state = state
        self._clock = clock
        self._events = events
        self._publish = publish
        self._keeper = keeper
        self._nap = nap
        self._ends = ends
        if ends is not None:
            ends.on_end, ends.on_current = self._ended, self._caught_up
        #: Those that cannot decide before all ends are known that were told before the term.
        self._parked: list[_Entry] = []
        self._entries = dict[str, _Entry]()
        self._numbers = count()
        for each in scheduled:
            self._enter(each)
        #: When to look at whom; the number decides among equals, since entries have no order.
        self._heap: list[tuple[datetime, int, int, _Entry]] = []
        self._turns = count(1)
        self._publishing = set[asyncio.Task[None]]()
        self._news = asyncio.Event()
        self._unkept = asyncio.Event()
        self._is_stopping = False
        self._has_begun = self._is_filled = False
        self._is_writing = False
        self._seen = self._begun = clock.now()

    @property
    def is_busy(self) -> bool:
        """Whether ticks are on their way, or being written down: what goes on though no time passes."""
        is_behind = self._ends is not None and self._ends.is_behind
        return bool(self._publishing) or self._is_writing or is_behind or not self._is_filled

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
        if self._ends is not None:
            self._ends.watch(scheduled)
        if self._has_begun:  # else it is with the others
            self._push_next(entry)
            self._news.set()

    def dismiss(self, name: str) -> None:
        """Follow it no longer, if that was done; a tick that is just being published may still come."""
        entry = self._entries.pop(name, None)
        if entry is not None:
            entry.is_out = True

    def _enter(self, scheduled: Scheduled) -> _Entry:
        name, mark = scheduled.name, self._state[scheduled.name]
        anchored = anchor(scheduled.schedule, mark.anchor, name)
        entry = self._entries[name] = _Entry(scheduled, anchored, next(self._numbers), had_run=mark.open is not None)
        return entry

    async def _fill(self) -> None:
        self._has_begun = True
        for entry in list(self._entries.values()):
            self._push_next(entry)
            if entry.number % BATCH == 0:
                await self._clock.sleep(0)
        self._is_filled = True

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
        waiting, self._heap = [entry for _, _, turn, entry in self._heap if turn == entry.turn], []
        for entry in waiting:
            self._push_next(entry)

    def _begin_due(self) -> None:
        now = self._clock.now()
        while self._heap and self._heap[0][0] <= now and len(self._publishing) < LANES:
            _, _, turn, entry = heapq.heappop(self._heap)
            if turn != entry.turn:
                continue
            entry.turn = 0
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
            if entry.scheduled.overlap != "allow" and not self._passes(entry):
                return
            self._decide(entry)
        except Exception as error:  # of a user's own schedule, most likely
            self._asked_in_vain(entry, error)
            return
        if not entry.ticks:
            self._push_next(entry)
            return
        instant = entry.ticks[0]
        is_doubtful = entry.failures > 0 or instant <= self._begun + SKEW
        tick = Tick(entry.scheduled.name, instant, is_doubtful)
        if entry.scheduled.overlap != "allow" and self._is_known(entry, tick):
            return
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

    # Ticks that overlap with the run of the last one

    def _passes(self, entry: _Entry) -> bool:
        """Whether the overlap policy lets something be published now."""
        if self._ends is not None and not self._ends.is_current:
            self._parked.append(entry)
            return False
        name, mark, now = entry.scheduled.name, self._state[entry.scheduled.name], self._clock.now()
        has_waited = entry.is_waiting or entry.had_run
        verdict = judge(entry.scheduled, entry.schedule, mark, now, has_waited=has_waited)
        if verdict.waits_until is not None and mark.open is not None:
            self._wait(entry, mark.open, min(verdict.waits_until, now + timedelta(seconds=LOOK_AGAIN)))
            return False
        entry.is_waiting = entry.had_run = False
        if verdict.is_presumed_over and mark.open is not None:
            self._tell(RunPresumedOver(name, mark.open.instant, entry.scheduled.overlap_limit))
            self._state.end(name, mark.open.instant)
        if verdict.left_out is not None:
            self._leave_out(entry, verdict.left_out)
        if verdict.ticks:
            entry.ticks.clear()
            entry.ticks.extend(verdict.ticks)
        elif verdict.left_out is not None:
            self._push_next(entry)
            return False
        return True

    def _wait(self, entry: _Entry, run: Run, until: datetime) -> None:
        if not entry.is_waiting:
            self._tell(TickWaiting(entry.scheduled.name, run.instant))
        entry.is_waiting = True
        entry.ticks.clear()
        self._push(entry, until)

    def _leave_out(self, entry: _Entry, until: datetime) -> None:
        mark = self._state[entry.scheduled.name]
        entry.ticks.clear()
        self._tell(TicksOverlapped(entry.scheduled.name, mark.last, until, mark.run.instant if mark.run else None))
        self._settled(entry.scheduled.name, until)

    def _is_known(self, entry: _Entry, tick: Tick) -> bool:
        """Whether it was started already, and is settled by that. If not, its run begins."""
        has_started = self._ends is not None and self._ends.has_started(tick)
        if self._ends is None or not self._ends.has_ended(tick):
            self._state.open(tick.schedule, Run(tick.instant, self._clock.now()))
        if has_started:
            self._tell(TickFound(tick.schedule, tick.instant, tick.job_id))
            self._pass_on(entry, tick)
        return has_started

    def _caught_up(self) -> None:
        parked, self._parked = self._parked, []
        for entry in parked:
            self._push(entry, self._clock.now())
        self._news.set()

    def _ended(self, tick: Tick) -> None:
        """The run of a schedule's last tick is over."""
        self._tell(RunOver(tick.schedule, tick.instant))
        self._unkept.set()
        entry = self._entries.get(tick.schedule)
        if entry is not None and entry.is_waiting and entry.turn:
            self._push(entry, self._clock.now())
            self._news.set()

    def _pass_on(self, entry: _Entry, tick: Tick) -> None:
        entry.ticks.popleft()
        entry.failures = 0
        self._settled(tick.schedule, tick.instant)
        self._state.note_run(tick.schedule, tick.instant)
        if self._ends is not None:
            self._ends.settled(tick)
        self._push_next(entry)

    def _settle(self, entry: _Entry, tick: Tick) -> None:
        self._pass_on(entry, tick)
        late = (self._clock.now() - tick.instant).total_seconds()
        self._tell(TickPublished(tick.schedule, tick.instant, tick.job_id, late))

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
        entry.turn = next(self._turns)
        heapq.heappush(self._heap, (at, entry.number, entry.turn, entry))

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
            await self._write()
        except Exception as error:
            self._tell(StateNotKept(self._app, error, PAUSE))
            self._unkept.set()
            if not self._is_stopping:
                await self._clock.sleep(PAUSE)

    async def _write(self) -> None:
        self._is_writing = True
        try:
            async with self._clock.timeout(KEEP_WITHIN):
                await self._state.keep(self._keeper)
        finally:
            self._is_writing = False
