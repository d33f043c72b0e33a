"""What becomes of ticks while the last one's job runs: as a decision, and over a leader's term in virtual time."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from amqpjobs import DefinitionError
from amqpjobs.amqp.runs import Notice, Word
from amqpjobs.beat.overlap import Verdict, judge
from amqpjobs.beat.plan import OVERLAP_LIMIT, Misfire, Overlap, Scheduled, Tick, tick_of
from amqpjobs.beat.runs import REMEMBERED, Ends
from amqpjobs.beat.schedule import RESOLUTION
from amqpjobs.beat.state import Mark, Run, State, state_from
from amqpjobs.beat.term import LOOK_AGAIN, SKEW, Term
from amqpjobs.events import RunOver, RunPresumedOver, TickFound, TickPublished, TicksOverlapped, TickWaiting
from tests.support.apps import watch
from tests.support.clock import settle
from tests.support.ticks import Each
from tests.unit.beat.test_state import Paper
from tests.unit.beat.test_term import START, Bench, Report


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def each(
    overlap: Overlap, misfire: Misfire = "once", *, limit: float = OVERLAP_LIMIT, seconds: float = 10
) -> Scheduled:
    return Scheduled(
        name="report",
        schedule=Each(seconds),
        job=Report(),
        misfire=misfire,
        grace=5,
        overlap=overlap,
        overlap_limit=limit,
    )


def mark(last: float, run: float | None = None) -> Mark:
    return Mark("print", START, at(last), run=None if run is None else Run(at(run), at(run)))


def decide(scheduled: Scheduled, known: Mark, now: float, *, has_waited: bool = False) -> Verdict:
    return judge(scheduled, scheduled.schedule, known, at(now), has_waited=has_waited)


# The decision


@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_where_no_run_is_open_all_is_left_to_the_misfire_policy(overlap: Overlap) -> None:
    assert decide(each(overlap), mark(10), 20) == Verdict()


@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_while_nothing_is_due_an_open_run_changes_nothing(overlap: Overlap) -> None:
    assert decide(each(overlap), mark(10, run=10), 19) == Verdict()


def test_skip_leaves_out_all_that_is_due_while_a_run_is_open() -> None:
    assert decide(each("skip"), mark(10, run=10), 20) == Verdict(left_out=at(20))
    assert decide(each("skip"), mark(10, run=10), 65) == Verdict(left_out=at(60))


def test_queue_lets_what_is_due_wait_until_the_limit() -> None:
    assert decide(each("queue", limit=100), mark(10, run=10), 65) == Verdict(waits_until=at(110))


def test_after_a_wait_the_latest_tick_is_published_and_the_others_are_left_out() -> None:
    assert decide(each("queue"), mark(10), 65, has_waited=True) == Verdict(left_out=at(60) - RESOLUTION, ticks=[at(60)])
    assert decide(each("queue"), mark(10), 25, has_waited=True) == Verdict(ticks=[at(20)])


def test_what_has_waited_is_not_left_out_as_missed() -> None:
    verdict = decide(each("queue", "skip"), mark(10), 27, has_waited=True)

    assert verdict.ticks == [at(20)]  # 7 s late, with a grace of 5 s


@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_a_run_whose_end_nobody_tells_is_over_after_the_limit(overlap: Overlap) -> None:
    scheduled = each(overlap, limit=15)

    assert not decide(scheduled, mark(10, run=10), 24.9).is_presumed_over
    assert decide(scheduled, mark(10, run=10), 25).is_presumed_over
    assert decide(scheduled, mark(10, run=10), 25).left_out is None


def test_a_run_that_was_not_settled_holds_up_nothing_since_its_tick_is_to_be_published_again() -> None:
    assert decide(each("skip"), mark(10, run=20), 25) == Verdict()


# What a schedule may ask for


def test_an_overlap_policy_and_its_limit_are_checked() -> None:
    good = each("skip")

    assert (each("allow").overlap_limit, good.overlap) == (86_400, "skip")
    with pytest.raises(DefinitionError, match="overlap of schedule 'report' must be one of"):
        replace(good, overlap="never")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    for limit in (0, -1, float("nan"), float("inf")):
        with pytest.raises(DefinitionError, match="overlap_limit of schedule 'report' must be more than 0"):
            replace(good, overlap_limit=limit)


def test_a_tick_is_known_by_its_id_and_nothing_else_is_one() -> None:
    tick = Tick("report.daily", at(0.25))

    assert tick_of(tick.job_id) == tick
    for text in ("", "@", "report@", "report@noon", "report", "report@2026-13-01T00:00:00Z"):
        assert tick_of(text) is None


# What is remembered


async def test_an_open_run_is_remembered_until_it_has_ended() -> None:
    state, paper = State(), Paper()
    state.take_up([each("skip")], START)
    state.open("report", Run(at(10), at(11)))
    state.settle("report", at(10))
    await state.keep(paper)
    before = state_from(paper)["report"]
    assert not state.end("report", at(0))
    assert state.end("report", at(10))
    await state.keep(paper)

    assert before.open == Run(at(10), at(11))
    assert paper.writes == ["write", "amend"]
    assert state_from(paper)["report"].run is None


async def test_a_changed_definition_keeps_the_open_run_and_one_that_allows_overlaps_forgets_it() -> None:
    state, paper = State(), Paper()
    state.take_up([each("skip")], START)
    state.open("report", Run(START, START))
    state.settle("report", START)
    await state.keep(paper)
    changed, allowing = state_from(paper), state_from(paper)

    changed.take_up([each("skip", seconds=20)], at(5))
    allowing.take_up([each("allow")], at(5))

    assert changed["report"].open == Run(START, START)
    assert allowing["report"].run is None


def test_what_is_told_of_settled_ticks_and_of_others_is_not_remembered() -> None:
    state = State()
    state.take_up([each("skip")], START)
    ends = Ends([each("skip")], state)
    state.settle("report", at(10))

    for tick in ("report@2026-01-01T00:00:10Z", "other@2026-01-01T00:00:20Z", "nonsense"):
        ends.take(Notice(Word.STARTED, tick, "one"))
    for number in range(2 * REMEMBERED):
        ends.take(Notice(Word.STARTED, Tick("report", at(20 + number)).job_id, "one"))

    assert not ends.has_started(Tick("report", at(10)))
    assert ends.has_started(Tick("report", at(20 + REMEMBERED - 1)))
    assert not ends.has_started(Tick("report", at(20 + REMEMBERED)))
    ends.settled(Tick("report", at(30)))
    assert not ends.has_started(Tick("report", at(30)))
    assert ends.has_started(Tick("report", at(31)))


def test_an_end_is_remembered_also_when_the_start_is_told_again() -> None:
    state = State()
    state.take_up([each("skip")], START)
    ends, tick = Ends([each("skip")], state), Tick("report", at(10))

    for word in (Word.STARTED, Word.ENDED, Word.STARTED, Word.DROPPED):
        ends.take(Notice(word, tick.job_id, "one"))

    assert ends.has_ended(tick)


# Over a term


class Stage(Bench):
    """A term of one schedule, whose runs end when they are told to."""

    def __init__(self, scheduled: Scheduled, paper: Paper | None = None, *, begins: float = 0) -> None:
        super().__init__(scheduled, paper=paper)
        self.clock.forward(begins)
        self.overlapped = watch(self.events, TicksOverlapped)
        self.waiting = watch(self.events, TickWaiting)
        self.over = watch(self.events, RunOver)

    @asynccontextmanager
    async def leading(self, *told: Notice, is_current: bool = True) -> AsyncGenerator[Ends]:
        """A term, once it has been told this."""
        state = state_from(self.paper) if self.paper.value else State()
        state.take_up(self.scheduled, self.clock.now())
        await state.keep(self.paper)
        ends = Ends(self.scheduled, state)
        term = Term(
            "shop",
            self.scheduled,
            state,
            clock=self.clock,
            events=self.events,
            publish=self._publish,
            keeper=self.paper,
            ends=ends,
        )
        for notice in told:
            ends.take(notice)
        if is_current:
            ends.set_current()
        running = asyncio.create_task(term.run())
        await settle()
        yield ends
        term.stop()
        await running


def notice(word: Word, seconds: float, copy: str = "one") -> Notice:
    return Notice(word, Tick("report", at(seconds)).job_id, copy)


async def test_allow_publishes_each_tick_whatever_runs() -> None:
    stage = Stage(each("allow"))

    async with stage.leading():
        await stage.clock.advance(30)

    assert stage.seconds() == [0, 10, 20, 30]


async def test_skip_goes_on_with_the_first_tick_after_the_end() -> None:
    stage = Stage(each("skip"))

    async with stage.leading() as ends:
        await stage.clock.advance(35)
        ends.take(notice(Word.ENDED, 0))
        await stage.clock.advance(10)

    assert stage.seconds() == [0, 40]
    assert [(event.until, event.run) for event in stage.overlapped] == [(at(n), START) for n in (10, 20, 30)]
    assert [event.run for event in stage.over] == [START]


async def test_queue_publishes_the_latest_as_soon_as_the_end_is_told() -> None:
    stage = Stage(each("queue"))
    published = watch(stage.events, TickPublished)

    async with stage.leading() as ends:
        await stage.clock.advance(35)
        ends.take(notice(Word.ENDED, 0))
        await settle()
        assert [event.late for event in published] == pytest.approx([0, 5], abs=0.01)
        await stage.clock.advance(20)
        ends.take(notice(Word.ENDED, 30))
        await stage.clock.advance(1)

    assert stage.seconds() == [0, 30, 50]
    assert [event.run for event in stage.waiting] == [at(0), at(30)]  # once for each run
    assert [(event.after, event.until) for event in stage.overlapped] == [
        (at(0), at(30) - RESOLUTION),
        (at(30), at(50) - RESOLUTION),
    ]


@pytest.mark.parametrize("overlap", ["skip", "queue"])
async def test_a_run_that_ends_in_time_lets_each_tick_be_published(overlap: Overlap) -> None:
    stage = Stage(each(overlap))

    async with stage.leading() as ends:
        for number in range(5):
            await stage.clock.advance(5)
            ends.take(notice(Word.ENDED, 10 * number))
            await stage.clock.advance(5)

    assert stage.seconds() == [0, 10, 20, 30, 40, 50]
    assert len(stage.overlapped) == 0


async def test_an_end_that_is_told_before_the_confirm_counts() -> None:
    stage = Stage(each("skip"))
    stage.gate.clear()

    async with stage.leading() as ends:
        ends.take(notice(Word.ENDED, 0))
        stage.gate.set()
        await stage.clock.advance(10)

    assert stage.seconds() == [0, 10]


async def test_the_end_of_another_tick_and_a_start_end_no_run() -> None:
    stage = Stage(each("skip"))

    async with stage.leading() as ends:
        for other in (notice(Word.STARTED, 0), notice(Word.DROPPED, 0), notice(Word.ENDED, -10)):
            ends.take(other)
        await stage.clock.advance(10)

    assert stage.seconds() == [0]


async def test_of_two_ends_of_one_tick_the_first_counts_and_the_second_ends_nothing_else() -> None:
    stage = Stage(each("skip"))

    async with stage.leading() as ends:
        ends.take(notice(Word.ENDED, 0))
        await stage.clock.advance(15)
        ends.take(notice(Word.ENDED, 0, "of another service"))
        await stage.clock.advance(10)

    assert stage.seconds() == [0, 10]


@pytest.mark.parametrize(("overlap", "expected"), [("skip", [0, 30]), ("queue", [0, 20, 50])])
async def test_a_run_that_nobody_ends_holds_up_its_schedule_no_longer_than_the_limit(
    overlap: Overlap, expected: list[float]
) -> None:
    stage = Stage(each(overlap, limit=25))
    presumed = watch(stage.events, RunPresumedOver)

    async with stage.leading():
        await stage.clock.advance(54)

    assert stage.seconds() == expected
    assert presumed[0].run == START


async def test_a_wait_that_is_long_is_looked_after_and_leaves_nothing_behind() -> None:
    stage = Stage(each("queue"))

    async with stage.leading() as ends:
        await stage.clock.advance(5 * LOOK_AGAIN)
        ends.take(notice(Word.ENDED, 0))
        await settle()

    assert stage.seconds() == [0, 5 * LOOK_AGAIN]
    assert len(stage.waiting) == 1


@pytest.mark.parametrize(("overlap", "expected"), [("skip", [60]), ("queue", [50])])
async def test_the_next_leader_knows_which_run_is_open(overlap: Overlap, expected: list[float]) -> None:
    first = Stage(each(overlap))
    async with first.leading():
        await first.clock.advance(25)
    second = Stage(each(overlap), first.paper, begins=42)

    async with second.leading() as ends:
        await second.clock.advance(10)
        assert second.seconds() == []
        ends.take(notice(Word.ENDED, 0))
        await second.clock.advance(9)

    assert second.seconds() == expected


@pytest.mark.parametrize(("overlap", "expected"), [("skip", [50]), ("queue", [50])])
async def test_an_end_that_nobody_heard_is_found_by_the_next_leader(overlap: Overlap, expected: list[float]) -> None:
    first = Stage(each(overlap, "skip"))
    async with first.leading():
        await first.clock.advance(25)
    second = Stage(each(overlap, "skip"), first.paper, begins=52)

    async with second.leading(notice(Word.ENDED, 0)):
        await second.clock.advance(1)

    assert second.seconds() == expected


async def test_until_all_was_read_that_was_told_before_nothing_is_decided_but_for_schedules_that_allow() -> None:
    other = Scheduled(name="other", schedule=Each(10), job=Report())
    stage = Stage(each("skip"))
    stage.scheduled = (each("skip"), other)

    async with stage.leading(is_current=False) as ends:
        await stage.clock.advance(12)
        assert stage.seconds() == []
        assert stage.seconds("other") == [0, 10]
        ends.set_current()
        await stage.clock.advance(1)

    assert stage.seconds() == [10]  # as the misfire policy says


async def test_a_tick_that_the_last_leader_published_unnoticed_is_not_published_again_once_it_was_started() -> None:
    stage, found = Stage(each("skip")), list[TickFound]()
    stage.events.subscribe(TickFound, found.append)

    async with stage.leading(notice(Word.STARTED, 0)) as ends:
        await stage.clock.advance(15)
        assert stage.seconds() == []  # 0 runs, 10 overlaps
        ends.take(notice(Word.ENDED, 0))
        await stage.clock.advance(5)

    assert stage.seconds() == [20]
    assert [event.instant for event in found] == [START]


async def test_one_that_has_ended_unnoticed_leaves_nothing_to_wait_for() -> None:
    stage = Stage(each("queue"))

    async with stage.leading(notice(Word.STARTED, 0), notice(Word.ENDED, 0)):
        await stage.clock.advance(10)

    assert stage.seconds() == [10]


async def test_all_ticks_that_were_missed_are_no_more_than_one_where_they_may_not_overlap() -> None:
    first = Stage(each("skip", "all"))
    async with first.leading() as ends:
        ends.take(notice(Word.ENDED, 0))
        await first.clock.advance(1)
    second = Stage(each("skip", "all"), first.paper, begins=51)

    async with second.leading():
        await second.clock.advance(1)

    assert second.seconds() == [10]
    assert [(event.until, event.run) for event in second.overlapped] == [(at(50), at(10))]


async def test_a_tick_that_fails_does_not_overlap_with_itself() -> None:
    stage = Stage(each("skip"))
    stage.refuse = lambda tick: stage.clock.now() < at(4)

    async with stage.leading() as ends:
        await stage.clock.advance(9)
        assert stage.seconds() == [0]
        ends.take(notice(Word.ENDED, 0))
        await stage.clock.advance(1)

    assert stage.seconds() == [0, 10]


async def test_ticks_are_doubtful_at_the_begin_of_a_term_and_when_they_were_tried_before() -> None:
    stage = Stage(each("allow"))
    stage.refuse = lambda tick: tick.instant == at(20) and stage.clock.now() < at(21)

    async with stage.leading():
        await stage.clock.advance(30)

    assert timedelta(0) < SKEW < timedelta(seconds=10)
    assert [tick.is_doubtful for tick in stage.published] == [True, False, True, False]
