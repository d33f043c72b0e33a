"""What runs in a worker, from its start until it is settled.

A run may lose its channel and get its delivery back on another one; it then goes on as if
nothing had happened, and so does one that had ended in between.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextvars import copy_context
from typing import cast

from amqpjobs.clock import Clock
from amqpjobs.codec import decode
from amqpjobs.errors import TooLargeError, UnreadableError
from amqpjobs.events import Events, JobEnded, MessageDied, TickDropped, maker_of_event
from amqpjobs.middleware import SettleNext
from amqpjobs.outcome import Dead, DeadReason, Dropped, Outcome, Returned
from amqpjobs.wire import Delivery
from amqpjobs.worker.begun import Begun
from amqpjobs.worker.execution import Execution
from amqpjobs.worker.quarantine import Quarantine
from amqpjobs.worker.run import Run
from amqpjobs.worker.settle import Settler
from amqpjobs.worker.severed import Severed
from amqpjobs.worker.suspicion import Suspicion
from amqpjobs.worker.ticks import Ticks

_log = logging.getLogger(__name__)


class Running:
    """The runs of one worker. `on_left` is called when one no longer needs its slot: then `pull` may have another."""

    def __init__(
        self,
        *,
        clock: Clock,
        events: Events,
        settler: Settler,
        settle: SettleNext,
        ticks: Ticks,
        execution: Execution,
        quarantine: Quarantine,
        suspicion: Suspicion,
        longest_body: int,
        limit: int,
        pull: Callable[[], Sequence[Run]],
        on_left: Callable[[Run], object],
    ) -> None:
        """`settle` is the settler's with what is around it; `pull` gives what begins next in one slot.

        `limit` is how many runs may be remembered that have lost their delivery.
        """
        self._clock = clock
        self._events = events
        self._settler = settler
        self._settle_delivery = settle
        self._ticks = ticks
        self._execution = execution
        self._quarantine = quarantine
        self._suspicion = suspicion
        self._longest_body = longest_body
        self._severed = Severed(limit)
        self._pull = pull
        self._on_left = on_left
        self._runs: set[Run] = set()
        self._is_working_off = False
        #: What each job begins in: nothing of the one whose slot it gets.
        self._context = copy_context()
        self._idle = asyncio.Event()
        #: Runs that were cut short.
        self.cancelled = 0

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def timeout_of(self, run: Run) -> float:
        """How many seconds a run may take, as far as it is known by now."""
        return 0.0 if run.envelope is None else self._execution.timeout_of(run.envelope)

    def wake(self) -> None:
        """There may be something to begin."""
        if self._is_working_off:  # it looks for more by itself
            return
        if self._execution.is_quick:
            self._is_working_off = True
            asyncio.get_running_loop().create_task(self._work_off(), context=self._context.copy())
        else:
            self._begin_all()

    def rejoin(self, delivery: Delivery) -> bool:
        """A run gets back the delivery that it lost; one that has ended settles it now. False: it is nobody's."""
        run = self._severed.take(delivery)
        if run is None:
            return False
        if run in self._runs:
            run.delivery, run.is_lost = delivery, False
        elif run.outcome is not None:
            run.delivery, run.is_lost = delivery, False
            self._runs.add(run)
            run.task = asyncio.create_task(self._settle_late(run, run.outcome))
        return run in self._runs  # else it was cut short

    def note_lost(self) -> None:
        """The channel is gone on which these came: the broker delivers them again."""
        for run in self._runs:
            if not run.delivery.is_open:
                self._lose(run)

    async def wait(self, seconds: float, hurry: asyncio.Event) -> None:
        """Until nothing runs, the time is over, or somebody is in a hurry."""
        self._idle.clear()
        if not self._runs:
            return
        waits = [asyncio.ensure_future(self._idle.wait()), asyncio.ensure_future(hurry.wait())]
        with contextlib.suppress(TimeoutError):
            async with self._clock.timeout(seconds):
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def cut_short(self) -> None:
        """Cancel what has not come to its outcome; it is handed back."""
        for run in self._runs:
            if run.task is not None and not run.is_settling:
                run.task.cancel("the worker stops")

    async def end(self, seconds: float) -> None:
        """Give up settling that the broker never answered: those jobs come again."""
        left = [run.task for run in self._runs if run.task is not None]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=seconds)

    def _begin_all(self) -> None:
        while runs := self._pull():
            self._begin(runs)

    def _begin(self, runs: Iterable[Run]) -> None:
        loop = asyncio.get_running_loop()
        for run in runs:
            self._runs.add(run)
            run.task = loop.create_task(self._work(run), context=self._context.copy())

    async def _work_off(self) -> None:
        """While handlers do not wait, their jobs begin one after the other in here: a task costs more than such a job.

        Each has a context of its own. The first that waits keeps this task, and what is behind it gets tasks then.
        """
        task = cast("asyncio.Task[None]", asyncio.current_task())
        rest: Begun[None] | None = None
        try:
            while rest is None and not task.cancelling() and (runs := self._pull()):
                if runs[0].seat is None:
                    rest = self._begin_here(runs[0], task)
                else:
                    self._begin(runs)
        finally:
            self._is_working_off = False
            self._begin_all()
        if rest is not None:
            await rest

    def _begin_here(self, run: Run, task: "asyncio.Task[None]") -> Begun[None] | None:
        """What is left of it, if it waits."""
        self._runs.add(run)
        run.task = task
        context = self._context.copy()
        work = self._work(run)
        try:
            waits_for = context.run(work.send, None)
        except StopIteration:
            return None
        return Begun(work, waits_for, context)

    async def _work(self, run: Run) -> None:
        started = self._clock.monotonic()
        try:
            outcome = await self._outcome(run)
            run.seconds = self._clock.monotonic() - started
            run.is_settling = True
            await self._settle(run, outcome)
        except Exception:
            # Nothing above may raise; if it does, the message stays unacked and comes again
            # with the next connection.
            _log.exception("A delivery could not be handled")
        finally:
            self._forget(run)
            self._on_left(run)
            self.wake()

    async def _outcome(self, run: Run) -> Outcome | Dropped:
        try:
            run.envelope = decode(run.delivery)
            if len(run.delivery.body) > self._longest_body:
                return Dead(DeadReason.TOO_LARGE, _too_large(run.delivery, self._longest_body))
            if run.envelope.copy is not None and (dropped := await self._ticks.begin(run.envelope)) is not None:
                return dropped
            if run.delivery.redelivered or run.envelope.crashes:
                run.envelope, outcome = await self._quarantine.run(run.delivery, run.envelope, run.seat)
                return outcome
            return await self._execution.run(run.envelope, run.seat)
        except UnreadableError as error:
            return Dead(DeadReason.UNREADABLE, error)
        except asyncio.CancelledError:
            self.cancelled += 1
            return Returned()
        finally:
            if run.seat is not None:
                run.seat.excuse()

    async def _settle(self, run: Run, outcome: Outcome | Dropped) -> None:
        delivery = None
        while delivery is not run.delivery:  # else it came again in the meantime
            delivery = run.delivery
            settling: Awaitable[bool]
            if isinstance(outcome, Dropped):  # it has not run, so there is nothing to watch
                settling = self._settler.settle(delivery, run.envelope, outcome)
            else:
                settling = self._settle_delivery(delivery, run.envelope, outcome)
            if await settling:
                self._tell(run, outcome)
                return
        if not isinstance(outcome, Returned):  # that one is to be run again
            run.outcome = outcome
        self._lose(run)

    async def _settle_late(self, run: Run, outcome: Outcome | Dropped) -> None:
        """For a run that had ended, and left its slot, before its delivery came again."""
        try:
            await self._settle(run, outcome)
        except Exception:
            _log.exception("A delivery could not be handled")
        finally:
            self._forget(run)

    def _lose(self, run: Run) -> None:
        if not run.is_lost:
            run.is_lost = True
            self._suspicion.pardon([run.delivery])  # we live, so it has killed nobody
        if run.outcome is not None or run in self._runs:
            self._severed.add(run)

    def _forget(self, run: Run) -> None:
        self._runs.discard(run)
        if not self._runs:
            self._idle.set()

    def _tell(self, run: Run, outcome: Outcome | Dropped) -> None:
        if isinstance(outcome, Dropped):
            if run.envelope is not None:
                self._events.emit(TickDropped(run.envelope))
        elif run.envelope is None:
            self._events.emit(MessageDied(run.delivery.queue, run.delivery.properties.message_id, outcome))
        elif self._events.wanted(JobEnded):
            self._events.emit(maker_of_event(JobEnded)(run.envelope, outcome, run.seconds))


def _too_large(delivery: Delivery, longest: int) -> TooLargeError:
    return TooLargeError(
        f"The body has {len(delivery.body)} bytes, and this worker takes {longest} at most (AMQPJOBS_MAX_BODY)."
    )
