"""Whether all that can happen without time passing has happened.

Jobs go over real sockets, so nobody can be asked whether something is under way. But it shows in the books: each
delivery that the broker has lent is in the worker's hands, or it is on its way to it, or its ack is on its way back.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from amqpjobs.clock import SystemClock
from amqpjobs.devbroker import Stock
from amqpjobs.registry import Registry
from amqpjobs.testing.clock import FakeClock
from amqpjobs.testing.record import Record, Run

#: Turns of the event loop without any unrest, for tasks that were woken just now and have not done anything yet.
_QUIET = 10
#: Turns after which it is looked at only each millisecond: something takes real time.
_HASTY = 500
#: Real seconds that a handler in a thread may take, or a connection to come back, while nothing else happens.
LONGEST = 30.0
#: Real seconds between two looks that count as patience, at most: a process that stood still has waited for nothing.
_LOOK = 0.1


class Lending(Protocol):
    """What is looked at of a broker."""

    def stock(self, queue: str, /) -> Stock | None: ...


class Working(Protocol):
    """What is looked at of a worker."""

    @property
    def is_consuming(self) -> bool: ...
    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...


class Beating(Protocol):
    """What is looked at of beats; false if there are none."""

    def __bool__(self) -> bool: ...
    @property
    def is_led(self) -> bool: ...
    @property
    def is_busy(self) -> bool: ...


class Rest:
    """Of one app, its worker, its beats and its broker."""

    def __init__(
        self,
        *,
        broker: Lending,
        clock: FakeClock,
        record: Record,
        registry: Registry,
        queues: Sequence[str],
        worker: Callable[[], Working | None],
        beats: Beating,
        patience: float,
    ) -> None:
        """`queues` are the broker's names of those that `worker` works on."""
        self._broker = broker
        self._clock = clock
        self._record = record
        self._registry = registry
        self._queues = queues
        self._worker = worker
        self._beats = beats
        self._patience = patience
        self._real = SystemClock()
        #: How much had happened when something last did, the real time then, and the turns of the event loop since.
        self._news: int = 0
        self._heard: float = 0.0
        self._turns: int = 0
        #: Real seconds spent on looking, the pauses of a process that stood still left out.
        self._watched: float = 0.0

    async def come(self) -> None:
        """Wait for it, in real time. Raises AssertionError when it does not come, and nothing else happens."""
        now, started, quiet = self._real.monotonic(), self._watched, 0
        self._heard, self._turns = now, 0
        while quiet < _QUIET:
            await self._real.sleep(0 if self._turns < _HASTY else 0.001)
            before, now = now, self._real.monotonic()
            self._watched += min(now - before, _LOOK)
            self._listen(now)
            unrest = self._unrest(self._watched - started, now - self._heard)
            quiet = 0 if unrest else quiet + 1
            if unrest and now - self._heard > LONGEST:
                raise AssertionError(f"It did not come to rest within {LONGEST:g} s of real time: {unrest}.")

    def _listen(self, now: float) -> None:
        self._turns += 1
        if self._record.news != self._news:
            self._news, self._heard, self._turns = self._record.news, now, 0

    def _unrest(self, waited: float, silent: float) -> str:
        """What is going on; "" when nothing is. In real seconds, how long that took, and since when nothing is new."""
        worker = self._worker()
        # One that the broker does not answer waits for its deadline, and so for the time to move.
        if self._record.enqueuing and waited < self._patience:
            return "somebody is enqueuing"
        return self._beating(silent) or ("" if worker is None else self._at_work(worker)) or self._answering()

    def _answering(self) -> str:
        """An answer is acked when its caller has it."""
        stocks = [self._broker.stock(queue) for queue in self._record.mailboxes]
        is_busy = any(stock.ready + stock.lent for stock in stocks if stock is not None)
        return "the answer to a job is on its way" if is_busy else ""

    def _beating(self, silent: float) -> str:
        if not self._beats:
            return ""
        if not self._beats.is_busy:
            return "" if self._beats.is_led else "no beat leads"
        # One that the broker does not answer waits for its deadline, too. But the real time may have been others'.
        is_stuck = silent > self._patience and self._turns > _HASTY
        return "" if is_stuck else "ticks are on their way"

    def _at_work(self, worker: Working) -> str:
        if not worker.is_consuming:
            return "the worker is not connected"
        lent = sum(stock.lent for queue in self._queues if (stock := self._broker.stock(queue)) is not None)
        if lent != worker.running + worker.waiting:
            return f"{lent} jobs are lent to the worker, and it has {worker.running + worker.waiting}"
        if not worker.running:
            self._record.runs.clear()
        elif worker.running > sum(run.count for run in self._record.runs.values()):
            return "a job begins or is settled"
        return next((reason for run in self._record.runs.values() if (reason := self._awake(run))), "")

    def _awake(self, run: Run) -> str:
        """Whether a job may still do something before time moves."""
        if run.envelope.job_id in self._clock.sleepers:
            run.awake_since, run.is_stuck = None, False
            return ""
        if run.awake_since is None:
            run.awake_since = self._watched
        if self._is_async(run):  # nobody can tell what it waits for
            run.is_stuck = run.is_stuck or self._watched - run.awake_since > self._patience
        return "" if run.is_stuck else f"job {run.envelope.kind!r} ({run.envelope.job_id}) is running"

    def _is_async(self, run: Run) -> bool:
        handler = self._registry.get(run.envelope.kind)
        return handler is None or handler.is_async
