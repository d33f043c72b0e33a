"""An app on an embedded broker, in a time that moves when the test says so.

Jobs go over the wire as in production: there is no eager mode that hides what JSON makes of a job, where it is
routed, or what a retry does. What the harness knows of jobs it is told by events, like any other observer.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from random import Random
from types import TracebackType
from typing import Any, Generic, NoReturn, Self, TypeVar

from pydantic import SecretStr

from amqpjobs.app import App
from amqpjobs.clock import Seconds, SystemClock, in_seconds
from amqpjobs.context import current_context
from amqpjobs.definitions import definitions, together
from amqpjobs.devbroker import Broker
from amqpjobs.job import Job, options_of
from amqpjobs.outcome import Outcome
from amqpjobs.settings import Settings
from amqpjobs.testing.beats import Beats
from amqpjobs.testing.clock import START, FakeClock
from amqpjobs.testing.course import Course
from amqpjobs.testing.performance import perform
from amqpjobs.testing.record import Record
from amqpjobs.testing.rest import Rest
from amqpjobs.topology import LEVELS, Plan, Queue, Subscription
from amqpjobs.worker import Worker

R = TypeVar("R")
S = TypeVar("S")
J = TypeVar("J", bound=Job[Any])

#: Where jobs go that other services handle.
ELSEWHERE = "handled-elsewhere"
#: Times that something was due in one call, before it is taken to go on for ever.
MOST_STEPS = 100_000
#: Real seconds after which time moves for a worker or a beat that does not stop.
_HESITATION = 0.5


class Harness(Generic[S]):
    """Runs an app for the time of a block: `async with Harness(app) as harness`.

    The app may be the one at the top of your module: inside the block it connects to a broker of the block's own,
    and its clock, `harness.clock`, moves only by `drain` and `advance`, from `start` on; afterwards it is as before.
    Without `works` no worker runs, and jobs stay in their queues. With `beats` its schedules are due as time moves;
    for a part of a test there is `async with harness.beat()`. `elsewhere` are job classes that other services handle:
    a queue takes them, so that enqueuing them is no UnroutableError. Retries wait for the full delay of their
    policy, unless a `seed` says by which chance jitter takes from it: the same seed, the same delays.

    A job that runs has `patience` real seconds until the time moves on for it nevertheless, as for one that waits
    for what never comes; one that runs in a thread has 30, and one that sleeps by the app's clock has none.

    Handlers with `run_in="process"` run in this process, and so do jobs that come back after a crash.
    """

    def __init__(
        self,
        app: App[S],
        *,
        works: bool = True,
        beats: bool = False,
        start: datetime = START,
        elsewhere: Iterable[type[Job[Any]]] = (),
        seed: int | None = None,
        patience: float = 1.0,
    ) -> None:
        self._app = app
        self._works = works
        self._has_beat = beats
        self._start = start
        self._elsewhere = [options_of(job) for job in elsewhere]
        self._chance = _chance(seed)
        self._patience = patience
        self._record = Record()
        self._real = SystemClock()
        self._stack = AsyncExitStack()
        self._course: Course | None = None
        self._rest: Rest | None = None
        self._worker: Worker | None = None
        self._beats: Beats | None = None
        self._crashing: asyncio.Task[None] | None = None

    # What there is

    @property
    def is_open(self) -> bool:
        """Whether its block has been entered, and not been left."""
        return self._course is not None

    @property
    def app(self) -> App[S]:
        """The app, which here enqueues to the harness's broker."""
        self._entered()
        return self._app

    @property
    def clock(self) -> FakeClock:
        """The app's clock. It stands still until it is moved."""
        return self._entered().clock

    @property
    def broker(self) -> Broker:
        """The embedded broker. Its time is moved by the harness."""
        return self._entered().broker

    @property
    def url(self) -> str:
        """Where the broker is, for clients of your own."""
        return self._entered().broker.url

    # The block

    async def __aenter__(self) -> Self:
        if self._course is not None:
            raise RuntimeError("This harness is in use. Make another one: Harness(app).")
        async with AsyncExitStack() as stack:
            await self._open(stack)
            self._stack = stack.pop_all()
        return self

    async def _open(self, stack: AsyncExitStack) -> None:
        app, course = self._app, Course(self._start)
        await stack.enter_async_context(course.broker)
        settings = _settings(app, course.broker.url)
        stack.enter_context(app.overridden(settings=settings, clock=course.clock, chance=self._chance))
        self._record = Record()
        self._record.watch(app.events)
        stack.callback(self._record.unwatch, app.events)
        app.enqueue_middlewares.insert(0, self._record.around_enqueue)
        course.broker.import_definitions(definitions({"/": self._plan()}))
        stack.push_async_callback(app.close)
        self._course = course
        stack.callback(setattr, self, "_course", None)
        stack.push_async_callback(self._stop_worker)
        await self._start_worker()
        await app.__aenter__()  # it connects meanwhile, and is closed above
        self._beats = Beats(app, course.broker, self._until_ended)
        self._rest = Rest(
            broker=course.broker,
            clock=course.clock,
            record=self._record,
            registry=app.registry,
            queues=self._work_queues(),
            worker=lambda: self._worker,
            beats=self._beats,
            patience=self._patience,
        )
        if self._has_beat:
            await stack.enter_async_context(self.beat())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        crashing, self._crashing = self._crashing, None
        if crashing is not None:
            await asyncio.wait([crashing])
        await self._stack.aclose()

    def _plan(self) -> Plan:
        """All that the app needs, made at once: it takes a worker a tenth of a second, by the wire."""
        topology = self._app.topology
        subscriptions = [
            Subscription(kind=each.kind, queue=ELSEWHERE, exchange=each.exchange) for each in self._elsewhere
        ]
        others = topology.app([Queue(ELSEWHERE)], subscriptions) if subscriptions else Plan()
        return together([topology.infrastructure(), Plan(exchanges=[topology.marker]), self._app.plan(), others])

    async def _start_worker(self) -> None:
        if self._works:
            worker = Worker(self._app, grace=0, apart=False)
            await worker.__aenter__()
            # What a test awaits is not lost with a worker that crashes: the app has a connection of its own.
            self._app.lend(None)
            self._worker = worker

    async def _stop_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await self._until_ended(worker.__aexit__(None, None, None))

    async def _until_ended(self, end: Awaitable[None]) -> None:
        ending = asyncio.ensure_future(end)
        while not (await asyncio.wait([ending], timeout=_HESITATION))[0]:
            self._entered().clock.step()  # deadlines end what the broker does not answer
        await ending

    def _entered(self) -> Course:
        if self._course is None:
            raise RuntimeError(
                "The harness is not open. Use it inside `async with Harness(app) as harness:`; pytest's fixture "
                "`harness` is open in async tests, and not in fixtures or in tests without `async`."
            )
        return self._course

    # Schedules

    @asynccontextmanager
    async def beat(self) -> AsyncGenerator[None]:
        """Run a beat of the app for the time of a block, in which its schedules are due as time moves.

        What became due before it is for their misfire policies, as after a stop in production. In several blocks at
        once one beat leads, and the others wait for their turn. Raises DefinitionError if nothing is scheduled.
        """
        self._entered()
        assert self._beats is not None
        async with self._beats.one():
            await self.settle()
            yield

    # Time

    async def settle(self) -> None:
        """Let all go on that can, without moving time.

        Raises AssertionError if that does not end, and for 30 real seconds nothing was enqueued and no attempt ended.
        """
        self._entered()
        assert self._rest is not None
        await self._rest.come()
        while (crashing := self._crashing) is not None:  # a job let the worker crash meanwhile
            self._crashing = None
            await crashing
            await self._rest.come()

    async def advance(
        self, seconds: Seconds = 0.0, *, minutes: float = 0.0, hours: float = 0.0, days: float = 0.0
    ) -> None:
        """Move time on: every delay, retry, TTL and timeout fires, in order and each at its own moment.

        What comes due is run to its end before time moves further.
        """
        course = self._entered()
        end = course.clock.monotonic() + in_seconds(seconds) + 60 * minutes + 3600 * hours + 86_400 * days
        await self.settle()
        for _ in range(MOST_STEPS):
            if not course.is_due_within(end - course.clock.monotonic()):
                course.forward(end)
                return
            await course.step()
            await self.settle()
        self._endless()

    async def drain(self) -> None:
        """Run all jobs to their end, moving time over delays and retries, until nothing waits.

        Raises AssertionError, which names what is left, when that never ends: a job that enqueues itself again,
        or one that nobody works on. Dead letters, parked jobs, and jobs for other services are not waited for.
        """
        course = self._entered()
        for _ in range(MOST_STEPS):
            await self.settle()
            if not (left := self._left()):
                return
            if course.next_due is None or (self._worker is None and not self._delayed()):
                self._give_up(left)
            await course.step()
        self._endless()

    def _left(self) -> list[str]:
        """What waits or runs, in words."""
        queued = {queue: self._count(queue) for queue in self._work_queues()}
        running = 0 if self._worker is None else self._worker.running
        delayed = self._delayed()
        return [
            *([f"{delayed} delayed"] if delayed else []),
            *(f"{count} in queue {queue!r}" for queue, count in queued.items() if count),
            *([f"{running} running ({self._kinds_running()})"] if running else []),
        ]

    def _delayed(self) -> int:
        topology = self._app.topology
        return sum(self._count(topology.level(number)) for number in range(LEVELS))

    def _count(self, queue: str) -> int:
        stock = self._entered().broker.stock(queue)
        return 0 if stock is None else stock.ready + stock.lent

    def _kinds_running(self) -> str:
        return ", ".join(sorted({run.envelope.kind for run in self._record.runs.values()}))

    def _work_queues(self) -> list[str]:
        return [name for queue in self._app.queues for name in self._app.topology.parts(queue)]

    def _endless(self) -> NoReturn:
        raise AssertionError(
            f"Something was due {MOST_STEPS:,} times, and it is {self.clock.now():%Y-%m-%d %H:%M}: this does not end, "
            f"or something looks too often. Jobs: {', '.join(self._left()) or 'none'}."
        )

    def _give_up(self, left: Sequence[str]) -> NoReturn:
        reason = "no worker runs here" if self._worker is None else "the time brings nothing more"
        raise AssertionError(f"Not all jobs came to their end: {', '.join(left)}, and {reason}.")

    # What happened

    def enqueued(self, job: type[J]) -> list[J]:
        """The jobs of a class that the app has enqueued, its handlers among them, in their order."""
        self._entered()
        return [each for each, _ in self._record.enqueued(job)]

    def outcomes(self, job: type[Job[Any]]) -> list[Outcome]:
        """How each attempt at a job of this class ended, in their order; errors are not compared.

        `[Retrying(delay=2.0), Completed()]`. What `perform` runs is not among them.
        """
        self._entered()
        return self._record.outcomes(job)

    def assert_enqueued(
        self,
        job: type[J],
        *,
        where: Callable[[J], bool] | None = None,
        count: int | None = None,
        delay: Seconds | None = None,
    ) -> list[J]:
        """The jobs of a class that fit, of which there must be some, or just `count`.

        `where` says of a job whether it is meant, `delay` how many seconds it was to wait when it was enqueued.
        Raises AssertionError, which shows what was enqueued instead.
        """
        self._entered()
        every = self._record.enqueued(job)
        fitting = [
            each
            for each, waits in every
            if (where is None or where(each)) and (delay is None or abs(waits - in_seconds(delay)) < 0.001)
        ]
        if len(fitting) == count or (count is None and fitting):
            return fitting
        wanted = "No" if count is None else f"Not {count}, but {len(fitting)}"
        raise AssertionError(
            f"{wanted} {job.__name__} of that description {_was(len(fitting))}. {self._instead(every)}{self._hint(job)}"
        )

    def _hint(self, job: type[Job[Any]]) -> str:
        is_scheduled = any(isinstance(each.job, job) for each in self._app.schedules)
        if not is_scheduled or self._beats is None or self._beats.were_there:
            return ""
        return " It is scheduled, and no beat ran: use `async with harness.beat():`, or Harness(app, beats=True)."

    def _instead(self, every: Sequence[tuple[Job[Any], float]]) -> str:
        if every:
            lines = [f"  {each!r}" + (f", delayed by {delay:g} s" if delay else "") for each, delay in every]
            return "\n".join(["Enqueued of this class:", *lines])
        kinds = self._record.kinds
        others = ", ".join(f"{kind} ({kinds.count(kind)})" for kind in sorted(set(kinds)))
        return f"Enqueued of other kinds: {others}." if others else "Nothing was enqueued."

    # One job

    async def perform(self, job: Job[R], *, attempt: int = 1) -> R:
        """Run a job's handler once, without the broker: its result, or what it raised.

        The job is written and read as JSON, the lifespan is entered, run middlewares are asked. What it enqueues
        goes to the harness's broker. Time stands still. Raises DefinitionError if nobody handles it.
        """
        self._entered()
        # A task of its own: the handler's context is not the test's.
        return await asyncio.create_task(perform(self._app, job, attempt))

    # Faults

    async def crash_worker(self) -> None:
        """Let the worker die now, and start another one: what was running was not acked, and runs again.

        Dying in part is all a process can do: running handlers are cancelled, and the lifespan ends. A handler
        that calls this does not come back from it.
        """
        self._entered()
        if self._worker is None:
            raise RuntimeError("No worker runs here that could crash.")
        if current_context() is None:
            await self._crash()
            return
        self._crashing = asyncio.create_task(self._crash())
        await asyncio.Event().wait()  # until it is cancelled with all that runs

    async def _crash(self) -> None:
        await self.broker.cut_connections()
        while self._worker is not None and self._worker.is_consuming:
            await self._real.sleep(0)  # until it has noticed: it shall not say goodbye
        await self._stop_worker()
        self._record.runs.clear()
        await self._start_worker()

    async def crash_beat(self) -> None:
        """Let the beat that leads die now, and start another one. If others wait for their turn, one of them leads.

        Ticks that it had published and not written down are published again, under the same ids.
        """
        self._entered()
        assert self._beats is not None
        await self._beats.crash()
        await self.settle()

    async def cut_connection(self) -> None:
        """Cut all connections to the broker without a word, and wait until the worker and a beat are back.

        What was running goes on; its delivery comes again.
        """
        await self.broker.cut_connections()
        if self._beats is not None:
            await self._beats.until_deposed()
        await self.settle()

    def lose_next_confirm(self) -> None:
        """The broker will take the next message, whoever sends it, and lose the connection before it confirms it.

        Who enqueues it gets an UnconfirmedError, and does not know that it is queued.
        """
        self.broker.lose_next_confirm()


def _settings(app: App[Any], url: str) -> Settings:
    """The app's own, but for what has to do with the broker."""
    changes = {
        "url": SecretStr(url),
        "declare": True,
        "quarantine": False,  # a process apart would know neither this broker nor this time
        "reconnect_cap": 0.02,
        "heartbeat": 600,  # as long as it may: somebody may look at a test with a debugger
    }
    return app.settings.model_copy(update=changes)


def _chance(seed: int | None) -> Callable[[], float]:
    return (lambda: 0.0) if seed is None else Random(seed).random


def _was(count: int) -> str:
    return "was enqueued" if count == 1 else "were enqueued"
