"""A clock that moves only when a test says so.

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

from amqpjobs.clock import Deadline

#: Turns of the event loop after each step: enough for any chain of tasks that wait for no thread.
TURNS = 50
#: Sums of floats fall short by so much: ten times 0.1 s is to wake who sleeps 1 s.
_ROUNDING = 1e-9


class FakeClock:
    """Implements `amqpjobs.clock.Clock`."""

    def __init__(self, now: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = now
        self._passed = 0.0
        self._numbers = count()
        self._alarms: list[_Alarm] = []

    @property
    def waits(self) -> list[float]:
        """In how many seconds each sleep and timeout is due, the next one first."""
        return [alarm.due - self._passed for alarm in sorted(self._alarms) if alarm.is_set]

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._passed)

    def monotonic(self) -> float:
        return self._passed

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        alarm = self.call_after(seconds, wake)
        try:
            await woken
        finally:
            alarm.is_set = False

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[Deadline]:
        return _Timeout(self, seconds)

    def call_after(self, seconds: float, action: Callable[[], object]) -> "_Alarm":
        """Do something when so much time has passed."""
        alarm = _Alarm(self._passed + seconds, next(self._numbers), action)
        heapq.heappush(self._alarms, alarm)
        return alarm

    async def advance(self, seconds: float) -> None:
        """Let so much time pass, and all happen that is due in it, in the order it is due."""
        end = self._passed + seconds
        await settle()
        while self._alarms and self._alarms[0].due <= end + _ROUNDING:
            alarm = heapq.heappop(self._alarms)
            if alarm.is_set:
                self._passed = max(self._passed, alarm.due)
                alarm.is_set = False
                alarm.action()
                await settle()
        self._passed = max(self._passed, end)


class _Alarm:
    """Something to do at a time, unless it is unset before."""

    def __init__(self, due: float, number: int, action: Callable[[], object]) -> None:
        self.due = due
        self.number = number
        self.action = action
        self.is_set = True

    def __lt__(self, other: "_Alarm") -> bool:
        return (self.due, self.number) < (other.due, other.number)


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
        await asyncio.sleep(0)
