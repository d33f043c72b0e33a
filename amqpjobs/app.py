"""The app: a service's name, its handlers and options, and the wiring of all the rest."""

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, overload

from typing_extensions import Unpack

from amqpjobs.batch import Batch, RegisterBatch, jobs_of, refuse_list
from amqpjobs.beat.plan import CATCH_UP, GRACE, OVERLAP_LIMIT, Misfire, Overlap, Scheduled, TickOptions
from amqpjobs.beat.schedule import Schedule
from amqpjobs.client import Client
from amqpjobs.clock import Clock, Seconds, SystemClock, in_seconds
from amqpjobs.context import JobContext
from amqpjobs.definitions import together
from amqpjobs.effects import Effect
from amqpjobs.errors import DefinitionError
from amqpjobs.events import Event, Events
from amqpjobs.handle import BUFFER_BYTES, BUFFER_LIMIT, RESULT_WITHIN, CallOptions, EnqueueOptions, JobHandle
from amqpjobs.job import Job, JobType, check_name, options_of
from amqpjobs.levels import Levels
from amqpjobs.middleware import EnqueueMiddleware, RunMiddleware, SettleMiddleware
from amqpjobs.producer import Producer, drafts_of
from amqpjobs.registry import HandlerOptions, Registry
from amqpjobs.retry import RetryPolicy
from amqpjobs.settings import Settings, load_settings
from amqpjobs.topology import Plan, Queue, Topology

if TYPE_CHECKING:  # few apps need these: they are loaded when they are asked for
    from amqpjobs.beat.schedules import Schedules
    from amqpjobs.buffer import Buffer

R = TypeVar("R")
R2 = TypeVar("R2")
R3 = TypeVar("R3")
S = TypeVar("S")
J = TypeVar("J", bound=Job[Any])
E = TypeVar("E", bound=Event)
F = TypeVar("F")

J_co = TypeVar("J_co", bound=Job[Any], covariant=True)
R_contra = TypeVar("R_contra", contravariant=True)
S_contra = TypeVar("S_contra", contravariant=True)
Lifespan = Callable[[], AbstractAsyncContextManager[S]]
#: Where its providers are set.
_OPENTELEMETRY = {"opentelemetry.trace", "opentelemetry.metrics"}


class Runnable(Protocol[J_co, R_contra]):
    """A job class, seen as the object it is: its methods take the job as their first parameter."""

    def job_type(self) -> type[J_co]: ...
    def __amqpjobs_takes__(self, result: R_contra, /) -> None: ...


class RunsAsync(Runnable[J, R], Protocol[J, R, S_contra]):
    def run(self, job: J, ctx: JobContext[S_contra], /) -> Awaitable[R]: ...


class RunsAsyncAlone(Runnable[J, R], Protocol[J, R]):
    def run(self, job: J, /) -> Awaitable[R]: ...


class Runs(Runnable[J, R], Protocol[J, R, S_contra]):
    def run(self, job: J, ctx: JobContext[S_contra], /) -> R: ...


class RunsAlone(Runnable[J, R], Protocol[J, R]):
    def run(self, job: J, /) -> R: ...


class Register(Protocol[J, R, S]):
    """Takes a handler that fits: async or not, with the context or without."""

    @overload
    def __call__(
        self, function: Callable[[J, JobContext[S]], Awaitable[R]], /
    ) -> Callable[[J, JobContext[S]], Awaitable[R]]: ...
    @overload
    def __call__(self, function: Callable[[J], Awaitable[R]], /) -> Callable[[J], Awaitable[R]]: ...
    @overload
    def __call__(self, function: Callable[[J, JobContext[S]], R], /) -> Callable[[J, JobContext[S]], R]: ...
    @overload
    def __call__(self, function: Callable[[J], R], /) -> Callable[[J], R]: ...


class App(Generic[S]):
    """A service of typed jobs.

    `name` is the service's own and its default queue's. `lifespan` is a function that
    returns an async context manager; what it yields is the state that handlers see. It runs
    in workers only. `takes_schedules` lets it have beats although it declares no schedule, for
    those that are added at runtime.
    """

    @overload
    def __init__(
        self: "App[None]",
        name: str,
        *,
        queues: Iterable[Queue] = (),
        retry: RetryPolicy | None = None,
        settings: Settings | None = None,
        clock: Clock | None = None,
        takes_schedules: bool = False,
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        *,
        lifespan: Lifespan[S],
        queues: Iterable[Queue] = (),
        retry: RetryPolicy | None = None,
        settings: Settings | None = None,
        clock: Clock | None = None,
        takes_schedules: bool = False,
    ) -> None: ...

    def __init__(
        self,
        name: str,
        *,
        lifespan: Lifespan[Any] | None = None,
        queues: Iterable[Queue] = (),
        retry: RetryPolicy | None = None,
        settings: Settings | None = None,
        clock: Clock | None = None,
        takes_schedules: bool = False,
    ) -> None:
        self.name = check_name(name, "The name of an app,")
        self.events = Events()
        self.levels = Levels()
        self.clock: Clock = clock or SystemClock()
        #: What the jitter of retries is drawn with: a number from 0 to 1.
        self.chance: Callable[[], float] = random.random
        self._queues = _distinct(name, queues)
        self.registry = Registry(name, retry, self._queues)
        self.enqueue_middlewares: list[EnqueueMiddleware] = []
        self.run_middlewares: list[RunMiddleware] = []
        #: Around what is told to the broker of a run; for observers of our own.
        self.settle_middlewares: list[SettleMiddleware] = []
        #: In the processes of handlers, where no others are.
        self.inner_middlewares: list[RunMiddleware] = []
        self.effects: list[Effect] = []
        self._telemetry: dict[str, object] = {}
        self._scheduled: dict[str, Scheduled] = {}
        self._schedules: Schedules | None = None
        self._takes_schedules = takes_schedules
        self._lifespan = lifespan
        self._settings = settings
        self._topology: Topology | None = None
        self._own: Producer | None = None
        self._lent: Client | None = None

    @property
    def settings(self) -> Settings:
        """Given ones, or those of the environment, read when first needed."""
        if self._settings is None:
            self._settings = load_settings()
        return self._settings

    @property
    def topology(self) -> Topology:
        if self._topology is None:
            self._topology = Topology(self.settings.namespace)
        return self._topology

    @property
    def queues(self) -> Sequence[Queue]:
        """All queues this app works on: the declared ones, its own, and those handlers name."""
        return self.registry.queues(self._queues)

    @property
    def schedules(self) -> "Schedules":
        """What this app declares to be scheduled, in order; and what sees and changes schedules at runtime."""
        if self._schedules is None:
            from amqpjobs.beat.schedules import Schedules

            self._schedules = Schedules(self, self._scheduled, self._client)
        return self._schedules

    @property
    def has_beats(self) -> bool:
        """Whether it has schedules, or takes some at runtime."""
        return self._takes_schedules or bool(self._scheduled)

    def plan(self) -> Plan:
        """The app's own part of the topology: its workers', and its beats' if it has any."""
        beats = [self.topology.beat(self.name)] if self.has_beats else []
        return together([self.work_plan(), *beats])

    def work_plan(self) -> Plan:
        """What its workers need."""
        return self.topology.app(self.queues, self.registry.subscriptions())

    def lifespan(self) -> AbstractAsyncContextManager[Any]:
        """A fresh run of the app's lifespan."""
        return nullcontext() if self._lifespan is None else self._lifespan()

    # Handlers

    @overload
    def handler(self, job: JobType[J, R], /, **options: Unpack[HandlerOptions]) -> Register[J, R, S]: ...
    @overload
    def handler(
        self, jobs: type[Sequence[JobType[J, R]]], /, *, batch: Batch, **options: Unpack[HandlerOptions]
    ) -> RegisterBatch[J, R, S]: ...

    def handler(self, job: Any, /, *, batch: Batch | None = None, **options: Unpack[HandlerOptions]) -> Any:
        """Register the decorated function as the handler of a job class.

        It takes the job and, if it wants, a `JobContext[State]`; it is async, or runs in a
        thread. Options: `queue`, `max_attempts`, `timeout` (s), `retry`, and `run_in`:
        "loop", "thread" or "process". Raises
        DefinitionError, DuplicateKindError or HandlerMismatchError.

        `@app.handler(list[Row], batch=Batch(size=100, seconds=1))` registers a function that
        takes a list of jobs and, if it wants, a `BatchContext[State]`. It returns a list with
        one entry a job, in their order: the result, or an exception (also Retry, Snooze,
        Cancel) that counts for this job alone. Where a job returns nothing it may return None:
        all have completed. What it raises counts for each job. The smallest timeout of the
        jobs is that of the run; `run_in` is "loop" or "thread".
        """
        if batch is None:
            refuse_list(job)
        own: type[Job[Any]] = job.job_type() if batch is None else jobs_of(job, batch)

        def register(function: Any) -> Any:
            self.registry.add(own, function, options, batch=batch)
            return function

        return register

    @overload
    def register(self, job: RunsAsync[J, R, S], /, **options: Unpack[HandlerOptions]) -> None: ...
    @overload
    def register(self, job: RunsAsyncAlone[J, R], /, **options: Unpack[HandlerOptions]) -> None: ...
    @overload
    def register(self, job: Runs[J, R, S], /, **options: Unpack[HandlerOptions]) -> None: ...
    @overload
    def register(self, job: RunsAlone[J, R], /, **options: Unpack[HandlerOptions]) -> None: ...

    def register(self, job: Runnable[Any, Any], /, **options: Unpack[HandlerOptions]) -> None:
        """Register a job class that has its handler as a method `run(self)` or `run(self, ctx)`.

        The options and errors are those of `handler`.
        """
        own: type[Job[Any]] = job.job_type()
        function = getattr(own, "run", None)
        if function is None:
            raise DefinitionError(
                f"{own.__name__} has no method `run`. Write one, or register a function "
                f"with @app.handler({own.__name__})."
            )
        self.registry.add(own, function, options, is_method=True)

    # Schedules

    def schedule(
        self,
        schedule: Schedule,
        *,
        job: Job[Any],
        name: str | None = None,
        misfire: Misfire = "once",
        limit: int = CATCH_UP,
        grace: Seconds = GRACE,
        overlap: Overlap = "allow",
        overlap_limit: Seconds = OVERLAP_LIMIT,
        **options: Unpack[TickOptions],
    ) -> Callable[[F], F]:
        """Enqueue `job` at each instant of a schedule, while a beat runs. Usable as a decorator, beside a handler.

        `name` (default: the job's kind) is what the beats remember it by; each job has the id
        `name@instant`. A tick that is up to `grace` seconds late (30) is published all the same.
        Of later ones `misfire` says: "once" (default) publishes only the latest of all that are
        due, "skip" leaves out those that are later than the grace, "all" publishes all that are
        due, the latest `limit` (100) at most. Of ticks that are due while the job of the last one is
        still queued or running `overlap` says: "allow" (default) publishes them, "skip" leaves them
        out, "queue" publishes one, the latest, when that job has ended. A job whose end nobody tells
        counts as ended after `overlap_limit` seconds (a day). `options` are those of an enqueue: `queue`,
        `priority`, `expires`, `headers`, `max_attempts`, `timeout`, `on_unroutable`.

        Raises DefinitionError for what cannot be, and for a second schedule of the same name.
        """
        made = Scheduled(
            name=name or options_of(type(job)).kind,
            schedule=schedule,
            job=job,
            misfire=misfire,
            limit=limit,
            grace=in_seconds(grace),
            overlap=overlap,
            overlap_limit=in_seconds(overlap_limit),
            options=options,
        )
        if made.name in self._scheduled:
            raise DefinitionError(
                f"App {self.name!r} has two schedules called {made.name!r}. Give each a name of its own: "
                'app.schedule(…, name="…").'
            )
        self._scheduled[made.name] = made
        return _itself

    # Seams

    def enqueue_middleware(self, middleware: EnqueueMiddleware) -> EnqueueMiddleware:
        """Wrap what this app enqueues. Usable as a decorator."""
        self.enqueue_middlewares.append(middleware)
        return middleware

    def run_middleware(self, middleware: RunMiddleware) -> RunMiddleware:
        """Wrap what this app runs. Usable as a decorator."""
        self.run_middlewares.append(middleware)
        return middleware

    def effect(self, effect: Effect) -> Effect:
        """Publish more with each outcome, before the ack. Usable as a decorator."""
        self.effects.append(effect)
        return effect

    @property
    def is_observed(self) -> bool:
        """Whether it is traced or measured."""
        return bool(self._telemetry)

    def observe(self, *, always: bool = False) -> None:
        """Begin to trace and to measure what this app does, if somebody has set a provider for that by now.

        Whatever connects asks for it: the app when it is entered or first enqueues, a Worker, a
        Beat, a BlockingClient. Without a provider nothing is done here, and nothing for a job.
        `always` is for a child of a worker that is observed.
        """
        # Nobody has set a provider who has not loaded its module; loading them for nothing would take 40 ms.
        if self._telemetry or not (always or _OPENTELEMETRY & sys.modules.keys()):
            return
        from amqpjobs.telemetry import telemetry_of

        made = telemetry_of(self, always=always)
        # A dict's own method is atomic: a thread's client may connect at the same moment.
        if made and self._telemetry.setdefault("made", made) is made:
            self.enqueue_middlewares[:0] = made.enqueue
            self.run_middlewares[:0] = made.run
            self.settle_middlewares[:0] = made.settle
            self.inner_middlewares[:0] = made.inner

    def on(self, event: type[E]) -> Callable[[Callable[[E], None]], Callable[[E], None]]:
        """Watch events of one class: `@app.on(JobEnded)`."""

        def subscribe(subscriber: Callable[[E], None]) -> Callable[[E], None]:
            self.events.subscribe(event, subscriber)
            return subscriber

        return subscribe

    # Enqueue

    async def enqueue(self, job: Job[R], **options: Unpack[EnqueueOptions]) -> JobHandle[R]:
        """Enqueue a job; returns when the broker has it in at least one queue, or raises.

        Raises EnqueueError (UnroutableError, RefusedError, TooLargeError, UnconfirmedError,
        EnqueueTimeoutError) and ValueError for options that cannot be. See `EnqueueOptions`.
        """
        return await (await self._client()).enqueue(job, **options)

    async def call(self, job: Job[R], *, timeout: Seconds = RESULT_WITHIN, **options: Unpack[CallOptions]) -> R:
        """Enqueue a job and wait for its result: what its handler returned, typed by the job class.

        `timeout` is for all of it, in seconds (30); a job whose caller gave up runs all the same, unless it
        `expires`. Where two services run the kind, each runs its copy, and the first answer counts. A job that is
        tried again answers when it has ended.

        Raises what `enqueue` raises, and what `JobHandle.result` does: JobFailedError, JobCancelledError,
        ResultTimeoutError, ResultError. See docs/results.md for what an answer is worth.
        """
        return await (await self._client()).call(job, timeout=timeout, **options)

    @overload
    async def gather(
        self, one: Job[R] | JobHandle[R], two: Job[R2] | JobHandle[R2], /, *, timeout: Seconds = ...
    ) -> tuple[R, R2]: ...
    @overload
    async def gather(
        self,
        one: Job[R] | JobHandle[R],
        two: Job[R2] | JobHandle[R2],
        three: Job[R3] | JobHandle[R3],
        /,
        *,
        timeout: Seconds = ...,
    ) -> tuple[R, R2, R3]: ...
    @overload
    async def gather(self, *awaited: Job[R] | JobHandle[R], timeout: Seconds = ...) -> tuple[R, ...]: ...
    @overload
    async def gather(
        self, *awaited: Job[R] | JobHandle[R], timeout: Seconds = ..., return_exceptions: bool
    ) -> tuple[R | BaseException, ...]: ...

    async def gather(
        self, *awaited: Any, timeout: Seconds = RESULT_WITHIN, return_exceptions: bool = False
    ) -> tuple[Any, ...]:
        """The results of many, in the order they are given: handles enqueued with `reply=True`, and jobs to be called.

        `timeout` (30 s) is for each and so for all, since they are awaited at once. The first error is raised, and
        the others are awaited no more, as with `asyncio.gather`; with `return_exceptions` each error stands in the
        place of its result. Jobs are not stopped by either.
        """
        client = await self._client()
        return await client.gather(awaited, timeout=timeout, return_exceptions=return_exceptions)

    async def enqueue_many(self, jobs: Iterable[Job[R]], **options: Unpack[EnqueueOptions]) -> list[JobHandle[R]]:
        """Enqueue jobs, their confirms pipelined; the options and the deadline are for all together.

        Raises EnqueueManyError when some were not confirmed; it tells which were.
        """
        return await (await self._client()).enqueue_many(jobs, **options)

    def check(self, job: Job[Any], **options: Unpack[EnqueueOptions]) -> None:
        """Raise at once what `enqueue` would raise without asking the broker, for who enqueues later.

        That is: options that are misspelt or cannot be, a job that cannot be written, and what is
        too large. No connection is needed, and no middleware is asked.
        """
        drafts_of(self).check(job, options)

    def buffer(
        self, *, limit: int = BUFFER_LIMIT, max_bytes: int = BUFFER_BYTES, timeout: Seconds | None = None
    ) -> "Buffer":
        """A buffer in memory, for who may not wait: `async with app.buffer() as buffer`.

        It holds `limit` jobs at most, and `max_bytes` of their bodies and headers (64 MiB).
        Leaving the block waits for their confirms for `timeout` seconds at most (default: the
        setting `enqueue_timeout`, 5 s). See `Buffer` for what it promises, and what it does not.
        """
        from amqpjobs.buffer import Buffer

        return Buffer(self, self._client, limit=limit, max_bytes=max_bytes, timeout=timeout)

    async def __aenter__(self) -> Self:
        await self._client()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the producer's connection, if one was opened. The next enqueue opens it again."""
        own, self._own = self._own, None
        if own is not None:
            await own.close()

    def lend(self, client: Client | None) -> None:
        """Use this client until it is taken back with None; the worker's, while one runs."""
        self._lent = client

    @contextmanager
    def overridden(self, *, settings: Settings, clock: Clock, chance: Callable[[], float]) -> Generator[None]:
        """Other settings, another clock and chance for the time of a block, for tests.

        Inside, the app connects anew. Afterwards all is as before, what middlewares were added too.
        """
        kept = dict(vars(self))
        self._settings, self._topology, self._own, self._lent = settings, None, None, None
        self.clock, self.chance = clock, chance
        self.enqueue_middlewares, self.run_middlewares = [*self.enqueue_middlewares], [*self.run_middlewares]
        self.settle_middlewares, self.inner_middlewares = [*self.settle_middlewares], [*self.inner_middlewares]
        self._telemetry = {**self._telemetry}
        try:
            yield
        finally:
            vars(self).update(kept)

    async def _client(self) -> Client:
        if self._lent is not None:
            return self._lent
        loop = asyncio.get_running_loop()
        if self._own is None or self._own.loop is not loop:  # one of an ended asyncio.run() is of no use
            self._own = Producer(self, loop)
            await self._own.open()
        return self._own.client


def _itself(decorated: F) -> F:
    return decorated


def _distinct(app: str, queues: Iterable[Queue]) -> list[Queue]:
    every = list(queues)
    names = [queue.name for queue in every]
    for name in names:
        if names.count(name) > 1:
            raise DefinitionError(f"App {app!r} declares queue {name!r} twice.")
    return every
