"""The beat: any number of them, one leads and publishes the ticks of an app's schedules.

All it does goes over one connection with a short heartbeat. On it the beat holds its lease, and
on it it publishes; so one that the broker has given up cannot publish, whatever it believes.
When the connection ends, so does the term, and nothing of it is carried over: the next leader,
perhaps the same beat, reads from the register how far the last one came.
"""

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Protocol, Self, cast

from amqpjobs.amqp.connection import Link, OneSession, Session
from amqpjobs.amqp.declare import Declarer
from amqpjobs.amqp.inbox import attend
from amqpjobs.amqp.lease import Lease
from amqpjobs.amqp.publisher import Publisher
from amqpjobs.amqp.register import Register
from amqpjobs.amqp.runs import Runs
from amqpjobs.beat.control import Control, followed
from amqpjobs.beat.plan import Scheduled, Tick
from amqpjobs.beat.runs import Ends
from amqpjobs.beat.runtime import Leader
from amqpjobs.beat.state import State, state_from
from amqpjobs.beat.term import KEEP_WITHIN, NAP, Term
from amqpjobs.client import Client
from amqpjobs.clock import Seconds, end_task, in_seconds
from amqpjobs.envelope import new_id
from amqpjobs.errors import AmqpJobsError, BrokerError, EnqueueTimeoutError
from amqpjobs.events import BeatDeposed, BeatLeading, BeatStarted, Events
from amqpjobs.handle import EnqueueOptions
from amqpjobs.levels import Level
from amqpjobs.producer import Producing, drafts_of
from amqpjobs.settings import host_name
from amqpjobs.wire import Delivery

#: Seconds between heartbeats, unless the setting asks for less.
HEARTBEAT = 2
#: Of them, after which a leader that hears nothing of the broker gives up.
SILENCE = 3
#: Seconds that a beat which could not begin its term leaves to others.
PAUSE = 1.0
#: Seconds that a leader who is asked to stop has for the ticks on their way, and for writing them down.
LAST_WORDS = 20.0
#: Seconds for which a new leader's ticks wait for the commands that had waited for it.
CATCH_UP_WITHIN = 5.0


class Beating(Producing, Protocol):
    """What a beat needs of an app, beside what a producer does."""

    @property
    def schedules(self) -> Sequence[Scheduled]: ...


class Beat:
    """Leads, or waits for its turn, while it is entered.

    Entering connects and declares; it raises BrokerError when a login, a permission or the
    topology is refused, and with the default URL also when no broker answers there. After any
    lost connection it comes back by itself. Leaving publishes what is just due, writes down
    what was published, and lets another one lead.
    """

    def __init__(self, app: Beating, *, nap: Seconds = NAP, heartbeat: int = HEARTBEAT) -> None:
        """After `nap` (seconds or a timedelta; 1 s) at the latest a jump of the clock is noticed.

        With a clock that does not jump, as in a test, it may be as long as one likes. A beat that is frozen is
        followed within three heartbeats of so many seconds, or of the setting's if that is less. Raises
        what an enqueue of a schedule's job would raise before it needs the broker.
        """
        self._app = app
        self._nap = in_seconds(nap)
        topology, heartbeat = app.topology, min(app.settings.heartbeat, heartbeat)
        settings = app.settings.model_copy(update={"heartbeat": heartbeat})
        self._declarer = Declarer(topology, app.events)
        self._lease = Lease(
            topology.beat_lease(app.name), topology.to_beat_lease(app.name), patience=SILENCE * heartbeat
        )
        self._link = Link("beat", settings, app.events, self._prepare)
        self._drafts = drafts_of(app)
        for each in app.schedules:
            self._drafts.check(each.job, cast("EnqueueOptions", each.options))
        self._term: Term | None = None
        self._client: Client | None = None
        self._stack = AsyncExitStack()
        self._leading: asyncio.Task[None] | None = None
        self._stop_asked = asyncio.Event()

    @property
    def is_leading(self) -> bool:
        """Whether it leads, as far as it has heard."""
        return self._term is not None and self._lease.is_held

    def look(self) -> None:
        """Nothing of it is seen only over time."""

    def troubles(self) -> list[str]:
        """Why it is not ready, in words; empty: it leads, or waits for its turn on a connection that is up."""
        if self._stop_asked.is_set():
            return ["draining"]
        if not self._link.is_up:
            return [self._link.absence]
        if self._lease.is_held and self._term is None:
            return [f"the beat of {self._app.name!r} has the lease and does not lead yet"]
        return []

    @property
    def is_busy(self) -> bool:
        """Whether it leads, and ticks are on their way or being written down: what needs no more time."""
        return self._term is not None and self._term.is_busy

    @property
    def events(self) -> Events:
        """What happens here; the app's own."""
        return self._app.events

    async def __aenter__(self) -> Self:
        self._app.observe()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._link)
            stack.push_async_callback(self._lease.withdraw)
            stack.callback(self._app.levels.tell({Level.LEADING: self._leads, Level.UNCONFIRMED: self._unconfirmed}))
            await self._link.first_session()
            self._stack = stack.pop_all()
        self._app.events.emit(BeatStarted(self._app.name, len(self._app.schedules)))
        self._leading = asyncio.create_task(self._lead(), name="amqpjobs beat")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_asked.set()
        leading, self._leading = self._leading, None
        try:
            if leading is not None and self._term is not None:
                self._term.stop()
                with suppress(TimeoutError):
                    async with self._app.clock.timeout(LAST_WORDS):
                        await asyncio.wait([leading])
        finally:
            if leading is not None:
                await end_task(leading)
            await self._stack.aclose()

    async def run(self) -> None:
        """Lead and wait until `stop` is called."""
        await self._stop_asked.wait()

    def stop(self) -> None:
        """Ask for the end of `run`."""
        self._stop_asked.set()

    def _leads(self) -> int:
        return int(self.is_leading)

    def _unconfirmed(self) -> int:
        return 0 if self._client is None else self._client.unconfirmed

    async def _prepare(self, session: Session) -> None:
        topology = self._app.topology
        await self._declarer.prepare(session, topology.beat(self._app.name), declares=self._app.settings.declare)
        await self._lease.campaign(session)

    async def _lead(self) -> None:
        while True:
            session = await self._lease.won()
            error = await self._led_on(session)
            self._app.events.emit(BeatDeposed(self._app.name, error))
            if self._stop_asked.is_set():
                return
            if error is not None and session.is_open:  # another one may do better
                session.fail(error)
                await self._app.clock.sleep(PAUSE)

    async def _led_on(self, session: Session) -> BaseException | None:
        """Lead for as long as the session lasts; what ended that, None when we were asked to stop."""
        serving = asyncio.create_task(self._serve(session), name="amqpjobs beat term")
        ending = asyncio.ensure_future(session.ended())
        try:
            await asyncio.wait([serving, ending], return_when=asyncio.FIRST_COMPLETED)
            return serving.exception() if serving.done() else await ending
        finally:
            self._term = self._client = None
            ending.cancel()
            await end_task(serving)

    async def _serve(self, session: Session) -> None:
        app = self._app
        register = Register(session, app.topology.beat_register(app.name), app.topology.to_beat_register(app.name))
        state = await self._state_in(register)
        declared = app.schedules
        every = await followed(app.name, declared, state, drafts=self._drafts, clock=app.clock, events=app.events)
        begun = state.take_up(every, app.clock.now())
        state.runtime.lead(Leader(host_name(), os.getpid(), app.clock.now()))
        # Before the first tick, so that whoever comes next has the same anchors.
        async with app.clock.timeout(KEEP_WITHIN):
            await state.keep(register)
        self._client = client = self._client_on(session)
        ends = Ends(every, state)

        async def publish(scheduled: Scheduled, tick: Tick) -> None:
            await self._publish(client, scheduled, tick.job_id, tick)

        async def trigger(scheduled: Scheduled, job_id: str) -> None:
            await self._publish(client, scheduled, job_id)

        self._term = term = Term(
            app.name,
            [each for each in every if each.name not in state.runtime.paused],
            state,
            clock=app.clock,
            events=app.events,
            publish=publish,
            keeper=register,
            ends=ends,
            nap=self._nap,
        )
        if self._stop_asked.is_set():
            return
        control = Control(
            app.name,
            declared,
            every,
            state,
            term,
            drafts=self._drafts,
            clock=app.clock,
            events=app.events,
            trigger=trigger,
            keeper=register,
        )
        queue, caught_up = app.topology.beat_control(app.name), asyncio.Event()
        waiting = await self._declarer.count(session, queue) or 0
        app.events.emit(BeatLeading(app.name, len(every), begun))
        listening = asyncio.create_task(
            self._listen(session, control, waiting, caught_up), name="amqpjobs beat control"
        )
        following = asyncio.create_task(self._follow(session, ends), name="amqpjobs beat runs")
        try:
            if waiting:  # what was paused meanwhile publishes nothing
                await self._wait_for(caught_up)
            await term.run()
        finally:
            for task in (listening, following):
                await end_task(task)

    async def _wait_for(self, caught_up: asyncio.Event) -> None:
        with suppress(TimeoutError):
            async with self._app.clock.timeout(CATCH_UP_WITHIN):
                await caught_up.wait()

    async def _listen(self, session: Session, control: Control, waiting: int, caught_up: asyncio.Event) -> None:
        """Serve commands, and tell when so many are served; whatever is not served is left to the next term."""
        served = 0

        async def serve(delivery: Delivery) -> None:
            nonlocal served
            await control.serve(delivery)
            served += 1
            if served >= waiting:
                caught_up.set()

        try:
            await attend(session, self._app.topology.beat_control(self._app.name), serve)
        except Exception as error:
            session.fail(error)

    async def _follow(self, session: Session, ends: Ends) -> None:
        """Hear of runs, as soon as a schedule asks for that; who cannot, leads no longer."""
        topology, name = self._app.topology, self._app.name
        await ends.wanted.wait()
        runs = Runs(session, topology.beat_runs(name), topology.to_beat_runs(name))
        try:
            await runs.follow(ends.since(self._app.clock.now()), ends.take, ends.set_current)
        except AmqpJobsError as error:
            session.fail(error)

    async def _state_in(self, register: Register) -> State:
        record = await register.read()
        try:
            return state_from(record)
        except (ValueError, TypeError, AttributeError) as error:
            queue = self._app.topology.beat_register(self._app.name)
            raise BrokerError(
                f"The stream {queue!r} holds what no beat has written ({error!r}). Look who publishes there; delete it "
                "to begin anew: then what was missed up to now is not made up for."
            ) from error

    def _client_on(self, session: Session) -> Client:
        """It publishes on this session, and on no other."""
        app, line = self._app, OneSession(session)
        return Client(
            app=app.name,
            settings=app.settings,
            topology=app.topology,
            clock=app.clock,
            events=app.events,
            link=line,
            publisher=Publisher(line, longest_body=app.settings.max_body),
            middlewares=app.enqueue_middlewares,
        )

    async def _publish(self, client: Client, scheduled: Scheduled, job_id: str, tick: Tick | None = None) -> None:
        given, deadline = scheduled.options, self._app.settings.enqueue_timeout
        options = cast("EnqueueOptions", {**given, "job_id": job_id})
        envelope = self._drafts.envelope(scheduled.job, options).evolve(schedule=scheduled.name)
        if tick is not None:
            envelope = envelope.evolve(copy=new_id(), doubt_since=tick.instant if tick.is_doubtful else None)
        try:
            async with self._app.clock.timeout(deadline):
                await client.deliver(envelope, park=given.get("on_unroutable") == "park")
        except TimeoutError as error:
            raise EnqueueTimeoutError(
                f"Tick {job_id!r} was not confirmed within {deadline:g} s. {client.trouble}"
            ) from error
