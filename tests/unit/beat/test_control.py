"""What a leader does when it is told something, in virtual time, whoever says it and however."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from amqpjobs import App, Job, every
from amqpjobs.beat.added import LONGEST_ADDED, added_of
from amqpjobs.beat.command import LONGEST_COMMAND, Command, Verb
from amqpjobs.beat.control import LONGEST_ANSWER, Control, followed
from amqpjobs.beat.plan import Scheduled, Tick
from amqpjobs.beat.state import State, state_from
from amqpjobs.beat.term import Term
from amqpjobs.draft import WrittenJob
from amqpjobs.events import Events, ScheduleChanged, ScheduleLeftOut, ScheduleRefused
from amqpjobs.handle import EnqueueOptions
from amqpjobs.producer import drafts_of
from amqpjobs.settings import load_settings
from amqpjobs.topology import Route
from amqpjobs.wire import Delivery, Properties
from tests.support.apps import watch
from tests.support.clock import FakeClock, settle
from tests.support.ticks import Each
from tests.unit.beat.test_state import Paper
from tests.unit.making import FakeSettler

START = datetime(2026, 1, 1, tzinfo=UTC)


class Report(Job[None], kind="report", expires=60, headers={"team": "a"}, version=3):
    day: int = 1


REPORT = Scheduled(name="report", schedule=Each(10), job=Report())
EXTRA = Scheduled(name="extra", schedule=every(10), job=Report(day=7), options={"queue": "slow"})


class Bench:
    """A leader of an app that declares `report`, each ten seconds."""

    def __init__(self, *declared: Scheduled, paper: Paper | None = None, clock: FakeClock | None = None) -> None:
        self.declared: Sequence[Scheduled] = declared or [REPORT]
        self.clock = clock or FakeClock(START)
        self.events = Events()
        self.paper = paper or Paper()
        self.published = list[tuple[str, float]]()
        self.triggered = list[tuple[Scheduled, str]]()
        self.failure: Exception | None = None
        self.changed, self.refused = watch(self.events, ScheduleChanged), watch(self.events, ScheduleRefused)
        self.left_out = watch(self.events, ScheduleLeftOut)
        self.drafts = drafts_of(App("shop", settings=load_settings(), clock=self.clock))

    @asynccontextmanager
    async def leading(self, before: Callable[[Control], Awaitable[None]] | None = None) -> AsyncGenerator[Control]:
        """`before` is done before the term runs."""
        state = state_from(self.paper) if self.paper.value else State()
        every = await followed("shop", self.declared, state, drafts=self.drafts, clock=self.clock, events=self.events)
        state.take_up(every, self.clock.now())
        await state.keep(self.paper)
        awake = [each for each in every if each.name not in state.runtime.paused]
        term = Term(
            "shop", awake, state, clock=self.clock, events=self.events, publish=self._publish, keeper=self.paper
        )
        control = Control(
            "shop",
            self.declared,
            every,
            state,
            term,
            drafts=self.drafts,
            clock=self.clock,
            events=self.events,
            trigger=self._trigger,
            keeper=self.paper,
        )
        if before is not None:
            await before(control)
        running = asyncio.create_task(term.run())
        await settle()
        yield control
        term.stop()
        await running

    async def _publish(self, scheduled: Scheduled, tick: Tick) -> None:
        await asyncio.sleep(0)
        self.published.append((tick.schedule, (tick.instant - START).total_seconds()))

    async def _trigger(self, scheduled: Scheduled, job_id: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.triggered.append((scheduled, job_id))

    def command(self, verb: Verb, name: str, **more: Any) -> Command:
        return Command(verb=verb, name=name, at=self.clock.now(), by="test", **more)

    async def tell(self, control: Control, verb: Verb, name: str = "report", **more: Any) -> str:
        """What is answered, as the register has it."""
        command = self.command(verb, name, **more)
        await control.serve(message(command))
        return state_from(self.paper).runtime.answers[command.id]

    def seconds(self, name: str) -> list[float]:
        return [second for each, second in self.published if each == name]


def message(command: Command | bytes) -> Delivery:
    route = Route(exchange="", key="")
    body = command if isinstance(command, bytes) else command.publication(route).body
    return Delivery(
        body=body,
        properties=Properties(),
        queue="control",
        exchange="",
        routing_key="",
        redelivered=False,
        tag=1,
        settler=FakeSettler(),
    )


async def test_a_paused_schedule_rests_whoever_leads_and_goes_on_from_when_it_is_resumed() -> None:
    bench = Bench()
    async with bench.leading() as control:
        await bench.clock.advance(12)
        assert await bench.tell(control, Verb.PAUSE) == ""
        assert await bench.tell(control, Verb.PAUSE) == ""
        await bench.clock.advance(20)
    next_one = Bench(replace(REPORT, schedule=Each(5)), paper=bench.paper, clock=bench.clock)
    async with next_one.leading() as control:
        await bench.clock.advance(20)
        assert await next_one.tell(control, Verb.RESUME) == ""
        assert await next_one.tell(control, Verb.RESUME) == ""
        await bench.clock.advance(10)

    assert bench.seconds("report") == [0, 10]
    assert next_one.seconds("report") == [55, 60]
    assert [(each.verb, each.by) for each in bench.changed] == [("pause", "test"), ("pause", "test")]


async def test_pausing_and_resuming_often_publishes_no_tick_twice() -> None:
    bench = Bench()
    async with bench.leading() as control:
        for _ in range(20):
            await bench.tell(control, Verb.PAUSE)
            await bench.tell(control, Verb.RESUME)
        await bench.clock.advance(30)

    assert bench.seconds("report") == [0, 10, 20, 30]


async def test_what_is_said_before_the_term_runs_is_so_from_its_first_tick_on() -> None:
    bench = Bench(REPORT, replace(REPORT, name="other"))

    async def say(control: Control) -> None:
        await bench.tell(control, Verb.PAUSE)
        await bench.tell(control, Verb.PAUSE, "other")
        await bench.tell(control, Verb.RESUME, "other")
        await bench.tell(control, Verb.ADD, "extra", added=added_of(EXTRA))

    async with bench.leading(say):
        await bench.clock.advance(20)

    assert bench.seconds("report") == []
    assert bench.seconds("other") == [10, 20]
    assert bench.seconds("extra") == [0, 10, 20]


async def test_a_pause_outlives_a_deployment_without_the_schedule() -> None:
    bench = Bench()
    async with bench.leading() as control:
        await bench.tell(control, Verb.PAUSE)
    away = Bench(replace(REPORT, name="other"), paper=bench.paper, clock=bench.clock)
    async with away.leading():
        await bench.clock.advance(100)
    back = Bench(paper=bench.paper, clock=bench.clock)
    async with back.leading():
        await bench.clock.advance(30)

    assert back.seconds("report") == []


async def test_a_triggered_job_is_published_now_paused_or_not_and_the_ticks_go_on() -> None:
    bench = Bench()
    async with bench.leading() as control:
        await bench.clock.advance(3)
        assert await bench.tell(control, Verb.TRIGGER) == ""
        await bench.clock.advance(10)
        await bench.tell(control, Verb.PAUSE)
        assert await bench.tell(control, Verb.TRIGGER) == ""

    ids = [job_id for _, job_id in bench.triggered]
    assert len(set(ids)) == 2
    assert all(job_id.startswith("report@trigger.") for job_id in ids)
    assert [each.job_id for each in bench.changed if each.verb == "trigger"] == ids
    assert bench.seconds("report") == [0, 10]


async def test_a_command_that_comes_again_is_not_done_again_also_by_the_next_leader() -> None:
    bench = Bench()
    command = bench.command(Verb.TRIGGER, "report")
    async with bench.leading() as control:
        await control.serve(message(command))
        await control.serve(message(command))
    next_one = Bench(paper=bench.paper, clock=bench.clock)
    async with next_one.leading() as control:
        await control.serve(message(command))

    assert len(bench.triggered) == 1
    assert next_one.triggered == []


async def test_a_trigger_that_waited_for_more_than_an_hour_enqueues_nothing() -> None:
    bench = Bench()
    old = {"at": START - timedelta(minutes=61)}
    async with bench.leading() as control:
        await control.serve(message(bench.command(Verb.TRIGGER, "report").model_copy(update=old)))
        await control.serve(message(bench.command(Verb.PAUSE, "report").model_copy(update=old)))

    assert bench.triggered == []
    assert "longer than 60 minutes" in bench.refused[0].problem
    assert [each.verb for each in bench.changed] == ["pause"]


async def test_what_a_trigger_raises_is_answered_and_the_term_goes_on() -> None:
    bench = Bench()
    async with bench.leading() as control:
        bench.failure = ZeroDivisionError("x" * 10_000)
        answer = await bench.tell(control, Verb.TRIGGER)
        bench.failure = None
        await bench.clock.advance(10)

    assert answer.startswith("ZeroDivisionError: xxx")
    assert len(answer) == LONGEST_ANSWER
    assert bench.seconds("report") == [0, 10]


async def test_an_added_schedule_is_followed_and_so_it_is_by_the_next_leader_until_it_is_removed() -> None:
    bench = Bench()
    async with bench.leading() as control:
        await bench.clock.advance(5)
        assert await bench.tell(control, Verb.ADD, "extra", added=added_of(EXTRA)) == ""
        assert await bench.tell(control, Verb.ADD, "extra", added=added_of(EXTRA)) == ""  # the same
        await bench.clock.advance(20)
        assert await bench.tell(control, Verb.TRIGGER, "extra") == ""
    next_one = Bench(paper=bench.paper, clock=bench.clock)
    async with next_one.leading() as control:
        await bench.clock.advance(20)
        assert await next_one.tell(control, Verb.REMOVE, "extra") == ""
        await bench.clock.advance(20)
        again = await next_one.tell(control, Verb.REMOVE, "extra")

    assert bench.seconds("extra") == [10, 20]
    assert next_one.seconds("extra") == [30, 40]
    assert "has no schedule 'extra'" in again
    kept = state_from(bench.paper)
    assert (kept.runtime.added, kept.get("extra")) == ({}, None)


async def test_the_job_of_an_added_schedule_is_what_its_class_would_enqueue() -> None:
    bench = Bench()
    async with bench.leading() as control:
        await bench.tell(control, Verb.ADD, "extra", added=added_of(EXTRA))
        await bench.tell(control, Verb.TRIGGER, "extra")
    (scheduled, job_id) = bench.triggered[0]
    assert isinstance(scheduled.job, WrittenJob)

    options = cast("EnqueueOptions", {**scheduled.options, "job_id": job_id})
    made = bench.drafts.envelope(scheduled.job, options)
    expected = bench.drafts.envelope(Report(day=7), {"queue": "slow", "job_id": job_id})

    assert made == expected
    assert (made.version, made.headers) == (3, {"team": "a"})


async def test_an_added_schedule_that_is_removed_and_added_again_makes_up_for_nothing() -> None:
    bench = Bench()
    async with bench.leading() as control:
        await bench.tell(control, Verb.ADD, "extra", added=added_of(EXTRA))
        await bench.clock.advance(5)
        await bench.tell(control, Verb.REMOVE, "extra")
        await bench.clock.advance(100)
        await bench.tell(control, Verb.ADD, "extra", added=added_of(EXTRA))
        await bench.clock.advance(10)

    assert bench.seconds("extra") == [0, 110]


async def test_one_that_is_added_under_a_name_that_was_paused_long_ago_is_not_paused() -> None:
    before = Bench(replace(REPORT, name="extra"))
    async with before.leading() as control:
        await before.tell(control, Verb.PAUSE, "extra")
    bench = Bench(paper=before.paper, clock=before.clock)
    async with bench.leading() as control:
        await bench.tell(control, Verb.ADD, "extra", added=added_of(EXTRA))
        await bench.clock.advance(10)

    assert 10 in bench.seconds("extra")


async def test_another_one_of_the_same_name_is_refused_unless_it_is_to_replace_it() -> None:
    bench, other = Bench(), added_of(replace(EXTRA, schedule=every(4)))
    async with bench.leading() as control:
        await bench.tell(control, Verb.ADD, "extra", added=added_of(EXTRA))
        await bench.clock.advance(5)
        refused = await bench.tell(control, Verb.ADD, "extra", added=other)
        replaced = await bench.tell(control, Verb.ADD, "extra", added=other, replace=True)
        await bench.clock.advance(10)

    assert "There is a schedule 'extra' already" in refused
    assert replaced == ""
    assert bench.seconds("extra") == [0, 8, 12]


async def test_a_declared_schedule_is_neither_replaced_nor_removed() -> None:
    bench = Bench()
    async with bench.leading() as control:
        added = await bench.tell(control, Verb.ADD, "report", added=added_of(replace(EXTRA, name="report")))
        removed = await bench.tell(control, Verb.REMOVE, "report")

    assert "The code declares a schedule 'report'" in added
    assert "Pause it, or take it out of the code" in removed


async def test_one_that_the_code_declares_later_hides_the_added_one_and_that_can_be_removed() -> None:
    bench = Bench()
    async with bench.leading() as control:
        await bench.tell(control, Verb.ADD, "extra", added=added_of(EXTRA))
    later = Bench(replace(REPORT, name="extra"), paper=bench.paper, clock=bench.clock)
    async with later.leading() as control:
        assert await later.tell(control, Verb.REMOVE, "extra") == ""
        await bench.clock.advance(20)

    assert "The code declares one of this name now" in later.left_out[0].problem
    assert len(later.seconds("extra")) >= 2


async def test_an_added_schedule_that_cannot_be_read_any_more_is_told_and_kept_and_the_others_go_on() -> None:
    bench = Bench()
    async with bench.leading() as control:
        await bench.tell(control, Verb.ADD, "extra", added=added_of(EXTRA))
    bench.paper.value = (bench.paper.value or b"") and json.dumps(_with_unknown_field(bench.paper)).encode()
    bench.paper.changes = ()
    next_one = Bench(paper=bench.paper, clock=bench.clock)
    async with next_one.leading():
        await bench.clock.advance(10)

    assert [each.schedule for each in next_one.left_out] == ["extra"]
    assert next_one.seconds("report")
    assert "from-the-future" in state_from(bench.paper).runtime.added["extra"]


def _with_unknown_field(paper: Paper) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(paper.value or b"{}")
    value["added"] = {"extra": {**state_from(paper).runtime.added["extra"], "from-the-future": 1}}
    return value


async def test_an_unknown_schedule_is_told_with_what_may_have_been_meant() -> None:
    bench = Bench()
    async with bench.leading() as control:
        for verb in (Verb.PAUSE, Verb.RESUME, Verb.TRIGGER, Verb.REMOVE):
            assert "has no schedule 'reprot'. Did you mean 'report'?" in await bench.tell(control, verb, "reprot")


HOSTILE = [
    b"",
    b"nonsense",
    b"[]",
    b"{}",
    b"7",
    b"\xff\xfe",
    b'{"verb":"drop","name":"report","at":"2026-01-01T00:00:00Z"}',
    b'{"verb":"pause","name":"report"}',
    b'{"verb":"pause","name":7,"at":"2026-01-01T00:00:00Z"}',
    b'{"verb":"pause","name":"report","at":"2026-01-01T00:00:00"}',
    b'{"verb":"pause","name":"report","at":"2026-01-01T00:00:00Z","id":"a b"}',
    b'{"verb":"pause","name":"report","at":"2026-01-01T00:00:00Z","more":1}',
    b'{"verb":"pause","name":"report","at":"2026-01-01T00:00:00Z","added":{}}',
    b'{"verb":"add","name":"x","at":"2026-01-01T00:00:00Z"}',
    b'{"verb":"pause","name":"' + b"x" * 101 + b'","at":"2026-01-01T00:00:00Z"}',
    b"[" * 50_000 + b"]" * 50_000,
    b'{"verb":"pause","name":"report","at":"2026-01-01T00:00:00Z"}' + b" " * LONGEST_COMMAND,
]


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: body[:30])
async def test_what_is_no_command_is_told_and_the_term_goes_on(body: bytes) -> None:
    bench = Bench()
    async with bench.leading() as control:
        await control.serve(message(body))
        await bench.clock.advance(10)

    assert [(each.verb, each.schedule) for each in bench.refused] == [("", "")]
    assert len(bench.refused[0].problem) < 2_000
    assert bench.seconds("report") == [0, 10]


BAD_SCHEDULES: list[dict[str, Any]] = [
    {"schedule": {"cron": "0 0 31 2 *"}},
    {"schedule": {"cron": "0 0 1 1 *", "timezone": "Mars/Base"}},
    {"schedule": {"every": 0}},
    {"kind": "no kind"},
    {"payload": "no json"},
    {"payload": "[]"},
    {"payload": json.dumps({"x": "y" * (LONGEST_ADDED + 100)})},
    {"exchange": "x" * 300},
    {"limit": 10**9},
    {"priority": 1000},
    {"queue": "no queue"},
    {"headers": {"amqpjobs-id": "forged"}},
    {"headers": {"x": "y" * 60_000}},
    {"expires": 0},
    {"max_attempts": 0},
    {"name": "no name"},
]


@pytest.mark.parametrize("bad", BAD_SCHEDULES, ids=lambda bad: str(bad)[:40])
async def test_a_schedule_that_cannot_be_followed_is_not_added(bad: dict[str, Any]) -> None:
    bench = Bench()
    good = added_of(EXTRA).data() | bad
    raw = {"id": "1", "verb": "add", "name": good["name"], "at": "2026-01-01T00:00:00Z", "added": good}
    async with bench.leading() as control:
        await control.serve(message(json.dumps(raw).encode()))
        await bench.clock.advance(10)

    assert len(bench.refused) == 1
    assert state_from(bench.paper).runtime.added == {}
    assert bench.seconds("report") == [0, 10]


async def test_a_schedule_as_large_as_may_be_fits_a_command() -> None:
    bench = Bench()
    text = '"' * (LONGEST_ADDED // 8)  # JSON in JSON in JSON

    class Quoting(Job[None], kind="quoting"):
        text: str

    added = added_of(replace(EXTRA, job=Quoting(text=text)))
    command = bench.command(Verb.ADD, "extra", added=added)
    async with bench.leading() as control:
        await control.serve(message(command))

    assert len(message(command).body) < LONGEST_COMMAND
    assert [each.verb for each in bench.changed] == ["add"]


async def test_what_cannot_be_written_down_is_not_answered() -> None:
    bench = Bench()
    async with bench.leading() as control:
        bench.paper.fails = True
        with pytest.raises(OSError, match="as asked"):
            await control.serve(message(bench.command(Verb.PAUSE, "report")))
        bench.paper.fails = False

    assert bench.paper.writes.count("amend") >= 1
