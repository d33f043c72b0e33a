"""The worker: consumes an app's queues and runs its handlers.

Two connections: one consumes and acks, one publishes what follows, because the broker stops
reading from publishing connections when it is short of memory or disk. A delivery waits
until a slot is free, runs in a task of its own, and is settled by its outcome.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType
from typing import Any, Protocol, Self

from amqpjobs.amqp.connection import CLIENT_ERRORS, Link, Session
from amqpjobs.amqp.consumer import Consumer, consume
from amqpjobs.amqp.declare import Declarer, told_of_consuming
from amqpjobs.amqp.publisher import Publisher
from amqpjobs.amqp.watchdog import Watchdog
from amqpjobs.client import Client
from amqpjobs.codec import decode
from amqpjobs.effects import Effect
from amqpjobs.errors import DefinitionError, TooLargeError, UnreadableError
from amqpjobs.events import (
    JobEnded,
    MessageDied,
    WorkerStarted,
    WorkerStopped,
    WorkerStopping,
)
from amqpjobs.job import hint
from amqpjobs.middleware import RunMiddleware
from amqpjobs.outcome import Dead, DeadReason, Outcome, Returned
from amqpjobs.producer import Producing
from amqpjobs.registry import Registry
from amqpjobs.settings import Settings
from amqpjobs.topology import Plan, Queue
from amqpjobs.wire import Delivery
from amqpjobs.worker.execution import Execution
from amqpjobs.worker.introduction import refuse_while_a_child_starts
from amqpjobs.worker.parked import Parked
from amqpjobs.worker.processes import Processes
from amqpjobs.worker.running import Run, Severed, Slots
from amqpjobs.worker.settle import Settler
from amqpjobs.worker.threads import Threads

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
    def effects(self) -> Sequence[Effect]: ...

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
    started is handed back, what runs may finish within `grace` seconds.
    """

    def __init__(
        self,
        app: Service,
        *,
        concurrency: int | None = None,
        queues: Sequence[str] | None = None,
        strict: bool = False,
    ) -> None:
        self._app = app
        self._settings = app.settings
        self._concurrency = concurrency or app.settings.concurrency
        self._queues = _chosen(app, queues)
        self._slots = Slots(self._concurrency, self._queues, strict=strict)
        self._runs: set[Run] = set()
        self._severed = Severed(self._concurrency)
        self._consumers: list[Consumer] = []
        self._threads = Threads()
        self._declarer = Declarer(app.topology, app.events)
        self._consuming = Link("worker", app.settings, app.events, self._prepare)
        self._publishing = Link("worker publisher", app.settings, app.events, self._prepare_nothing)
        self._publisher = Publisher(self._publishing, longest_body=AS_LARGE_AS_IT_CAME)
        self._settler = Settler(
            topology=app.topology,
            publisher=self._publisher,
            clock=app.clock,
            events=app.events,
            effects=app.effects,
        )
        self._execution: Execution | None = None
        self._stack = AsyncExitStack()
        self._stop_asked = asyncio.Event()
        self._hurry_asked = asyncio.Event()
        self._idle = asyncio.Event()
        self._is_stopping = False
        #: Runs that were cut short at the end; 0 after a clean stop.
        self.cancelled = 0

    @property
    def is_consuming(self) -> bool:
        """Whether the broker has confirmed all consumers on a connection that is up."""
        return self._consuming.is_up and not self._is_stopping

    @property
    def running(self) -> int:
        """Jobs in slots."""
        return len(self._runs)

    async def __aenter__(self) -> Self:
        app = self._app
        refuse_while_a_child_starts()
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
            app.lend(client)
            stack.callback(app.lend, None)
            stack.callback(self._threads.close)
            if processes is not None:
                await stack.enter_async_context(processes)
            self._execution = Execution(
                registry=app.registry,
                settings=app.settings,
                clock=app.clock,
                events=app.events,
                threads=self._threads,
                state=state,
                enqueue=client.enqueue,
                middlewares=app.run_middlewares,
                processes=processes,
            )
            await stack.enter_async_context(self._consuming)
            await self._consuming.first_session()
            watchdog = Watchdog(self._declarer, app.settings.heartbeat, lambda: self._consumers)
            stack.push_async_callback(_ended, asyncio.create_task(watchdog.watch()))
            parked = Parked(app, self._declarer, self._publishing, self._publisher, client)
            stack.push_async_callback(_ended, asyncio.create_task(parked.watch()))
            self._stack = stack.pop_all()
        kinds = [handler.kind for handler in app.registry.handlers]
        app.events.emit(WorkerStarted([queue.name for queue in self._queues], kinds, self._concurrency))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain()
        await self._stack.aclose()
        left = [run.task for run in self._runs if run.task is not None]
        for task in left:  # settling that the broker never answered: their jobs come again
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=LAST_WORDS)
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
        await self._cancel_consumers()
        await self._app.clock.sleep(0)  # the library hands on what came before the cancel-ok
        waiting = self._slots.empty()
        for delivery in waiting:
            await self._settler.settle(delivery, None, Returned())
        self._app.events.emit(WorkerStopping(len(self._runs), len(waiting)))
        await self._wait_for_runs(self._settings.grace)
        self._cut_short()
        await self._wait_for_runs(LAST_WORDS)

    def _processes_needed(self) -> Processes | None:
        app = self._app
        if all(handler.run_in != "process" for handler in app.registry.handlers):
            return None
        return Processes(app=app, registry=app.registry, settings=app.settings, clock=app.clock)

    # Consuming

    async def _prepare(self, session: Session) -> None:
        """What each new session needs: our queues, just our bindings, our consumers."""
        if self._is_stopping:
            return
        self._slots.drop_lost()
        for run in self._runs:
            if not run.delivery.settler.is_open:
                self._severed.add(run)
        await self._declarer.prepare(session, self._plan(), declares=self._settings.declare)
        with told_of_consuming():
            self._consumers = [
                await consume(
                    session,
                    queue=self._app.topology.work_queue(queue.name),
                    name=queue.name,
                    prefetch=queue.prefetch or self._concurrency,
                    on_delivery=self._received,
                )
                for queue in self._queues
            ]

    async def _prepare_nothing(self, session: Session) -> None:
        """The publishing connection needs no more than to be open."""

    def _plan(self) -> Plan:
        return self._app.topology.app(self._app.queues, self._app.registry.subscriptions())

    def _received(self, delivery: Delivery) -> None:
        run = self._severed.take(delivery)
        if run is None or not self._rejoin(run, delivery):
            self._slots.add(delivery)
            self._start_what_fits()

    def _rejoin(self, run: Run, delivery: Delivery) -> bool:
        """A run gets back the delivery that it lost; one that has ended settles it now. False: it was cut short."""
        if run in self._runs:
            run.delivery = delivery
        elif run.outcome is not None:
            run.delivery = delivery
            self._runs.add(run)
            run.task = asyncio.create_task(self._settle_late(run, run.outcome))
        return run in self._runs

    def _start_what_fits(self) -> None:
        while not self._is_stopping and (delivery := self._slots.take()) is not None:
            run = Run(delivery)
            self._runs.add(run)
            run.task = asyncio.create_task(self._work(run))

    # One job

    async def _work(self, run: Run) -> None:
        clock, started = self._app.clock, self._app.clock.monotonic()
        try:
            outcome = await self._outcome(run)
            run.seconds = clock.monotonic() - started
            run.is_settling = True
            await self._settle(run, outcome)
        except Exception:
            # Nothing above may raise; if it does, the message stays unacked and comes again
            # with the next connection.
            _log.exception("A delivery could not be handled")
        finally:
            self._slots.release()
            self._forget(run)
            self._start_what_fits()

    async def _settle_late(self, run: Run, outcome: Outcome) -> None:
        """As `_work`, for a run that had ended, and left its slot, before its delivery came again."""
        try:
            await self._settle(run, outcome)
        except Exception:
            _log.exception("A delivery could not be handled")
        finally:
            self._forget(run)

    async def _settle(self, run: Run, outcome: Outcome) -> None:
        delivery = None
        while delivery is not run.delivery:  # else it came again in the meantime
            delivery = run.delivery
            if await self._settler.settle(delivery, run.envelope, outcome):
                self._tell(run, outcome, run.seconds)
                return
        if not isinstance(outcome, Returned):  # that one is to be run again
            run.outcome = outcome
            self._severed.add(run)

    def _forget(self, run: Run) -> None:
        self._runs.discard(run)
        if not self._runs:
            self._idle.set()

    async def _outcome(self, run: Run) -> Outcome:
        assert self._execution is not None
        try:
            run.envelope = decode(run.delivery)
            if len(run.delivery.body) > self._settings.max_body:
                return Dead(DeadReason.TOO_LARGE, _too_large(run.delivery, self._settings))
            return await self._execution.run(run.envelope)
        except UnreadableError as error:
            return Dead(DeadReason.UNREADABLE, error)
        except asyncio.CancelledError:
            self.cancelled += 1
            return Returned()

    def _tell(self, run: Run, outcome: Outcome, seconds: float) -> None:
        events = self._app.events
        if run.envelope is None:
            events.emit(MessageDied(run.delivery.queue, run.delivery.properties.message_id, outcome))
        elif events.wanted(JobEnded):
            events.emit(JobEnded(run.envelope, outcome, seconds))

    # Stopping

    async def _cancel_consumers(self) -> None:
        with contextlib.suppress(TimeoutError, *CLIENT_ERRORS):
            async with self._app.clock.timeout(LAST_WORDS):
                for consumer in self._consumers:
                    await consumer.cancel()

    async def _wait_for_runs(self, seconds: float) -> None:
        """Until nothing runs, the time is over, or somebody is in a hurry."""
        self._idle.clear()
        if not self._runs:
            return
        waits = [asyncio.ensure_future(self._idle.wait()), asyncio.ensure_future(self._hurry_asked.wait())]
        with contextlib.suppress(TimeoutError):
            async with self._app.clock.timeout(seconds):
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def _cut_short(self) -> None:
        for run in self._runs:
            if run.task is not None and not run.is_settling:
                run.task.cancel("the worker stops")
        self._hurry_asked.clear()


async def _ended(task: "asyncio.Task[None]") -> None:
    # More than once: the client library turns a cancellation in the midst of an RPC into another error.
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.1)


def _chosen(app: Service, names: Sequence[str] | None) -> list[Queue]:
    """The app's queues, or only the named ones, in the order they are named."""
    if names is None:
        return list(app.queues)
    known = {queue.name: queue for queue in app.queues}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DefinitionError(f"App {app.name!r} has no queue {unknown[0]!r}.{hint(unknown[0], list(known))}")
    return [known[name] for name in names]


def _too_large(delivery: Delivery, settings: Settings) -> TooLargeError:
    return TooLargeError(
        f"The body has {len(delivery.body)} bytes, and this worker takes {settings.max_body} at most "
        "(AMQPJOBS_MAX_BODY)."
    )
