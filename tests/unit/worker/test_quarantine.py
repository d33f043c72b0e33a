"""Where a suspect runs, and who pays. The children are fakes; the real ones are in the scenarios."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, cast

import pytest

from amqpjobs.clock import Clock
from amqpjobs.codec import RemoteError
from amqpjobs.envelope import Envelope
from amqpjobs.errors import DefinitionError, ProcessDiedError
from amqpjobs.events import Events, JobStarted
from amqpjobs.job import Job
from amqpjobs.outcome import Completed, Dead, DeadReason, Outcome, Retrying
from amqpjobs.registry import HandlerOptions, Registry
from amqpjobs.retry import RetryPolicy, fixed
from amqpjobs.settings import Settings
from amqpjobs.worker import quarantine as module
from amqpjobs.worker.crossing import Frame, Head, envelope_of
from amqpjobs.worker.execution import Execution
from amqpjobs.worker.process import NotTakenError
from amqpjobs.worker.processes import TRIES
from amqpjobs.worker.quarantine import CLOSED, IDLE, MARGIN, Quarantine
from amqpjobs.worker.suspicion import Suspicion
from amqpjobs.worker.threads import Threads
from tests.support.clock import FakeClock, settle
from tests.unit.making import NOW, delivery, envelope, watched
from tests.unit.test_context import enqueue

DIED = ProcessDiedError("The process of this job was killed by SIGKILL.")


class Probe(Job[None], kind="probe", max_attempts=3, timeout=30, retry=fixed(0.5)):
    pass


#: The bench of the test that runs: what a process shall find again is made at the top of a module.
benches: list["Bench"] = []


def work(job: Probe) -> None:
    benches[-1].ran.append(("worker", envelope()))


class FakeChild:
    """Runs nothing, but notes what it was given, and does what comes next."""

    def __init__(self, bench: "Bench") -> None:
        self._bench = bench
        self.is_over = False
        self.is_deaf = False
        self.has_stopped = False
        self._killed = asyncio.Event()

    async def share(self, frame: Frame, job: type[Job[Any]], on_taken: Callable[[], object]) -> Outcome:
        return await self._run("group", frame, on_taken)

    async def run(self, frame: Frame, job: type[Job[Any]], on_taken: Callable[[], object]) -> Outcome:
        return await self._run("alone", frame, on_taken)

    async def answers(self, within: float) -> bool:
        return not self.is_deaf

    def kill(self) -> None:
        self._killed.set()

    async def stop(self) -> None:
        self.has_stopped = self.is_over = True

    async def _run(self, where: str, frame: Frame, on_taken: Callable[[], object]) -> Outcome:
        self._bench.ran.append((where, envelope_of(frame)))
        step = self._bench.steps.popleft() if self._bench.steps else Completed()
        if step == "hang":
            on_taken()
            await self._killed.wait()
            step = DIED
        if isinstance(step, ProcessDiedError):
            self.is_over = True
        if not isinstance(step, NotTakenError):
            on_taken()
        if isinstance(step, Exception):
            raise step
        return cast("Outcome", step)


class FakeProcesses:
    """Hands out fake children."""

    def __init__(self, bench: "Bench") -> None:
        self._bench = bench

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bench.is_left = True

    async def started(self) -> FakeChild:
        if self._bench.broken is not None:
            raise self._bench.broken
        child = FakeChild(self._bench)
        self._bench.children.append(child)
        return child

    @asynccontextmanager
    async def lent(self) -> AsyncGenerator[FakeChild]:
        yield await self.started()

    async def retire(self) -> None:
        self._bench.retired += 1


class Bench:
    """A quarantine for one kind, whose own execution notes what runs in the worker."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.clock = FakeClock(NOW)
        self.events = Events()
        self.suspicion = Suspicion()
        self.started = watched(self.events, JobStarted)
        self.children: list[FakeChild] = []
        self.ran: list[tuple[str, Envelope]] = []
        self.steps = deque[Outcome | Exception | str]()
        self.broken: Exception | None = None
        self.undefined: DefinitionError | None = None
        self.retired = 0
        self.is_left = False
        self.registry = Registry("work")
        patch.setattr(module, "quarantine_introduction", self._introduction)
        patch.setattr(module, "Processes", self._processes)

    def _introduction(self, app: object, registry: Registry) -> Head:
        if self.undefined is not None:
            raise self.undefined
        return {}

    def _processes(self, introduction: Head, *, settings: Settings, clock: Clock) -> "FakeProcesses":
        return FakeProcesses(self)

    def quarantine(self, *, is_on: bool = True, **options: Any) -> Quarantine:
        self.registry.add(Probe, work, cast("HandlerOptions", options))
        settings = Settings(quarantine=is_on)
        execution = Execution(
            registry=self.registry,
            settings=settings,
            clock=self.clock,
            events=self.events,
            threads=Threads(),
            state=None,
            enqueue=enqueue,
        )
        return Quarantine(
            app=self,
            registry=self.registry,
            settings=settings,
            clock=self.clock,
            events=self.events,
            execution=execution,
            suspicion=self.suspicion,
        )

    @property
    def places(self) -> list[str]:
        return [where for where, _ in self.ran]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    benches[:] = [Bench(monkeypatch)]
    return benches[0]


class Case:
    """A delivery that came back so often, and what is known of its job."""

    def __init__(self, returns: int = 1, **changes: Any) -> None:
        headers = {"x-delivery-count": returns} if returns else {}
        self.delivery = delivery(headers=headers, redelivered=returns > 0, message_id="message-1")
        self.envelope = envelope(**changes)

    async def run(self, quarantine: Quarantine) -> tuple[Envelope, Outcome]:
        async with quarantine:
            return await quarantine.run(self.delivery, self.envelope)


# Who is suspected


async def test_what_came_back_runs_in_the_group_and_is_told_once(bench: Bench) -> None:
    after, outcome = await Case().run(bench.quarantine())

    assert (bench.places, outcome) == (["group"], Completed())
    assert (after.attempt, after.crashes) == (1, 0)
    assert len(bench.started) == 1
    assert bench.is_left


async def test_its_child_is_told_the_bounds_that_count_in_the_worker(bench: Bench) -> None:
    await Case().run(bench.quarantine(max_attempts=7, timeout=9))

    assert (bench.ran[0][1].max_attempts, bench.ran[0][1].timeout) == (7, 9)


async def test_what_is_pardoned_runs_in_the_worker(bench: Bench) -> None:
    bench.suspicion.pardon([Case().delivery])

    await Case().run(bench.quarantine())

    assert bench.places == ["worker"]
    assert bench.children == []


async def test_a_job_for_a_process_has_its_blame_there(bench: Bench) -> None:
    await Case(crashes=2).run(bench.quarantine(run_in="process"))

    assert bench.places == ["worker"]


@pytest.mark.parametrize("changes", [{"kind": "unheard of"}, {"expires_at": NOW}, {"version": 9}])
async def test_what_does_not_run_needs_no_child(bench: Bench, changes: dict[str, Any]) -> None:
    await Case(**changes).run(bench.quarantine())

    assert bench.ran == []


async def test_it_can_be_switched_off(bench: Bench) -> None:
    await Case(crashes=2).run(bench.quarantine(is_on=False))

    assert bench.places == ["worker"]


@pytest.mark.parametrize("options", [{}, {"run_in": "process"}, {"is_on": False}])
async def test_what_came_back_far_too_often_is_dead_without_a_run(bench: Bench, options: dict[str, Any]) -> None:
    _, outcome = await Case(100).run(bench.quarantine(**options))

    assert isinstance(outcome, Dead)
    assert bench.ran == []


# Who pays


async def test_who_was_in_a_group_that_died_runs_alone_and_pays_nothing_when_that_goes_well(bench: Bench) -> None:
    bench.steps.extend([DIED, Completed()])

    after, outcome = await Case(attempt=2).run(bench.quarantine())

    assert (bench.places, outcome) == (["group", "alone"], Completed())
    assert [ran.attempt for _, ran in bench.ran] == [2, 2]
    assert (after.attempt, after.crashes) == (2, 0)
    assert len(bench.started) == 1


async def test_who_kills_its_own_child_too_pays_for_both_runs(bench: Bench) -> None:
    bench.steps.extend([DIED, DIED])

    after, outcome = await Case().run(bench.quarantine())

    assert outcome == Retrying(2.0, DIED)  # the policy says 0.5
    assert (after.attempt, after.crashes) == (2, 2)


async def test_a_killer_runs_as_often_as_it_has_attempts(bench: Bench) -> None:
    quarantine, case = bench.quarantine(), Case()
    bench.steps.extend([DIED] * 10)

    after, outcome = await case.run(quarantine)
    while isinstance(outcome, Retrying):
        case = Case(0, attempt=after.attempt + 1, crashes=after.crashes)
        after, outcome = await case.run(quarantine)

    assert bench.places == ["group", "alone", "alone"]
    assert outcome == Dead(DeadReason.ATTEMPTS_EXHAUSTED, DIED)
    assert (after.attempt, after.crashes) == (3, 3)


async def test_who_has_no_attempt_to_spare_runs_alone_at_once(bench: Bench) -> None:
    bench.steps.append(DIED)

    after, outcome = await Case(attempt=3).run(bench.quarantine())

    assert (bench.places, outcome) == (["alone"], Dead(DeadReason.ATTEMPTS_EXHAUSTED, DIED))
    assert (after.attempt, after.crashes) == (3, 1)


async def test_a_policy_may_give_up_after_a_crash(bench: Bench) -> None:
    bench.steps.append(DIED)
    policy: RetryPolicy = fixed(1).on(ProcessDiedError, None)

    _, outcome = await Case(crashes=1).run(bench.quarantine(retry=policy))

    assert outcome == Dead(DeadReason.NOT_RETRYABLE, DIED)


async def test_who_was_convicted_before_runs_alone_wherever_it_comes_from(bench: Bench) -> None:
    await Case(0, crashes=1).run(bench.quarantine())

    assert bench.places == ["alone"]


async def test_who_had_not_started_when_the_group_died_goes_into_the_next_one(bench: Bench) -> None:
    bench.steps.extend([NotTakenError("too late"), Completed()])

    _, outcome = await Case().run(bench.quarantine())

    assert (bench.places, outcome) == (["group", "group"], Completed())
    assert len(bench.children) == 2


async def test_who_never_gets_its_turn_in_a_group_runs_alone(bench: Bench) -> None:
    bench.steps.extend([NotTakenError("too late")] * TRIES)

    after, outcome = await Case().run(bench.quarantine())

    assert (bench.places, outcome) == (["group"] * TRIES + ["alone"], Completed())
    assert after.crashes == 0


@pytest.mark.parametrize("crashes", [0, 1])
async def test_an_outcome_that_did_not_cross_is_a_failure_and_no_crash(bench: Bench, crashes: int) -> None:
    bench.steps.append(error := RemoteError("no JSON"))

    after, outcome = await Case(crashes=crashes).run(bench.quarantine())

    assert outcome == Retrying(0.5, error)
    assert (after.attempt, after.crashes) == (1, crashes)


# Children


async def test_suspects_share_one_child(bench: Bench) -> None:
    quarantine = bench.quarantine()

    async with quarantine:
        await asyncio.gather(*(quarantine.run(Case().delivery, Case().envelope) for _ in range(5)))

    assert len(bench.children) == 1
    assert bench.places == ["group"] * 5


@pytest.mark.parametrize("reason", ["undefined", "broken"])
async def test_where_there_is_no_child_suspects_run_in_the_worker_with_one_warning(
    bench: Bench, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    setattr(bench, reason, DefinitionError("nowhere") if reason == "undefined" else RemoteError("nowhere"))
    quarantine = bench.quarantine()

    with caplog.at_level(logging.WARNING):
        for changes in ({}, {"crashes": 1}, {}):
            await Case(**changes).run(quarantine)
            await bench.clock.advance(CLOSED)

    assert bench.places == ["worker"] * 3
    [line] = caplog.messages
    assert "nowhere" in line
    assert "AMQPJOBS_QUARANTINE=false" in line


async def test_a_child_that_could_not_start_is_tried_again_later(bench: Bench) -> None:
    quarantine, bench.broken = bench.quarantine(), RemoteError("the database is away")

    await Case().run(quarantine)
    bench.broken = None
    await Case().run(quarantine)
    await bench.clock.advance(CLOSED)
    await Case().run(quarantine)

    assert bench.places == ["worker", "worker", "group"]


async def test_children_end_when_nobody_has_needed_them_for_a_while(bench: Bench) -> None:
    async with bench.quarantine() as quarantine:
        await quarantine.run(Case().delivery, Case().envelope)
        await bench.clock.advance(IDLE - 1)
        before = bench.children[0].has_stopped
        await bench.clock.advance(IDLE + 1)
        after = bench.children[0].has_stopped
        await quarantine.run(Case().delivery, Case().envelope)
        await bench.clock.advance(2 * IDLE)

    assert (before, after) == (False, True)
    assert [child.has_stopped for child in bench.children] == [True, True]
    assert bench.retired == 2


async def test_a_child_with_a_job_is_not_idle(bench: Bench) -> None:
    bench.steps.append("hang")

    async with bench.quarantine(timeout=10 * IDLE) as quarantine:
        running = asyncio.create_task(quarantine.run(Case().delivery, Case().envelope))
        await bench.clock.advance(5 * IDLE)
        had_stopped = bench.children[0].has_stopped
        bench.children[0].kill()
        await running

    assert not had_stopped


async def test_a_group_that_does_not_answer_is_killed_some_time_after_a_timeout(bench: Bench) -> None:
    bench.steps.append("hang")

    async with bench.quarantine() as quarantine:
        running = asyncio.create_task(quarantine.run(Case().delivery, Case().envelope))
        await bench.clock.advance(30 + 3 * MARGIN)
        while_it_answers = running.done()
        bench.children[0].is_deaf = True
        await bench.clock.advance(MARGIN)
        _, outcome = await running

    assert not while_it_answers
    assert (bench.places, outcome) == (["group", "alone"], Completed())


async def test_who_overruns_alone_beyond_the_margin_has_killed_its_child(bench: Bench) -> None:
    bench.steps.append("hang")

    async with bench.quarantine() as quarantine:
        running = asyncio.create_task(quarantine.run(Case().delivery, envelope(crashes=1)))
        await bench.clock.advance(30 + MARGIN - 1)
        early = running.done()
        await bench.clock.advance(1)
        after, outcome = await running

    assert not early
    assert isinstance(outcome, Retrying)
    assert "10 s after its timeout of 30 s" in str(outcome.error)
    assert after.crashes == 2


async def test_a_cancelled_suspect_pays_nothing(bench: Bench) -> None:
    bench.steps.append("hang")

    async with bench.quarantine() as quarantine:
        running = asyncio.create_task(quarantine.run(Case().delivery, Case().envelope))
        await settle()
        running.cancel()
        await asyncio.wait([running])

    assert running.cancelled()
