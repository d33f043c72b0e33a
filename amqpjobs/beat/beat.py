"""The beat: any number of them, one leads and publishes the ticks of an app's schedules.

All it does goes over one connection with a short heartbeat. On it the beat holds its lease, and
on it it publishes; so one that the broker has given up cannot publish, whatever it believes.
When the connection ends, so does the term, and nothing of it is carried over: the next leader,
perhaps the same beat, reads from the register how far the last one came.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Protocol, Self, cast

from amqpjobs.amqp.connection import Link, OneSession, Session
from amqpjobs.amqp.declare import Declarer
from amqpjobs.amqp.lease import Lease
from amqpjobs.amqp.publisher import Publisher
from amqpjobs.amqp.register import Register
from amqpjobs.beat.plan import Scheduled, Tick
from amqpjobs.beat.state import State, state_from
from amqpjobs.beat.term import KEEP_WITHIN, NAP, Term
from amqpjobs.client import Client
from amqpjobs.clock import Seconds, end_task, in_seconds
from amqpjobs.errors import BrokerError, EnqueueTimeoutError
from amqpjobs.events import BeatDeposed, BeatLeading, BeatStarted, Events
from amqpjobs.handle import EnqueueOptions
from amqpjobs.producer import Producing, drafts_of

#: Seconds between heartbeats, unless the setting asks for less.
HEARTBEAT = 2
#: Of them, after which a leader that hears nothing of the broker gives up.
SILENCE = 3
#: Seconds that a beat which could not begin its term leaves to others.
PAUSE = 1.0
#: Seconds that a leader who is asked to stop has for the ticks on their way, and for writing them down.
LAST_WORDS = 20.0


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

    def __init__(self, app: Beating, *, nap: Seconds = NAP) -> None:
        """After `nap` (seconds or a timedelta; 1 s) at the latest a jump of the clock is noticed.

        With a clock that does not jump, as in a test, it may be as long as one likes. Raises
        what an enqueue of a schedule's job would raise before it needs the broker.
        """
        self._app = app
        self._nap = in_seconds(nap)
        topology, heartbeat = app.topology, min(app.settings.heartbeat, HEARTBEAT)
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
        self._stack = AsyncExitStack()
        self._leading: asyncio.Task[None] | None = None
        self._stop_asked = asyncio.Event()

    @property
    def is_leading(self) -> bool:
        """Whether it leads, as far as it has heard."""
        return self._term is not None and self._lease.is_held

    @property
    def events(self) -> Events:
        """What happens here; the app's own."""
        return self._app.events

    async def __aenter__(self) -> Self:
        self._app.observe()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._link)
            stack.push_async_callback(self._lease.withdraw)
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
            self._term = None
            ending.cancel()
            await end_task(serving)

    async def _serve(self, session: Session) -> None:
        app = self._app
        register = Register(session, app.topology.beat_register(app.name), app.topology.to_beat_register(app.name))
        state = await self._state_in(register)
        begun = state.take_up(app.schedules, app.clock.now())
        # Before the first tick, so that whoever comes next has the same anchors.
        async with app.clock.timeout(KEEP_WITHIN):
            await state.keep(register)
        client = self._client_on(session)

        async def publish(scheduled: Scheduled, tick: Tick) -> None:
            await self._publish(client, scheduled, tick)

        self._term = Term(
            app.name,
            app.schedules,
            state,
            clock=app.clock,
            events=app.events,
            publish=publish,
            keeper=register,
            nap=self._nap,
        )
        if self._stop_asked.is_set():
            return
        app.events.emit(BeatLeading(app.name, len(app.schedules), begun))
        await self._term.run()

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

    async def _publish(self, client: Client, scheduled: Scheduled, tick: Tick) -> None:
        given, deadline = scheduled.options, self._app.settings.enqueue_timeout
        options = cast("EnqueueOptions", {**given, "job_id": tick.job_id})
        envelope = self._drafts.envelope(scheduled.job, options).evolve(schedule=scheduled.name)
        try:
            async with self._app.clock.timeout(deadline):
                await client.deliver(envelope, park=given.get("on_unroutable") == "park")
        except TimeoutError as error:
            raise EnqueueTimeoutError(
                f"Tick {tick.job_id!r} was not confirmed within {deadline:g} s. {client.trouble}"
            ) from error
