"""Whatever happens in whatever order, the promises hold: jobs, faults and restarts are drawn by hypothesis.

A job says in its text how it is to end: "fail twice" fails twice and then succeeds. The handlers keep the books,
so that what ran is known also when its worker was cut off before it could tell. A crash is a cable broken for good
under a worker that is then forgotten: whatever it still does reaches nobody, and is not in the books.

The steps are what hypothesis prints when a promise is broken, with a blob that repeats them. It does not shrink:
each try would take a whole example's patience. The short form draws a few examples, `--full` many more.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from amqpjobs import App, Cancel, JobContext, Queue, Snooze, Worker
from amqpjobs.envelope import Envelope
from amqpjobs.errors import EnqueueTimeoutError, UnconfirmedError
from amqpjobs.events import WorkerStopping
from tests.conftest import MakeNode
from tests.support.apps import SOON, Bench, Note, dead_queue, work_queue
from tests.support.broker import Letter, eventually, plain_client
from tests.support.cable import Cable, Frame, Trap
from tests.support.length import is_full

T = TypeVar("T")

EXAMPLES, STEPS = (50, 20) if is_full() else (14, 12)
#: A worker runs so many jobs at once, and holds so many: what one fault may double, and a stop hands back.
CONCURRENCY, PREFETCH = 2, 5
MAX_ATTEMPTS = 4
#: So often an enqueue is repeated whose confirm was lost.
TRIES = 10
#: Seconds until all has ended: a worker that was cut off several times pauses before it comes back, and what comes
#: back to it waits until a process has started that cannot import this app.
PATIENCE = 120.0


@dataclass(frozen=True, slots=True)
class Script:
    """How a job ends, and the attempts that its runs have when nothing goes wrong."""

    end: str
    attempts: Sequence[int]


SCRIPTS = {
    "succeed": Script("completed", (1,)),
    "fail once": Script("completed", (1, 2)),
    "fail thrice": Script("completed", (1, 2, 3, 4)),
    "snooze twice": Script("completed", (1, 1, 1)),
    "cancel": Script("cancelled", (1,)),
    "give up": Script("not_retryable", (1,)),
    "die": Script("attempts_exhausted", (1, 2, 3, 4)),
}


@dataclass(slots=True)
class Books:
    """What ran and what ended, by job id."""

    runs: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    ends: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    #: Seconds by which runs were too early.
    early: list[float] = field(default_factory=list[float])
    running: int = 0

    def start(self, envelope: Envelope) -> None:
        self.runs.setdefault(envelope.job_id, []).append(envelope.attempt)
        if envelope.run_at is not None and (early := envelope.run_at.timestamp() - time.time()) > 0:
            self.early.append(early)

    def end(self, job_id: str, end: str) -> None:
        self.ends.setdefault(job_id, Counter())[end] += 1


@dataclass(slots=True, eq=False)
class Crew:
    """A worker on a cable of its own, as if it were alone in its process."""

    cable: Cable
    stack: AsyncExitStack
    is_lost: bool = False


class World:
    """One service, its producer, its worker, and what may befall them."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._name, self._kind = bench.unique(), bench.kind()
        self._stack = AsyncExitStack()
        self._leaving: list[asyncio.Task[None]] = []
        self._crews: list[Crew] = []
        self._producing = Cable(bench.url)
        self._gate = asyncio.Event()
        self._gate.set()
        self._books = Books()
        #: What was enqueued, and of it what was confirmed, by job id.
        self._sent: dict[str, Script] = {}
        self._confirmed: set[str] = set()
        self._unconfirmed = 0
        #: No fault befalls it: all runs are just as written.
        self.is_calm = False

    async def open(self) -> None:
        await self._stack.enter_async_context(self._producing.running())
        self._producer = self._app(self._producing)
        self._stack.push_async_callback(self._producer.close)
        await self._hire()

    async def close(self) -> None:
        """Also when a promise was broken: nothing must be left for the next example."""
        self.release()
        await self._stack.aclose()
        await asyncio.gather(*(crew.stack.aclose() for crew in self._crews), *self._leaving)
        await self._bench.close()

    # What happens

    async def enqueue(self, texts: Sequence[str], delay: float, trap: Trap | None) -> None:
        self._crew.cable.trap = None if self.is_calm else trap or self._crew.cable.trap
        for text in texts:
            job_id = f"{self._name}-{len(self._sent)}"
            self._sent[job_id] = SCRIPTS[text]
            await self._confirm(self._kind(text=text), job_id, delay)

    async def enqueue_and_hold(self, texts: Sequence[str]) -> None:
        """What runs from now on does not end, until it is released."""

        async def is_running() -> bool:
            return bool(self._books.running) or not self._left()

        self._gate.clear()
        await self.enqueue(texts, 0, None)
        await eventually(is_running, within=PATIENCE)

    def release(self) -> None:
        self._gate.set()

    async def until_all_ended(self) -> None:
        async def have_ended() -> bool:
            return not self._left()

        self.release()
        try:
            await eventually(have_ended, within=PATIENCE)
        except AssertionError:
            raise AssertionError(f"never ended: {self._left()}, of what ran: {self._books.runs}") from None

    async def befalls(self, turn: str) -> None:
        match "restart" if self.is_calm else turn:
            case "restart":
                await self._crew.stack.aclose()
                await self._hire()
            case "crash":
                await self._crash()
            case _:
                self._crew.cable.cut()

    async def _crash(self) -> None:
        crew = self._crew
        crew.is_lost = True
        crew.cable.break_off()
        self._leaving.append(asyncio.create_task(crew.stack.aclose()))
        await self._hire()

    def set_trap_for_producer(self, trap: Trap) -> None:
        self._producing.trap = None if self.is_calm else trap

    # What was promised

    async def check(self) -> None:
        await self.until_all_ended()
        letters = await self._letters()
        await self._crew.stack.aclose()
        letters += await self._letters_there()
        for letter in letters:
            self._books.end(letter.text("amqpjobs-id"), letter.text("amqpjobs-dead-reason"))
        self._check_ends()
        self._check_attempts()
        if not self._faults and not self._unconfirmed:
            await self._check_a_calm_day()

    def _check_ends(self) -> None:
        ends = self._books.ends
        assert not self._confirmed - ends.keys(), "confirmed jobs that never ended"
        assert all(set(ends[job_id]) == {self._sent[job_id].end} for job_id in ends), ends
        copies = sum(each.total() - 1 for each in ends.values())
        assert copies <= self._faults * PREFETCH + self._unconfirmed, (copies, self._faults, self._unconfirmed, ends)

    def _check_attempts(self) -> None:
        for job_id, attempts in self._books.runs.items():
            assert set(attempts) <= set(self._sent[job_id].attempts), (job_id, attempts)
        assert not self._books.early

    async def _check_a_calm_day(self) -> None:
        assert {job_id: list(script.attempts) for job_id, script in self._sent.items()} == self._books.runs
        assert all(each.total() == 1 for each in self._books.ends.values())
        assert await self._bench.broker.count(work_queue(self._producer, self._name)) == 0

    # The rest

    @property
    def _crew(self) -> Crew:
        return self._crews[-1]

    @property
    def _faults(self) -> int:
        return sum(crew.cable.cuts for crew in self._crews)

    def _app(self, cable: Cable) -> App[None]:
        settings = self._bench.settings(url=cable.url, reconnect_cap=0.5, concurrency=CONCURRENCY)
        return self._bench.app(self._name, queues=[Queue(self._name, prefetch=PREFETCH)], settings=settings)

    async def _hire(self) -> None:
        stack = AsyncExitStack()
        crew = Crew(await stack.enter_async_context(Cable(self._bench.url).running()), stack)
        app = self._app(crew.cable)
        app.handler(self._kind, max_attempts=MAX_ATTEMPTS, retry=SOON.on(LookupError, None))(self._handler(crew))
        worker = Worker(app)

        @app.on(WorkerStopping)
        def let_finish_or_hurry(event: WorkerStopping) -> None:
            if crew.is_lost:
                worker.stop()
                worker.stop()
            else:
                self.release()

        assert let_finish_or_hurry.__name__
        await stack.enter_async_context(worker)
        self._crews.append(crew)

    def _handler(self, crew: Crew) -> Callable[[Note, JobContext[None]], Awaitable[None]]:
        async def handle(job: Note, context: JobContext[None]) -> None:
            self._books.start(context.envelope)
            self._books.running += 1
            try:
                await self._gate.wait()
            finally:
                self._books.running -= 1
            if crew.is_lost:
                raise ConnectionError("It has crashed; nobody hears this.")
            self._play(job.text, context)

        return handle

    def _play(self, text: str, context: JobContext[None]) -> None:
        job_id, attempt, script = context.envelope.job_id, context.attempt, SCRIPTS[text]
        if text == "snooze twice" and len(self._books.runs[job_id]) <= 2:
            raise Snooze(0.1)
        if attempt < script.attempts[-1]:
            raise ValueError("not yet")
        match script.end:
            case "completed":
                self._books.end(job_id, "completed")
            case "cancelled":
                self._books.end(job_id, "cancelled")
                raise Cancel("as asked")
            case "not_retryable":
                raise LookupError("for good")
            case _:
                raise ValueError("and now for good")

    async def _confirm(self, job: Note, job_id: str, delay: float) -> None:
        for _ in range(TRIES):
            try:
                await self._producer.enqueue(job, job_id=job_id, delay=delay or None, deadline=20)
            except (UnconfirmedError, EnqueueTimeoutError):
                self._unconfirmed += 1
            else:
                self._confirmed.add(job_id)
                return

    def _left(self) -> set[str]:
        """Confirmed jobs that have not ended; of those that shall die, that have not had their last run."""
        dying = {job_id for job_id in self._confirmed if self._is_to_die(job_id)}
        ended = {job_id for job_id in dying if self._sent[job_id].attempts[-1] in self._books.runs.get(job_id, ())}
        return self._confirmed - self._books.ends.keys() - ended

    def _is_to_die(self, job_id: str) -> bool:
        return self._sent[job_id].end in ("not_retryable", "attempts_exhausted")

    async def _letters(self) -> list[Letter]:
        """The dead letters, when all are there that must be."""
        dead: list[Letter] = []
        wanted = {job_id for job_id in self._confirmed if self._is_to_die(job_id)}

        async def are_all_there() -> bool:
            dead.extend(await self._letters_there())
            return wanted <= {letter.text("amqpjobs-id") for letter in dead}

        await eventually(are_all_there, within=PATIENCE)
        return dead

    async def _letters_there(self) -> list[Letter]:
        queue, broker = dead_queue(self._producer, self._name), self._bench.broker
        count = await broker.count(queue)
        return await broker.take(queue, count) if count else []


Do = Callable[[Coroutine[Any, Any, None]], None]

TEXTS = st.lists(st.sampled_from(sorted(SCRIPTS)), min_size=1, max_size=4)
#: More than run at once.
MANY_TEXTS = st.lists(st.sampled_from(sorted(SCRIPTS)), min_size=CONCURRENCY + 1, max_size=PREFETCH + 2)
TURNS = st.sampled_from(["restart", "crash", "cut"])
DELAYS = st.sampled_from([0.0, 0.1, 0.3])
TRAPS = st.builds(Trap, st.sampled_from(Frame), passes=st.booleans(), all=st.booleans())


class Promises(RuleBasedStateMachine):
    """The steps; `run` does them on the event loop that the test keeps."""

    def __init__(self, world: World, run: Do) -> None:
        super().__init__()
        self._world, self._run = world, run
        run(world.open())

    @initialize(is_calm=st.sampled_from([False, False, True]))
    def begin(self, is_calm: bool) -> None:
        self._world.is_calm = is_calm

    @rule(texts=TEXTS, delay=DELAYS)
    def enqueue(self, texts: list[str], delay: float) -> None:
        self._run(self._world.enqueue(texts, delay, None))

    @rule(texts=TEXTS, trap=TRAPS)
    def enqueue_into_a_trap(self, texts: list[str], trap: Trap) -> None:
        self._run(self._world.enqueue(texts, 0, trap))

    @rule(texts=MANY_TEXTS, then=TURNS)
    def enqueue_and_hold(self, texts: list[str], then: str) -> None:
        self._run(self._world.enqueue_and_hold(texts))
        self.befalls(then)

    @rule()
    def until_all_ended(self) -> None:
        self._run(self._world.until_all_ended())

    @rule(turn=TURNS)
    def befalls(self, turn: str) -> None:
        self._run(self._world.befalls(turn))

    @rule(passes=st.booleans())
    def set_trap_for_producer(self, passes: bool) -> None:
        self._world.set_trap_for_producer(Trap(Frame.PUBLISH, passes=passes, all=True))

    def teardown(self) -> None:
        try:
            self._run(self._world.check())
        finally:
            self._run(self._world.close())


def test_whatever_happens_the_promises_hold(make_node: MakeNode, unique: Callable[[], str]) -> None:
    node = make_node()
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        client = runner.run(stack.enter_async_context(plain_client(node.url)))

        class Example(Promises):
            def __init__(self) -> None:
                super().__init__(World(Bench(node.url, unique, client)), runner.run)

        try:
            run_state_machine_as_test(Example, settings=SETTINGS)
        finally:
            runner.run(stack.aclose())


SETTINGS = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    phases=(Phase.explicit, Phase.generate),
    database=None,
    print_blob=True,
)
