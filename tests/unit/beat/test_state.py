"""What beats remember, over redeployments, failed writes and clocks that were wrong."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from amqpjobs import Job
from amqpjobs.beat.plan import Scheduled
from amqpjobs.beat.runtime import Leader
from amqpjobs.beat.state import AHEAD, KEPT, State, state_from
from tests.support.clock import settle
from tests.support.ticks import Each

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


class Report(Job[None], kind="report"):
    day: int = 1


REPORT = Scheduled(name="report", schedule=Each(60), job=Report())
OTHER = Scheduled(name="other", schedule=Each(60), job=Report())


@dataclass
class Paper:
    """A register without a broker."""

    value: bytes | None = None
    changes: Sequence[bytes] = ()
    fails: bool = False
    writes: list[str] = field(default_factory=list[str])

    async def write(self, value: bytes) -> None:
        self._try("write")
        self.value, self.changes = value, ()

    async def amend(self, change: bytes) -> None:
        self._try("amend")
        self.changes = (*self.changes, change)

    def _try(self, what: str) -> None:
        self.writes.append(what)
        if self.fails:
            raise OSError("as asked")


async def kept(*scheduled: Scheduled, at: datetime = NOW) -> tuple[State, Paper]:
    state, paper = State(), Paper()
    state.take_up(scheduled, at)
    await state.keep(paper)
    return state, paper


async def test_a_new_schedule_begins_now_and_nothing_of_its_past_is_due() -> None:
    state, _ = await kept(REPORT)

    assert state["report"].anchor == NOW
    assert NOW - SECOND < state["report"].last < NOW


async def test_the_same_definition_goes_on_where_it_was() -> None:
    state, paper = await kept(REPORT)
    state.settle("report", NOW + 60 * SECOND)
    await state.keep(paper)
    again = state_from(paper)
    redeployed = replace(REPORT, job=Report(day=2), misfire="all", schedule=Each(60.0))

    begun = again.take_up([redeployed], NOW + 3600 * SECOND)

    assert begun == []
    assert (again["report"].anchor, again["report"].last) == (NOW, NOW + 60 * SECOND)


async def test_a_changed_definition_is_anchored_anew() -> None:
    _, paper = await kept(REPORT)
    again, later = state_from(paper), NOW + 3600 * SECOND

    begun = again.take_up([replace(REPORT, schedule=Each(61))], later)

    assert begun == ["report"]
    assert again["report"].anchor == later
    assert later - SECOND < again["report"].last < later


async def test_what_is_settled_stays_so() -> None:
    state, paper = await kept(REPORT)
    state.settle("report", NOW + 60 * SECOND)
    state.settle("report", NOW + 30 * SECOND)
    await state.keep(paper)
    again = state_from(paper)
    again.take_up([replace(REPORT, schedule=Each(61))], NOW)

    assert state["report"].last == NOW + 60 * SECOND
    assert again["report"].last == NOW + 60 * SECOND


async def test_changes_are_amended_and_read_with_the_value() -> None:
    state, paper = await kept(REPORT, OTHER)
    for number in range(1, 4):
        state.settle("report", NOW + number * SECOND)
        await state.keep(paper)
    state.settle("other", NOW + SECOND)
    await state.keep(paper)
    again = state_from(paper)

    assert paper.writes == ["write", "amend", "amend", "amend", "amend"]
    assert (again["report"], again["other"]) == (state["report"], state["other"])


async def test_when_the_changes_are_many_the_value_is_written_anew() -> None:
    state, paper = await kept(REPORT)
    for number in range(2_000):
        state.settle("report", NOW + number * SECOND)
        await state.keep(paper)

    assert paper.writes.count("write") in (2, 3, 4)
    assert state_from(paper)["report"] == state["report"]


async def test_after_a_write_that_failed_all_is_written() -> None:
    state, paper = await kept(REPORT)
    state.settle("report", NOW + SECOND)
    paper.fails = True
    with pytest.raises(OSError, match="as asked"):
        await state.keep(paper)
    was_kept = state.is_kept
    paper.fails = False

    await state.keep(paper)

    assert (was_kept, state.is_kept) == (False, True)
    assert paper.writes == ["write", "amend", "write"]
    assert state_from(paper)["report"].last == NOW + SECOND


async def test_the_last_run_outlives_a_change_of_definition() -> None:
    state, paper = await kept(REPORT)
    state.note_run("report", NOW)
    await state.keep(paper)
    again = state_from(paper)
    again.take_up([replace(REPORT, schedule=Each(61))], NOW + SECOND)

    assert again["report"].ran == NOW


async def test_what_is_forgotten_begins_anew_when_it_comes_back() -> None:
    state, paper = await kept(REPORT, OTHER)
    state.forget("report")
    await state.keep(paper)
    again = state_from(paper)

    assert paper.writes == ["write", "amend"]
    assert (again.get("report"), again.get("other")) == (None, state["other"])
    assert again.begin(REPORT, NOW + SECOND)


async def test_what_was_said_at_runtime_is_read_again_from_a_value_and_from_changes() -> None:
    state, paper = await kept(REPORT)
    runtime = state.runtime
    runtime.pause("report", NOW)
    runtime.add("extra", {"name": "extra"})
    runtime.add("gone", {"name": "gone"})
    runtime.answer("1", "")
    runtime.answer("2", "as asked")
    runtime.lead(Leader("host", 7, NOW))
    await state.keep(paper)
    runtime.remove("gone")
    await state.keep(paper)
    amended = state_from(paper).runtime
    whole = Paper()
    await state_from(paper).keep(whole)
    written = state_from(whole).runtime

    for found in (amended, written):
        assert found.paused == {"report": NOW}
        assert found.added == {"extra": {"name": "extra"}}
        assert found.answers == {"1": "", "2": "as asked"}
        assert found.leader == Leader("host", 7, NOW)


async def test_two_who_keep_at_once_write_one_after_the_other() -> None:
    state, paper = await kept(REPORT)
    gate, writing = asyncio.Event(), asyncio.Event()

    class Slow(Paper):
        async def amend(self, change: bytes) -> None:
            writing.set()
            await gate.wait()
            await super().amend(change)

    slow = Slow(paper.value)
    state.runtime.pause("report", NOW)
    first = asyncio.create_task(state.keep(slow))
    await writing.wait()
    second = asyncio.create_task(state.keep(slow))
    await settle()
    assert not second.done()  # what it would keep is being written, and may fail yet
    gate.set()
    await asyncio.gather(first, second)

    assert slow.writes == ["amend"]


async def test_with_nothing_new_nothing_is_written() -> None:
    state, paper = await kept(REPORT)

    await state.keep(paper)

    assert paper.writes == ["write"]


async def test_what_is_scheduled_no_longer_is_remembered_for_some_days() -> None:
    _, paper = await kept(REPORT, OTHER)

    soon, late = state_from(paper), state_from(paper)
    soon.take_up([REPORT], NOW + KEPT / 2)
    late.take_up([REPORT], NOW + KEPT * 2)

    assert soon.take_up([REPORT, OTHER], NOW + KEPT / 2) == []
    assert late.take_up([REPORT, OTHER], NOW + KEPT * 2) == ["other"]


async def test_what_a_wrong_clock_settled_far_ahead_goes_on_from_now() -> None:
    _, paper = await kept(REPORT, OTHER, at=NOW + AHEAD * 2)
    again = state_from(paper)

    again.take_up([REPORT, OTHER], NOW)

    assert again["report"].last == NOW


async def test_a_clock_that_is_a_little_behind_repeats_nothing() -> None:
    _, paper = await kept(REPORT, at=NOW + AHEAD / 2)
    again = state_from(paper)

    again.take_up([REPORT], NOW)

    assert again["report"].last > NOW


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"x",
        b"7",
        b'{"report":[1]}',
        b'{"marks":{"report":[1]}}',
        b'{"marks":{"report":["a","b","c",null]}}',
        b'{"paused":{"report":1}}',
        b'{"added":{"report":1}}',
        b'{"leader":["host"]}',
    ],
)
def test_what_no_beat_has_written_is_an_error(body: bytes) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError)):
        state_from(Paper(body))
