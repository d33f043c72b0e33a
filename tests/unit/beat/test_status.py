"""How schedules are, as one may read it off what the code says and what beats have written down."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from amqpjobs import Job, every
from amqpjobs.beat.added import added_of
from amqpjobs.beat.plan import Scheduled
from amqpjobs.beat.state import State
from amqpjobs.beat.status import ScheduleStatus, statuses_in
from tests.support.ticks import Each

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Report(Job[None], kind="report"):
    day: int = 1


REPORT = Scheduled(name="report", schedule=Each(60), job=Report(), misfire="skip")


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def status(state: State, *declared: Scheduled, after: float = 0) -> list[ScheduleStatus]:
    return list(statuses_in(state, {each.name: each for each in declared}, NOW + seconds(after)))


def kept(*scheduled: Scheduled) -> State:
    state = State()
    state.take_up(scheduled, NOW)
    return state


def test_what_no_beat_has_seen_is_told_with_its_next_run() -> None:
    (found,) = status(State(), REPORT, after=5)

    assert (found.problem, found.next_run, found.last_run) == ("no beat has seen it yet", NOW + seconds(60), None)
    assert (found.schedule, found.kind, found.misfire, found.is_added) == ("each 60 s", "report", "skip", False)


def test_the_lag_is_how_late_the_next_run_is() -> None:
    state = kept(REPORT)
    state.settle("report", NOW + seconds(60))
    state.note_run("report", NOW + seconds(60))

    in_time, late = status(state, REPORT, after=100), status(state, REPORT, after=130)

    assert (in_time[0].last_run, in_time[0].next_run, in_time[0].lag) == (NOW + seconds(60), NOW + seconds(120), 0)
    assert (late[0].next_run, late[0].lag) == (NOW + seconds(120), 10)


def test_what_is_paused_has_no_next_run_and_no_lag() -> None:
    state = kept(REPORT)
    state.runtime.pause("report", NOW)
    state.runtime.pause("gone", NOW)

    paused, gone = status(state, REPORT, after=3600)

    assert (paused.paused_since, paused.next_run, paused.lag, paused.problem) == (NOW, None, 0, "")
    assert (gone.name, gone.problem) == ("gone", "neither declared here nor added")


def test_a_definition_that_is_not_the_beats_is_told() -> None:
    (found,) = status(kept(REPORT), replace(REPORT, schedule=Each(61)))

    assert found.problem == "beats follow another definition of it"


def test_what_was_added_is_shown_and_so_is_what_nobody_can_follow() -> None:
    extra = Scheduled(name="extra", schedule=every(10), job=Report())
    state = kept(REPORT, extra)
    state.runtime.add("extra", added_of(extra).data())
    state.runtime.add("report", added_of(replace(extra, name="report")).data())
    state.runtime.add("odd", {"name": "odd", "kind": "report"})

    declared, added, hidden, odd = status(state, REPORT, after=1)

    assert (declared.is_added, added.is_added, added.next_run) == (False, True, NOW)
    assert (hidden.name, hidden.problem) == ("report", "hidden by the declared one of this name")
    assert "schedule: Field required" in odd.problem


def test_a_schedule_of_a_users_own_that_raises_is_told() -> None:
    @dataclass(frozen=True)
    class Broken:
        def next_after(self, instant: datetime) -> datetime:
            raise ZeroDivisionError("as asked")

        def __str__(self) -> str:
            return "broken"

    (found,) = status(State(), replace(REPORT, schedule=Broken()))

    assert found.problem == "it cannot say when it is due: ZeroDivisionError('as asked')"
