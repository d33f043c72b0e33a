"""What a leader does when it is told something: check, apply, write down, answer.

The answer is in the register, in the same write as what was done: who asked reads it there, and
a command that comes again, because its beat died before the ack, is not done again. It holds for
a trigger but for a moment: between its publish and that write. Its job then has the same id.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import cast

from amqpjobs.beat.added import added_from, check_length
from amqpjobs.beat.command import TRIGGER_WITHIN, Command, Verb, command_in
from amqpjobs.beat.plan import Scheduled
from amqpjobs.beat.state import Keeper, State
from amqpjobs.beat.term import KEEP_WITHIN, Term
from amqpjobs.clock import Clock
from amqpjobs.codec import words_of
from amqpjobs.draft import Drafts
from amqpjobs.errors import AmqpJobsError, DefinitionError, ScheduleError
from amqpjobs.events import Events, ScheduleChanged, ScheduleLeftOut, ScheduleRefused
from amqpjobs.handle import EnqueueOptions
from amqpjobs.job import hint
from amqpjobs.wire import Delivery

#: Added schedules that are read before others may go on.
BATCH = 100
#: Characters of an answer.
LONGEST_ANSWER = 2_000

Trigger = Callable[[Scheduled, str], Awaitable[None]]


async def followed(
    app: str, declared: Sequence[Scheduled], state: State, *, drafts: Drafts, clock: Clock, events: Events
) -> list[Scheduled]:
    """What a beat follows: the declared schedules, and those that were added and can be followed."""
    found = {each.name: each for each in declared}
    for number, (name, data) in enumerate(state.runtime.added.items()):
        if number % BATCH == 0:
            await clock.sleep(0)
        try:
            if name in found:
                raise DefinitionError("The code declares one of this name now. Remove this one, or rename the other.")
            found[name] = _checked(added_from(data).scheduled(), drafts)
        except (AmqpJobsError, ValueError, TypeError) as error:
            events.emit(ScheduleLeftOut(app, name, str(error)))
    return list(found.values())


class Control:
    """Serves the commands of one term."""

    def __init__(
        self,
        app: str,
        declared: Sequence[Scheduled],
        followed: Sequence[Scheduled],
        state: State,
        term: Term,
        *,
        drafts: Drafts,
        clock: Clock,
        events: Events,
        trigger: Trigger,
        keeper: Keeper,
    ) -> None:
        """`trigger` publishes a schedule's job under an id, and bounds how long that takes."""
        self._app = app
        self._declared = {each.name for each in declared}
        self._followed = {each.name: each for each in followed}
        self._state = state
        self._term = term
        self._drafts = drafts
        self._clock = clock
        self._events = events
        self._trigger = trigger
        self._keeper = keeper

    async def serve(self, delivery: Delivery) -> None:
        """Do what a message says, and return when that is written down. Raises when it cannot be."""
        try:
            command = command_in(delivery)
        except ScheduleError as error:
            self._events.emit(ScheduleRefused(self._app, "", "", "", str(error)))
            return
        if command.id not in self._state.runtime.answers:
            problem = await self._obey(command)
            self._state.runtime.answer(command.id, problem[:LONGEST_ANSWER])
        async with self._clock.timeout(KEEP_WITHIN):
            await self._state.keep(self._keeper)

    async def _obey(self, command: Command) -> str:
        """What was wrong, "" if it is done."""
        name, verb, by = command.name, command.verb.value, command.by
        try:
            await self._do(command)
        except Exception as error:  # a middleware of the user's may raise anything; no command ends a term
            problem = str(error) if isinstance(error, AmqpJobsError) else words_of(error)
            self._events.emit(ScheduleRefused(self._app, name, verb, by, problem))
            return problem or type(error).__name__
        job_id = command.job_id if command.verb is Verb.TRIGGER else None
        self._events.emit(ScheduleChanged(self._app, name, verb, by, job_id))
        return ""

    async def _do(self, command: Command) -> None:
        match command.verb:
            case Verb.PAUSE:
                self._pause(command.name)
            case Verb.RESUME:
                self._resume(command.name)
            case Verb.ADD:
                self._add(command)
            case Verb.REMOVE:
                self._remove(command.name)
            case Verb.TRIGGER:
                await self._run_now(command)

    def _pause(self, name: str) -> None:
        self._require(name)
        self._state.runtime.pause(name, self._clock.now())
        self._term.dismiss(name)

    def _resume(self, name: str) -> None:
        if not self._state.runtime.resume(name):
            self._require(name)
            return
        if name in self._followed:
            self._state.settle(name, self._clock.now())  # what was missed is not made up for
            self._term.admit(self._followed[name])

    def _add(self, command: Command) -> None:
        name, runtime = command.name, self._state.runtime
        assert command.added is not None
        if name in self._declared:
            raise ScheduleError(f"The code declares a schedule {name!r}. Give the new one another name.")
        data = command.added.data()
        if name in runtime.added and not command.replace:
            if runtime.added[name] == data:
                return
            raise ScheduleError(f"There is a schedule {name!r} already, another one. Replace it, or remove it first.")
        check_length(command.added)
        made = _checked(command.added.scheduled(), self._drafts)
        if name not in runtime.added:  # one of this name, gone for long, may have been paused
            runtime.resume(name)
        runtime.add(name, data)
        self._term.dismiss(name)
        self._state.begin(made, self._clock.now())
        self._followed[name] = made
        if name not in runtime.paused:
            self._term.admit(made)

    def _remove(self, name: str) -> None:
        runtime = self._state.runtime
        if name not in runtime.added:
            if name in self._declared:
                raise ScheduleError(
                    f"Schedule {name!r} is declared in the code, and only what was added can be removed. Pause it, or "
                    "take it out of the code."
                )
            self._require(name)
        runtime.remove(name)
        if name in self._declared:
            return
        self._term.dismiss(name)
        self._state.forget(name)
        self._followed.pop(name, None)

    async def _run_now(self, command: Command) -> None:
        if command.is_too_old(self._clock.now()):
            raise ScheduleError(
                f"The trigger waited for longer than {TRIGGER_WITHIN.total_seconds() / 60:.0f} minutes, so nothing "
                "was enqueued. Trigger it again."
            )
        await self._trigger(self._require(command.name), command.job_id)

    def _require(self, name: str) -> Scheduled:
        found = self._followed.get(name)
        if found is None:
            raise ScheduleError(f"App {self._app!r} has no schedule {name!r}.{hint(name, list(self._followed)[:1000])}")
        return found


def _checked(scheduled: Scheduled, drafts: Drafts) -> Scheduled:
    drafts.check(scheduled.job, cast("EnqueueOptions", scheduled.options))
    return scheduled
