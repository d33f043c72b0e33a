"""Which copy of a tick runs, and what is told of it. The publisher is a fake at the wire."""

import asyncio
from collections.abc import Sequence
from itertools import product
from typing import cast

import pytest

from amqpjobs.amqp.connection import Line
from amqpjobs.amqp.publisher import Publisher
from amqpjobs.amqp.runs import Notice, Word
from amqpjobs.envelope import Envelope
from amqpjobs.errors import BrokerUnavailableError, RefusedError, UnconfirmedError, UnroutableError
from amqpjobs.events import Events, RunNotTold, SettleFailed
from amqpjobs.outcome import (
    Cancelled,
    Completed,
    Dead,
    DeadReason,
    Dropped,
    Expired,
    Outcome,
    Retrying,
    Returned,
    Snoozed,
)
from amqpjobs.registry import Registry
from amqpjobs.replies import Replies
from amqpjobs.topology import Topology
from amqpjobs.worker.settle import HOPELESS, Settler
from amqpjobs.worker.ticks import TELL_WITHIN, Ticks, judge, last_word
from tests.support.clock import FakeClock
from tests.unit.making import NOW, FakePublisher, FakeSettler, delivery, envelope, watched

TOPOLOGY = Topology("ns")
TICK = envelope(job_id="tick@2026-01-01T00:00:00Z", schedule="tick", app_id="shop", copy="mine")
DOUBTFUL = TICK.evolve(doubt_since=NOW)


def started(*copies: str) -> list[Notice]:
    return [Notice(Word.STARTED, TICK.job_id, copy) for copy in copies]


def word(what: Word, copy: str) -> Notice:
    return Notice(what, TICK.job_id, copy)


# The judgement


def test_a_copy_runs_that_nobody_was_before() -> None:
    assert judge(started("mine"), "mine") is None
    assert judge(started("mine", "other"), "mine") is None


def test_a_copy_is_dropped_when_another_one_was_started_before() -> None:
    assert judge(started("other", "mine"), "mine") == Dropped(is_over=False)


def test_a_redelivered_copy_is_not_dropped_because_of_its_own_start() -> None:
    assert judge(started("mine", "mine"), "mine") is None
    assert judge(started("mine", "other", "mine"), "mine") is None


def test_a_copy_that_was_itself_dropped_drops_no_other() -> None:
    assert judge([*started("other"), word(Word.DROPPED, "other"), *started("mine")], "mine") is None


def test_whether_the_other_run_has_ended_is_told() -> None:
    assert judge([*started("other"), word(Word.ENDED, "other"), *started("mine")], "mine") == Dropped(is_over=True)
    assert judge([*started("other", "mine"), word(Word.ENDED, "mine")], "mine") == Dropped(is_over=False)


def test_where_its_own_start_is_not_to_be_found_a_copy_runs() -> None:
    assert judge(started("other"), "mine") is None


@pytest.mark.parametrize("order", list(product("abc", repeat=4)))
def test_of_copies_that_are_started_in_any_order_and_again_one_is_never_dropped(order: Sequence[str]) -> None:
    verdicts = {copy: judge(started(*order), copy) for copy in set(order)}

    assert [copy for copy, verdict in verdicts.items() if verdict is None] == [order[0]]


# Before it runs


class Bench:
    def __init__(self) -> None:
        self.clock, self.events = FakeClock(NOW), Events()
        self.publisher = FakePublisher()
        self.untold = cast("list[RunNotTold]", watched(self.events, RunNotTold))
        self.ticks = Ticks(
            topology=TOPOLOGY,
            publisher=cast("Publisher", self.publisher),
            line=cast("Line", NoLine()),
            clock=self.clock,
            events=self.events,
        )


class NoLine:
    """Of a broker that is away."""

    async def session(self) -> None:
        raise BrokerUnavailableError("It is away.")


async def test_a_start_is_told_to_the_app_whose_beat_published_it() -> None:
    bench = Bench()

    assert await bench.ticks.begin(TICK) is None

    (told,) = bench.publisher.sent
    assert (told.exchange, told.routing_key) == ("ns.queues", "ns.beat.runs.v1.shop")
    assert (told.properties.kind, told.body) == ("started", b"")
    assert told.properties.headers == {"amqpjobs-id": TICK.job_id, "amqpjobs-copy": "mine"}


async def test_a_later_attempt_is_not_told_again_nor_looked_up() -> None:
    bench = Bench()

    assert await bench.ticks.begin(DOUBTFUL.evolve(attempt=2, first_at=NOW)) is None

    assert bench.publisher.sent == []


@pytest.mark.parametrize("tick", [TICK, DOUBTFUL])
async def test_where_no_beat_has_its_stream_a_tick_just_runs(tick: Envelope) -> None:
    bench = Bench()
    bench.publisher.failures.append(UnroutableError("No queue is bound."))

    assert await bench.ticks.begin(tick) is None
    assert bench.untold == []


async def test_a_start_that_cannot_be_told_is_an_event_and_the_tick_runs() -> None:
    bench = Bench()
    bench.publisher.failures.append(RefusedError("as asked"))

    assert await bench.ticks.begin(DOUBTFUL) is None
    assert [event.word for event in bench.untold] == ["started"]


async def test_a_broker_that_confirms_nothing_holds_up_no_tick_for_long() -> None:
    bench = Bench()
    bench.publisher.failures.append(lambda: bench.clock.sleep(1e6))

    beginning = asyncio.create_task(bench.ticks.begin(TICK))
    await bench.clock.advance(TELL_WITHIN)

    assert await beginning is None
    assert isinstance(bench.untold[0].error, TimeoutError)


async def test_a_doubtful_tick_that_cannot_be_looked_up_runs() -> None:
    bench = Bench()

    assert await bench.ticks.begin(DOUBTFUL) is None
    assert [type(event.error) for event in bench.untold] == [BrokerUnavailableError]


# When it is done with


DONE: list[Outcome | Dropped] = [
    Completed(),
    Dead(DeadReason.ATTEMPTS_EXHAUSTED),
    Cancelled(),
    Expired(),
    Dropped(is_over=True),
]


@pytest.mark.parametrize("outcome", DONE)
def test_the_end_of_a_tick_is_told(outcome: Outcome | Dropped) -> None:
    told = last_word(TOPOLOGY, TICK, outcome)

    assert told is not None
    assert told.properties.kind == "ended"


def test_a_dropped_copy_whose_other_runs_on_is_no_end() -> None:
    told = last_word(TOPOLOGY, TICK, Dropped())

    assert told is not None
    assert told.properties.kind == "dropped"


@pytest.mark.parametrize("outcome", [Retrying(1), Snoozed(1), Returned()])
def test_while_a_tick_goes_on_no_end_is_told(outcome: Outcome) -> None:
    assert last_word(TOPOLOGY, TICK, outcome) is None


class Desk:
    """A settler, and what its outer world saw."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.clock, self.events = FakeClock(NOW), Events()
        self.failed = watched(self.events, SettleFailed)
        self.untold = watched(self.events, RunNotTold)
        self.channel = FakeSettler(log=self.log)
        self.publisher = FakePublisher(self.log)
        self.settler = Settler(
            topology=TOPOLOGY,
            publisher=cast("Publisher", self.publisher),
            clock=self.clock,
            events=self.events,
            replies=Replies(TOPOLOGY, Registry("work"), longest=10_000),
        )

    async def settle(self, outcome: Outcome | Dropped, tick: Envelope = TICK) -> bool:
        settling = asyncio.create_task(self.settler.settle(delivery(settler=self.channel), tick, outcome))
        for _ in range(100):
            await self.clock.advance(0.5)
        return await settling

    @property
    def told(self) -> list[str | None]:
        return [each.properties.kind for each in self.publisher.sent]


async def test_an_end_is_confirmed_before_the_ack_and_after_all_else() -> None:
    desk = Desk()

    assert await desk.settle(Dead(DeadReason.NOT_RETRYABLE))

    assert desk.log == ["confirmed", "confirmed", ("ack", 7)]
    assert desk.told == ["probe", "ended"]


async def test_of_a_job_that_is_no_tick_nothing_is_told() -> None:
    desk = Desk()

    assert await desk.settle(Completed(), envelope())

    assert desk.log == [("ack", 7)]


async def test_a_dropped_copy_is_told_as_such_and_acked() -> None:
    desk = Desk()

    assert await desk.settle(Dropped())

    assert desk.log == ["confirmed", ("ack", 7)]
    assert desk.told == ["dropped"]


async def test_where_no_beat_has_its_stream_a_tick_is_just_acked() -> None:
    desk = Desk()
    desk.publisher.failures.append(UnroutableError("No queue is bound."))

    assert await desk.settle(Completed())

    assert desk.log == [("ack", 7)]
    assert desk.failed == []


async def test_an_end_that_was_not_confirmed_is_told_again_and_what_follows_is_not_published_again() -> None:
    desk = Desk()

    async def lost() -> None:
        raise UnconfirmedError("as asked")

    async def confirmed() -> None: ...

    desk.publisher.failures.extend([confirmed, lost, lost])
    assert await desk.settle(Dead(DeadReason.NOT_RETRYABLE))

    assert desk.told == ["probe", "ended"]
    assert len(desk.failed) == 2


async def test_an_end_that_is_refused_again_and_again_does_not_keep_the_job() -> None:
    desk = Desk()
    desk.publisher.failures.extend([RefusedError("as asked")] * HOPELESS)

    assert await desk.settle(Completed())

    assert desk.log == [("ack", 7)]
    assert len(desk.untold) == 1


async def test_an_end_is_told_of_a_tick_that_only_the_broker_can_bury() -> None:
    desk = Desk()
    desk.publisher.failures.append(RefusedError("as asked"))

    assert await desk.settle(Dead(DeadReason.NOT_RETRYABLE))

    assert desk.log == ["confirmed", ("reject", 7)]
    assert desk.told == ["ended"]


async def test_when_the_channel_is_gone_before_the_end_is_told_the_tick_comes_again() -> None:
    desk = Desk()

    async def lost() -> None:
        desk.channel.is_open = False
        raise UnconfirmedError("as asked")

    desk.publisher.failures.append(lost)

    assert not await desk.settle(Completed())
    assert desk.log == []
