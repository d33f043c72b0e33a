"""A clock that moves only when a test says so, for an app and for its embedded broker.

`advance` goes from one due time to the next and lets the event loop settle at each, so that what
wakes up may sleep again and be woken within the same call. No real time passes.
"""

import asyncio
import heapq
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from itertools import count
from types import TracebackType
from typing import Self

from amqpjobs.clock import Deadline, SystemClock
from amqpjobs.context import current_context

#: When it is at first.
START = datetime(2026, 1, 1, tzinfo=UTC)
#: Turns of the event loop after each step: enough for any chain of tasks that wait for no thread.
TURNS = 50
#: Sums of floats fall short by so much: ten times 0.1 s is to wake who sleeps 1 s.
_ROUNDING = 1e-9


class FakeClock:
    """Implements `amqpjobs.clock.Clock`. Any thread may wait; one moves it."""

    def __init__(self, now: datetime = START) -> None:
        self._start = now
        self._passed = 0.0
        self._numbers = count()
        # Tuples of numbers, which a thread can push while another one does.
        self._alarms: list[tuple[float, int, _Alarm]] = []
        self._sleepers: dict[_Alarm, str] = {}

    @property
    def waits(self) -> list[float]:
        """In how many seconds each sleep and timeout is due, the next one first."""
        return [due - self._passed for due, _, alarm in sorted(self._alarms) if alarm.is_set]

    @property
    def next_due(self) -> float | None:
        """The next sleep's or timeout's time, as `monotonic` counts it; None if nobody waits."""
        while self._alarms and not self._alarms[0][2].is_set:
            heapq.heappop(self._alarms)
        return self._alarms[0][0] if self._alarms else None

    @property
    def sleepers(self) -> set[str]:
        """The ids of jobs that sleep by this clock."""
        return set(self._sleepers.values())

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._passed)

    def monotonic(self) -> float:
        return self._passed

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await SystemClock().sleep(0)
            return
        woken = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        alarm, job = self.call_after(seconds, wake), current_context()
        if job is not None:
            self._sleepers[alarm] = job.job_id
        try:
            await woken
        finally:
            alarm.is_set = False
            self._sleepers.pop(alarm, None)

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[Deadline]:
        return _Timeout(self, seconds)

    def call_after(self, seconds: float, action: Callable[[], object]) -> "_Alarm":
        """Do something when so much time has passed, in this thread's event loop."""
        alarm = _Alarm(asyncio.get_running_loop(), action)
        heapq.heappush(self._alarms, (self._passed + seconds, next(self._numbers), alarm))
        return alarm

    def forward(self, moment: float) -> None:
        """Go to a time as `monotonic` counts it, unless it is past. Nobody is woken."""
        self._passed = max(self._passed, moment)

    def step(self) -> None:
        """Go to `next_due`, and wake who is the first one then."""
        due = self.next_due
        if due is not None:
            self.forward(due)
            _, _, alarm = heapq.heappop(self._alarms)
            self._sleepers.pop(alarm, None)
            alarm.ring()

    async def advance(self, seconds: float) -> None:
        """Let so much time pass, and all happen that is due in it, in the order it is due."""
        end = self._passed + seconds
        await settle()
        while (due := self.next_due) is not None and due <= end + _ROUNDING:
            self.step()
            await settle()
        self.forward(end)


class BrokerClock:
    """The time of a `FakeClock` as an embedded broker counts it: seconds since 1970."""

    is_moving = False

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._epoch = clock.now().timestamp() - clock.monotonic()
        #: Seconds since 1970 are too many for a float to come back exactly as they were.
        self._latest = 0.0

    def now(self) -> float:
        return max(self._latest, self._epoch + self._clock.monotonic())

    def forward(self, moment: float) -> None:
        self._latest = max(self._latest, moment)
        self._clock.forward(self.to_monotonic(moment))

    def to_monotonic(self, moment: float) -> float:
        """The same moment by the `FakeClock`."""
        return moment - self._epoch


class _Alarm:
    """Something to do at a time, unless it is unset before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, action: Callable[[], object]) -> None:
        self._loop = loop
        self._action = action
        self.is_set = True

    def ring(self) -> None:
        self.is_set = False
        if self._loop is asyncio.get_running_loop():
            self._action()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._action)


class _Timeout:
    """What asyncio.timeout does: cancel the task, and turn just that cancellation into a TimeoutError."""

    def __init__(self, clock: FakeClock, seconds: float | None) -> None:
        self._clock = clock
        self._seconds = seconds
        self._alarm: _Alarm | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._is_expired = False

    def expired(self) -> bool:
        return self._is_expired

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None, "A timeout needs a task around it."
        self._task, self._cancelling = task, task.cancelling()
        if self._seconds is not None and self._seconds > 0:
            self._alarm = self._clock.call_after(self._seconds, self._expire)
        elif self._seconds is not None:
            self._alarm = self._clock.call_after(0, self._expire)
            asyncio.get_running_loop().call_soon(self._expire)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._alarm is not None:
            self._alarm.is_set = False
        alarm, self._alarm = self._alarm, None
        if not self._is_expired or alarm is None or self._task is None:
            return
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _expire(self) -> None:
        if self._alarm is not None and self._task is not None and not self._is_expired:
            self._is_expired = True
            self._task.cancel()


async def settle() -> None:
    """Let all that can go on go on."""
    for _ in range(TURNS):
        await SystemClock().sleep(0)
