"""An app's schedules from outside of its beats: what is declared, how all of them are, and how to change them.

Only the beat that leads changes anything. A command waits for it in a queue; its answer comes with
the register, which is followed meanwhile. So no reply queue is needed, nobody writes to the
default exchange, and an answer is not lost with the beat that gave it. To see how things are, the
register is read, and no beat is asked: that works while none runs.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, overload

from typing_extensions import Unpack

from amqpjobs.amqp.connection import OneSession, Session
from amqpjobs.amqp.declare import Declarer
from amqpjobs.amqp.publisher import Publisher
from amqpjobs.amqp.register import Register
from amqpjobs.beat.added import Added, added_of
from amqpjobs.beat.command import LONGEST_COMMAND, Command, Verb
from amqpjobs.beat.plan import CATCH_UP, GRACE, OVERLAP_LIMIT, Misfire, Overlap, Scheduled, TickOptions
from amqpjobs.beat.runtime import answer_in
from amqpjobs.beat.schedule import Schedule
from amqpjobs.beat.state import State, state_from
from amqpjobs.beat.status import ScheduleOverview, ScheduleStatus, statuses_in
from amqpjobs.client import Client
from amqpjobs.clock import Seconds, in_seconds
from amqpjobs.codec import loads
from amqpjobs.comparison import QueueState
from amqpjobs.errors import (
    BrokerError,
    BrokerUnavailableError,
    EnqueueTimeoutError,
    ScheduleError,
    TopologyMismatchError,
)
from amqpjobs.handle import EnqueueOptions
from amqpjobs.job import Job
from amqpjobs.producer import Producing, drafts_of
from amqpjobs.settings import host_name

#: Seconds in which a beat that leads has answered; another one leads within as many when it is killed.
ANSWER_WITHIN = 10.0
#: Seconds in which the register has been read.
READ_WITHIN = 30.0
#: Added schedules that are looked at before others may go on.
BATCH = 100


@dataclass(frozen=True, slots=True)
class ScheduleChange:
    """What became of a wish about a schedule. A beat that refuses it raises ScheduleError instead."""

    #: The schedule.
    name: str
    #: Whether a beat has done it. If not, no beat answered in time: the wish is kept by the broker, and the next one
    #: that leads will honour it (a trigger for an hour).
    is_done: bool
    #: Of the job that a trigger enqueues.
    job_id: str | None = None


class Schedules(Sequence[Scheduled]):
    """The declared schedules of an app, as a sequence; and, while its broker is there, all of them.

    `add`, `remove`, `pause`, `resume` and `trigger` wait until a beat has done it, for `deadline` seconds (10) at
    most. Each raises ScheduleError when the beat refuses, and says why; EnqueueError and BrokerError when it does not
    reach the broker. Where no beat answers in time, what is asked waits for the next one that leads.
    """

    def __init__(
        self, app: Producing, declared: Mapping[str, Scheduled], client: Callable[[], Awaitable[Client]]
    ) -> None:
        self._app = app
        self._declared = declared
        self._client = client
        self._desk: _Desk | None = None

    def __len__(self) -> int:
        return len(self._declared)

    @overload
    def __getitem__(self, index: int, /) -> Scheduled: ...
    @overload
    def __getitem__(self, index: slice, /) -> Sequence[Scheduled]: ...

    def __getitem__(self, index: int | slice, /) -> Scheduled | Sequence[Scheduled]:
        return list(self._declared.values())[index]

    async def add(
        self,
        name: str,
        schedule: Schedule,
        *,
        job: Job[Any],
        misfire: Misfire = "once",
        limit: int = CATCH_UP,
        grace: Seconds = GRACE,
        overlap: Overlap = "allow",
        overlap_limit: Seconds = OVERLAP_LIMIT,
        replace: bool = False,
        deadline: Seconds = ANSWER_WITHIN,
        **options: Unpack[TickOptions],
    ) -> ScheduleChange:
        """Add a schedule that the broker keeps: a `cron`, `every` or `at`, perhaps `between` and then `jittered`.

        The arguments are those of `App.schedule`; the job's class is needed here and in its worker, not in the beat.
        With `replace`, instead of an added one of this name, which goes on where it was if it is due at the same
        times. There can be 10,000 beside the declared ones, each of 64 KiB, and of 4 MiB together. What the job holds
        is kept by the broker as it is, secrets too. Raises also DefinitionError for what cannot be, and what
        `App.check` raises about the job.
        """
        made = Scheduled(
            name=name,
            schedule=schedule,
            job=job,
            misfire=misfire,
            limit=limit,
            grace=in_seconds(grace),
            overlap=overlap,
            overlap_limit=in_seconds(overlap_limit),
            options=options,
        )
        if name in self._declared:
            raise ScheduleError(f"The code declares a schedule {name!r}. Give the new one another name.")
        drafts_of(self._app).check(job, cast("EnqueueOptions", options))
        return await self._tell(Verb.ADD, name, deadline, added_of(made), replace=replace)

    async def remove(self, name: str, *, deadline: Seconds = ANSWER_WITHIN) -> ScheduleChange:
        """Remove one that was added. One that the code declares can be paused."""
        return await self._tell(Verb.REMOVE, name, deadline)

    async def pause(self, name: str, *, deadline: Seconds = ANSWER_WITHIN) -> ScheduleChange:
        """Publish no more ticks until `resume`, whichever beat leads, and over any deployment."""
        return await self._tell(Verb.PAUSE, name, deadline)

    async def resume(self, name: str, *, deadline: Seconds = ANSWER_WITHIN) -> ScheduleChange:
        """Go on from now: what was missed in the pause is not made up for."""
        return await self._tell(Verb.RESUME, name, deadline)

    async def trigger(self, name: str, *, deadline: Seconds = ANSWER_WITHIN) -> ScheduleChange:
        """Enqueue its job now, paused or not; its ticks are not disturbed. The id is `name@trigger.…`.

        Where no beat reads that within an hour, nothing is enqueued.
        """
        return await self._tell(Verb.TRIGGER, name, deadline)

    async def overview(self) -> ScheduleOverview:
        """How all of them are, as this process declares them and as the beats have written it down.

        No beat need run. Raises BrokerError.
        """
        client = await self._client()
        try:
            async with self._app.clock.timeout(ANSWER_WITHIN):
                desk = await self._open(client)
            async with self._app.clock.timeout(READ_WITHIN):
                state, is_led = await desk.read()
        except TimeoutError as error:
            raise BrokerUnavailableError(f"How the schedules are was not read in time. {client.trouble}") from error
        statuses = list[ScheduleStatus]()
        for number, status in enumerate(statuses_in(state, self._declared, self._app.clock.now())):
            if number % BATCH == 0:
                await self._app.clock.sleep(0)
            statuses.append(status)
        return ScheduleOverview(statuses, state.runtime.leader, is_led)

    async def _tell(
        self, verb: Verb, name: str, deadline: Seconds, added: Added | None = None, *, replace: bool = False
    ) -> ScheduleChange:
        command = Command(
            verb=verb,
            name=name,
            at=self._app.clock.now(),
            by=f"{host_name()}:{os.getpid()}",
            added=added,
            replace=replace,
        )
        seconds, asking = in_seconds(deadline), _Asking(command)
        client = await self._client()
        try:
            async with self._app.clock.timeout(seconds):
                desk = await self._open(client)
                await desk.ensure()
                await desk.ask(asking)
        except TimeoutError as error:
            if not asking.is_recorded:
                raise EnqueueTimeoutError(
                    f"The command to {verb.value} schedule {name!r} was not confirmed within {seconds:g} s: it may "
                    f"wait for a beat or not. {client.trouble}"
                ) from error
        if asking.problem:
            raise ScheduleError(asking.problem)
        job_id = command.job_id if verb is Verb.TRIGGER else None
        return ScheduleChange(name, asking.problem is not None, job_id)

    async def _open(self, client: Client) -> "_Desk":
        session = await client.connected()
        if self._desk is None or self._desk.session is not session:
            self._desk = _Desk(self._app, session)
        return self._desk


class _Asking:
    """A command, and what is known of it."""

    def __init__(self, command: Command) -> None:
        self.command = command
        #: The broker has it.
        self.is_recorded = False
        #: "": it is done. None: nobody knows.
        self.problem: str | None = None
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def read(self, entry: bytes) -> None:
        """Look for the answer in an entry of the register."""
        if self.command.id.encode() not in entry:
            return
        self.problem = answer_in(loads(entry), self.command.id)
        if self.problem is not None:
            self.end()

    def end(self) -> None:
        """No answer will come any more."""
        if not self.answered.done():
            self.answered.set_result(None)


class _Desk:
    """What is needed on one session."""

    def __init__(self, app: Producing, session: Session) -> None:
        self.session = session
        topology = app.topology
        self._plan = topology.beat(app.name)
        self._lease, self._queue = topology.beat_lease(app.name), topology.beat_register(app.name)
        self._route = topology.to_beat_control(app.name)
        self._declares = app.settings.declare
        self._declarer = Declarer(topology, app.events)
        self._register = Register(session, self._queue, topology.to_beat_register(app.name))
        self._publisher = Publisher(OneSession(session), longest_body=LONGEST_COMMAND)
        self._is_there = False

    async def ensure(self) -> None:
        """What beats share is there, or made: there may never have been a beat."""
        if self._is_there:
            return
        try:  # who may not declare looks first
            await self._declarer.require(self.session, self._plan)
        except TopologyMismatchError:
            if not self._declares:
                raise
            await self._declarer.prepare(self.session, self._plan, declares=True)
        self._is_there = True

    async def ask(self, asking: _Asking) -> None:
        """Have a command recorded, and wait for its answer as long as that can come."""
        try:
            async with self._register.followed(asking.read, asking.end):
                await self._publisher.send(asking.command.publication(self._route))
                asking.is_recorded = True
                if _is_led(await self._declarer.look(self.session, self._lease)):
                    await asking.answered
        except BrokerUnavailableError:
            if not asking.is_recorded:
                raise

    async def read(self) -> tuple[State, bool]:
        """What beats have written down, and whether one leads."""
        found = await self._declarer.look_at(self.session, [self._queue, self._lease])
        if found[self._queue] is None:
            return State(), False
        try:
            state = state_from(await self._register.read())
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise BrokerError(f"The stream {self._queue!r} holds what no beat has written ({error!r}).") from error
        return state, _is_led(found[self._lease])


def _is_led(lease: QueueState | None) -> bool:
    # Those that wait for their turn are counted by some brokers only.
    return lease is not None and lease.consumers > 0
