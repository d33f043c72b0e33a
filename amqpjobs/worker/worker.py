"""The worker: consumes an app's queues and runs its handlers.

Two connections: one consumes and acks, one publishes what follows, because the broker stops
reading from publishing connections when it is short of memory or disk. A delivery waits
until a slot is free, runs in a task of its own, and is settled by its outcome. Those of a
batch handler share a slot.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType
from typing import Any, Protocol, Self

from amqpjobs.amqp.connection import CLIENT_ERRORS, Link, Session
from amqpjobs.amqp.consumer import Consumer, consume
from amqpjobs.amqp.declare import Declarer, told_of_consuming
from amqpjobs.amqp.publisher import Publisher
from amqpjobs.amqp.watchdog import Watchdog
from amqpjobs.client import Client
from amqpjobs.clock import end_task
from amqpjobs.effects import Effect
from amqpjobs.errors import AmqpJobsError, DefinitionError
from amqpjobs.events import (
    Events,
    WorkerStarted,
    WorkerStopped,
    WorkerStopping,
)
from amqpjobs.job import hint
from amqpjobs.levels import Level, Look
from amqpjobs.middleware import RunMiddleware, SettleMiddleware, around_settle
from amqpjobs.outcome import Returned
from amqpjobs.producer import Producing
from amqpjobs.registry import Registry
from amqpjobs.replies import Replies
from amqpjobs.topology import Plan, Queue
from amqpjobs.wire import Delivery
from amqpjobs.worker.batches import prefetch_of
from amqpjobs.worker.execution import Execution
from amqpjobs.worker.intake import Intake
from amqpjobs.worker.introduction import introduction, refuse_while_a_child_starts
from amqpjobs.worker.parked import Parked
from amqpjobs.worker.processes import Processes
from amqpjobs.worker.quarantine import Quarantine
from amqpjobs.worker.readiness import Holders, unconsumed
from amqpjobs.worker.run import Run
from amqpjobs.worker.running import Running
from amqpjobs.worker.settle import Settler
from amqpjobs.worker.shards import Shards
from amqpjobs.worker.suspicion import Suspicion
from amqpjobs.worker.threads import Threads
from amqpjobs.worker.ticks import Ticks

_log = logging.getLogger(__name__)

#: A worker passes on what came, whatever its size: a body too large to run is a dead letter.
AS_LARGE_AS_IT_CAME = 2**31
#: Seconds a stopping worker gives its consumers, and at the very end its settling, to finish.
LAST_WORDS = 5.0


class Service(Producing, Protocol):
    """What a worker needs of an app, beside what a producer does."""

    @property
    def registry(self) -> Registry: ...
    @property
    def queues(self) -> Sequence[Queue]: ...
    @property
    def run_middlewares(self) -> Sequence[RunMiddleware]: ...
    @property
    def settle_middlewares(self) -> Sequence[SettleMiddleware]: ...
    @property
    def effects(self) -> Sequence[Effect]: ...
    @property
    def chance(self) -> Callable[[], float]: ...

    def lifespan(self) -> AbstractAsyncContextManager[Any]:
        """Around the worker's life; yields the state handlers see."""
        ...

    def lend(self, client: Client | None) -> None:
        """Let the app's own enqueue use the worker's connection; None ends that."""
        ...


class Worker:
    """Works while it is entered.

    Entering connects, declares and consumes; it raises BrokerError when a login, a
    permission or the topology is refused, and with the default URL also when no broker
    answers. Any other broker that is away is waited for. Leaving drains: what has not
    started is handed back, what runs may finish within `grace` seconds (default: the setting).
    With `apart=False` handlers with `run_in="process"` run in this one all the same, for tests.
    """

    def __init__(
        self,
        app: Service,
        *,
        concurrency: int | None = None,
        queues: Sequence[str] | None = None,
        strict: bool = False,
        grace: float | None = None,
        apart: bool = True,
    ) -> None:
        self._app = app
        self._apart = apart
        self._settings = app.settings
        self._grace = app.settings.grace if grace is None else grace
        self._concurrency = concurrency or app.settings.concurrency
        self._queues = _chosen(app, queues)
        self._prefetch = {
            queue.name: prefetch_of(queue, app.registry.handlers, self._concurrency) for queue in self._queues
        }
        self._suspicion = Suspicion()
        self._intake = Intake(
            registry=app.registry,
            clock=app.clock,
            queues=self._queues,
            concurrency=self._concurrency,
            strict=strict,
            suspicion=self._suspicion,
            on_ready=self._wake,
        )
        self._running: Running | None = None
        self._holders = Holders(self._timeout_of)
        self._consumers: list[Consumer] = []
        self._threads = Threads()
        self._declarer = Declarer(app.topology, app.events)
        self._shards = Shards(
            topology=app.topology,
            declarer=self._declarer,
            events=app.events,
            suspicion=self._suspicion,
            prefetch=self._prefetch,
            on_delivery=self._intake.add,
            rejoins=self._rejoins,
        )
        self._consuming = Link("worker", app.settings, app.events, self._prepare)
        self._publishing = Link("worker publisher", app.settings, app.events, self._prepare_nothing)
        self._publisher = Publisher(self._publishing, longest_body=AS_LARGE_AS_IT_CAME)
        self._settler = Settler(
            topology=app.topology,
            publisher=self._publisher,
            clock=app.clock,
            events=app.events,
            replies=Replies(app.topology, app.registry, longest=app.settings.max_body),
            effects=app.effects,
        )
        self._stack = AsyncExitStack()
        self._stop_asked = asyncio.Event()
        self._hurry_asked = asyncio.Event()
        self._is_stopping = False

    @property
    def is_consuming(self) -> bool:
        """Whether the broker has confirmed all consumers on a connection that is up."""
        return self._consuming.is_up and not self._is_stopping

    @property
    def running(self) -> int:
        """Jobs that have begun and are not settled."""
        return 0 if self._running is None else len(self._running)

    @property
    def waiting(self) -> int:
        """Jobs that came and have not begun: for a slot, for the rest of their batch, after a crash, for their key."""
        return self._intake.waiting + self._shards.waiting

    @property
    def cancelled(self) -> int:
        """Runs that were cut short at the end; 0 after a clean stop."""
        return 0 if self._running is None else self._running.cancelled

    @property
    def events(self) -> Events:
        """What happens here; the app's own."""
        return self._app.events

    def look(self) -> None:
        """See who holds its slots, once a second or so, for `troubles`."""
        self._holders.look(self._running or (), self._app.clock.monotonic())

    def troubles(self) -> list[str]:
        """Why it is not ready, in words; empty: it is."""
        if self._stop_asked.is_set() or self._is_stopping:
            return ["draining"]
        absent = [link.absence for link in (self._consuming, self._publishing) if not link.is_up]
        parts = {part: queue.name for queue in self._queues for part in self._app.topology.parts(queue)}
        missing = unconsumed(parts, self._all_consumers()) if self._consuming.is_up else []
        return [*absent, *missing, *self._stuck()]

    async def left(self) -> int:
        """How many jobs wait in its queues for anybody, and wait or run here. Delayed ones do not count.

        Waits while the broker is away; raises BrokerError, or the client library's error, when it goes away.
        """
        session = await self._publishing.session()
        queues = {part for queue in self._queues for part in self._app.topology.parts(queue)}
        queues |= {each.queue for each in self._shards.consumers}  # those of a greater number of shards too
        ready = [await self._declarer.count(session, queue) or 0 for queue in queues]
        return sum(ready) + self.waiting + self.running

    async def __aenter__(self) -> Self:
        app = self._app
        refuse_while_a_child_starts()
        app.observe()
        app.registry.check_timeouts(app.queues, app.settings)
        processes = self._processes_needed()
        async with AsyncExitStack() as stack:
            state = await stack.enter_async_context(app.lifespan())
            await stack.enter_async_context(self._publishing)
            client = Client(
                app=app.name,
                settings=app.settings,
                topology=app.topology,
                clock=app.clock,
                events=app.events,
                link=self._publishing,
                publisher=Publisher(self._publishing, longest_body=app.settings.max_body),
                middlewares=app.enqueue_middlewares,
            )
            stack.push_async_callback(client.close)
            app.lend(client)
            stack.callback(app.levels.tell(self._levels(client)))
            stack.callback(app.lend, None)
            stack.callback(self._threads.close)
            if processes is not None:
                await stack.enter_async_context(processes)
            execution = Execution(
                registry=app.registry,
                settings=app.settings,
                clock=app.clock,
                events=app.events,
                threads=self._threads,
                state=state,
                enqueue=client.enqueue,
                middlewares=app.run_middlewares,
                processes=processes,
                chance=app.chance,
            )
            self._running = self._made_running(execution, await self._entered_quarantine(stack, execution))
            await stack.enter_async_context(self._consuming)
            await self._consuming.first_session()
            watchdog = Watchdog(self._declarer, app.settings.heartbeat, self._all_consumers)
            stack.push_async_callback(end_task, asyncio.create_task(watchdog.watch()))
            if any(queue.shards is not None for queue in self._queues):
                stack.push_async_callback(end_task, asyncio.create_task(self._shards.watch()))
            parked = Parked(app, self._declarer, self._publishing, self._publisher, client)
            stack.push_async_callback(end_task, asyncio.create_task(parked.watch()))
            self._stack = stack.pop_all()
        kinds = [handler.kind for handler in app.registry.handlers]
        app.events.emit(WorkerStarted([queue.name for queue in self._queues], kinds, self._concurrency))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain()
        await self._stack.aclose()
        if self._running is not None:
            await self._running.end(LAST_WORDS)
        self._app.events.emit(WorkerStopped(self.cancelled))

    async def run(self) -> None:
        """Work until `stop` is called."""
        await self._stop_asked.wait()

    def stop(self) -> None:
        """Ask for a clean stop; a second call cuts short what still runs."""
        if self._stop_asked.is_set():
            self._hurry_asked.set()
        self._stop_asked.set()

    async def drain(self) -> None:
        """Take nothing new, hand back what has not started, let the rest finish or cut it short."""
        if self._is_stopping:
            return
        self._is_stopping = True
        self._shards.leave()
        await self._cancel_consumers()
        await self._app.clock.sleep(0)  # the library hands on what came before the cancel-ok
        waiting = self._intake.close()
        for delivery in waiting:
            await self._settler.settle(delivery, None, Returned())
        self._app.events.emit(WorkerStopping(self.running, len(waiting) + self._shards.waiting))
        giving_up = asyncio.create_task(self._give_up_shards())
        if self._running is not None:
            await self._running.wait(self._grace, self._hurry_asked)
            self._running.cut_short()
            self._hurry_asked.clear()
            await self._running.wait(LAST_WORDS, self._hurry_asked)
        await end_task(giving_up)  # what is left goes with the connection

    def _levels(self, client: Client) -> dict[Level, Look]:
        return {
            Level.CAPACITY: lambda: self._concurrency,
            Level.BUSY: lambda: self._intake.busy,
            Level.UNCONFIRMED: lambda: self._publisher.unconfirmed + client.unconfirmed,
        }

    async def _entered_quarantine(self, stack: AsyncExitStack, execution: Execution) -> Quarantine:
        app = self._app
        return await stack.enter_async_context(
            Quarantine(
                app=app,
                registry=app.registry,
                settings=app.settings,
                clock=app.clock,
                events=app.events,
                execution=execution,
                suspicion=self._suspicion,
            )
        )

    def _made_running(self, execution: Execution, quarantine: Quarantine) -> Running:
        return Running(
            clock=self._app.clock,
            events=self._app.events,
            settler=self._settler,
            settle=around_settle(self._app.settle_middlewares, self._settler.settle),
            ticks=Ticks(
                topology=self._app.topology,
                publisher=self._publisher,
                line=self._publishing,
                clock=self._app.clock,
                events=self._app.events,
            ),
            execution=execution,
            quarantine=quarantine,
            suspicion=self._suspicion,
            longest_body=self._settings.max_body,
            limit=sum(self._prefetch[queue.name] * (queue.shards or 1) for queue in self._queues),
            pull=self._next,
            on_left=self._intake.leave,
        )

    def _processes_needed(self) -> Processes | None:
        app = self._app
        if not self._apart or all(handler.run_in != "process" for handler in app.registry.handlers):
            return None
        return Processes(introduction(app, app.registry), settings=app.settings, clock=app.clock)

    # Consuming

    async def _prepare(self, session: Session) -> None:
        """What each new session needs: our queues, just our bindings, our consumers."""
        if self._is_stopping:
            return
        self._note_lost()
        await self._declarer.prepare(session, self._plan(), declares=self._settings.declare)
        with told_of_consuming():
            self._consumers = [
                await consume(
                    session,
                    queue=self._app.topology.work_queue(queue.name),
                    name=queue.name,
                    prefetch=self._prefetch[queue.name],
                    on_delivery=self._received,
                )
                for queue in self._queues
                if queue.shards is None
            ]
            await self._shards.open(session, [queue for queue in self._queues if queue.shards is not None])

    async def _prepare_nothing(self, session: Session) -> None:
        """The publishing connection needs no more than to be open."""

    def _stuck(self) -> list[str]:
        self.look()
        how = self._holders.stuck(self._app.clock.monotonic()) if self._intake.is_full else ""
        return [f"all {self._concurrency} slots of {self._app.name!r} are stuck: {how}"] if how else []

    def _timeout_of(self, run: Run) -> float:
        return 0.0 if self._running is None else self._running.timeout_of(run)

    def _plan(self) -> Plan:
        return self._app.topology.app(self._app.queues, self._app.registry.subscriptions())

    def _received(self, delivery: Delivery) -> None:
        if self._running is None or not self._running.rejoin(delivery):
            self._intake.add(delivery)

    def _rejoins(self, delivery: Delivery) -> bool:
        return self._running is not None and self._running.rejoin(delivery)

    def _all_consumers(self) -> list[Consumer]:
        return [*self._consumers, *self._shards.consumers]

    def _note_lost(self) -> None:
        """What we held when a connection went comes back, and has killed nobody."""
        if self._running is not None:
            self._running.note_lost()
        self._suspicion.pardon(self._intake.drop_lost())
        self._shards.drop_lost()

    def _wake(self) -> None:
        if self._running is not None:
            self._running.wake()

    def _next(self) -> Sequence[Run]:
        """What begins next in one slot, if anything does."""
        return () if self._is_stopping or self._stop_asked.is_set() else self._intake.take()

    # Stopping

    async def _cancel_consumers(self) -> None:
        with contextlib.suppress(TimeoutError, *CLIENT_ERRORS):
            async with self._app.clock.timeout(LAST_WORDS):
                for consumer in [*self._consumers, *self._shards.crew]:
                    await consumer.cancel()

    async def _give_up_shards(self) -> None:
        with contextlib.suppress(*CLIENT_ERRORS, AmqpJobsError):
            await self._shards.close()


def _chosen(app: Service, names: Sequence[str] | None) -> list[Queue]:
    """The app's queues, or only the named ones, in the order they are named."""
    if names is None:
        return list(app.queues)
    known = {queue.name: queue for queue in app.queues}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DefinitionError(f"App {app.name!r} has no queue {unknown[0]!r}.{hint(unknown[0], list(known))}")
    return [known[name] for name in names]
