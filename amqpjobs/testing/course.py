"""The course of time in a test: an app's clock and its broker's timers, gone through as one."""

from datetime import datetime, timedelta

from amqpjobs.devbroker import Broker
from amqpjobs.testing.clock import BrokerClock, FakeClock

#: A moment since 1970 is exact to so many seconds.
_ROUNDING = 1e-6


class Course:
    """One time, which stands still between two steps."""

    def __init__(self, start: datetime) -> None:
        self.clock = FakeClock(start)
        self._broker_clock = BrokerClock(self.clock)
        self.broker = Broker(clock=self._broker_clock)

    @property
    def next_due(self) -> float | None:
        """In how many seconds the next thing happens that waits for the time; None if nothing does."""
        dues = [due for due in (self._broker_due, self.clock.next_due) if due is not None]
        return max(0.0, min(dues) - self.clock.monotonic()) if dues else None

    async def step(self) -> None:
        """Go to what is due next, and let just that happen: the broker's part first, if both are due."""
        by_broker, by_clock = self._broker_due, self.clock.next_due
        if by_broker is not None and (by_clock is None or by_broker <= by_clock + _ROUNDING):
            moment = self.broker.next_due
            assert moment is not None
            await self.broker.advance_to(moment)
        else:
            self.clock.step()

    def is_due_within(self, seconds: float) -> bool:
        """Whether something happens in this time."""
        due = self.next_due
        return due is not None and due <= seconds + _ROUNDING

    def forward(self, moment: float) -> None:
        """Go to a time as the clock's `monotonic` counts it, in which nothing happens any more."""
        self.clock.forward(moment)

    def after(self, seconds: float) -> datetime:
        """The time of day after so many seconds."""
        return self.clock.now() + timedelta(seconds=seconds)

    @property
    def _broker_due(self) -> float | None:
        due = self.broker.next_due
        return None if due is None else self._broker_clock.to_monotonic(due)
