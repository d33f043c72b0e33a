"""What reaches the broker, and in which order. Publisher and channel are fakes at the wire."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast

import pytest

from amqpjobs.amqp.publisher import LONGEST_HEADERS, Publisher
from amqpjobs.codec import CUT_HEADER, decode
from amqpjobs.effects import Effect
from amqpjobs.envelope import Envelope
from amqpjobs.errors import (
    BrokerUnavailableError,
    EnqueueError,
    InvalidArgumentsError,
    RefusedError,
    TooLargeError,
    UnconfirmedError,
    UnreadableError,
    UnroutableError,
)
from amqpjobs.events import Events, ReplyUndelivered, SettleFailed
from amqpjobs.outcome import (
    Cancelled,
    Completed,
    Dead,
    DeadReason,
    Expired,
    Outcome,
    Retrying,
    Returned,
    Snoozed,
)
from amqpjobs.registry import Registry
from amqpjobs.replies import Replies
from amqpjobs.settings import host_name
from amqpjobs.topology import LONGEST_DELAY, Topology
from amqpjobs.wire import Delivery, Properties, Publication, table_size
from amqpjobs.worker.settle import HOPELESS, PATIENCE, Settler
from tests.support.clock import FakeClock
from tests.unit.making import NOW, FakePublisher, FakeSettler, delivery, envelope, watched

TOPOLOGY = Topology("amqpjobs")
#: Bytes of an answer.
LONGEST_ANSWER = 10_000
#: Header values of a dead letter whose handler failed.
FAILED = Dead(DeadReason.ATTEMPTS_EXHAUSTED, ValueError("wrong"))


class Bench:
    """A settler, and what its outer world saw."""

    def __init__(self, *effects: Effect) -> None:
        self.log: list[object] = []
        self.clock = FakeClock(NOW)
        self.events = Events()
        self.failed = cast("list[SettleFailed]", watched(self.events, SettleFailed))
        self.channel = FakeSettler(log=self.log)
        self.publisher = FakePublisher(self.log)
        self.settler = Settler(
            topology=TOPOLOGY,
            publisher=cast("Publisher", self.publisher),
            clock=self.clock,
            events=self.events,
            replies=Replies(TOPOLOGY, Registry("work"), longest=LONGEST_ANSWER),
            effects=effects,
        )

    @property
    def sent(self) -> Publication:
        assert len(self.publisher.sent) == 1
        return self.publisher.sent[0]

    def delivery(self, **changes: Any) -> Delivery:
        return delivery(settler=self.channel, **changes)

    async def settle(self, outcome: Outcome, job: Envelope | None = None, message: Delivery | None = None) -> bool:
        return await self.settler.settle(message or self.delivery(), job or envelope(), outcome)

    def start(self, outcome: Outcome) -> "asyncio.Task[bool]":
        return asyncio.create_task(self.settle(outcome))


def come_back(publication: Publication) -> Envelope:
    """The envelope a worker reads from a publication."""
    return decode(
        Delivery(
            body=publication.body,
            properties=publication.properties,
            queue="work",
            exchange=publication.exchange,
            routing_key=publication.routing_key,
            redelivered=False,
            tag=1,
            settler=FakeSettler(),
        )
    )


def result_effect(job: Envelope, outcome: Outcome) -> Sequence[Publication]:
    return [Publication(exchange="results", routing_key=job.job_id, body=b"", properties=Properties())]


def broken_effect(job: Envelope, outcome: Outcome) -> Sequence[Publication]:
    raise KeyError("a bug in the effect")


@pytest.mark.parametrize("outcome", [Completed(), Cancelled(), Expired()])
async def test_what_needs_nothing_to_follow_is_only_acked(outcome: Outcome) -> None:
    bench = Bench()

    is_settled = await bench.settle(outcome)

    assert is_settled
    assert bench.log == [("ack", 7)]


async def test_what_is_returned_goes_back_to_its_queue() -> None:
    bench = Bench(result_effect)

    is_settled = await bench.settle(Returned())

    assert is_settled
    assert bench.log == [("nack", 7)]


@pytest.mark.parametrize("outcome", [Retrying(2.0), Snoozed(2.0), FAILED])
async def test_what_follows_is_confirmed_before_the_ack(outcome: Outcome) -> None:
    bench = Bench(result_effect)

    await bench.settle(outcome)

    assert bench.log == ["confirmed", "confirmed", ("ack", 7)]
    assert [each.exchange == "results" for each in bench.publisher.sent] == [True, False]


async def test_what_effects_want_is_confirmed_before_the_ack_of_a_completed_job() -> None:
    bench = Bench(result_effect)

    await bench.settle(Completed())

    assert bench.log == ["confirmed", ("ack", 7)]
    assert (bench.sent.exchange, bench.sent.routing_key) == ("results", "job-1")


async def test_a_retry_is_the_same_job_with_one_attempt_more() -> None:
    bench = Bench()
    job = envelope(payload=b'{"a": 1}', headers={"colour": "red"}, version=2, max_attempts=9, parent="p")

    await bench.settle(Retrying(2.0), job)

    assert come_back(bench.sent) == job.evolve(attempt=2, first_at=NOW, enqueued_at=NOW, correlation_id="job-1")


async def test_a_retry_waits_in_the_levels_and_returns_to_its_own_queue() -> None:
    bench = Bench()

    await bench.settle(Retrying(2.0), envelope(exchange="orders"))

    route = TOPOLOGY.delayed(2.0, queue="work")
    assert (bench.sent.exchange, bench.sent.routing_key) == (route.exchange, route.key)


async def test_a_retry_without_a_delay_goes_straight_to_its_own_queue() -> None:
    bench = Bench()

    await bench.settle(Retrying(0.0))

    route = TOPOLOGY.to_queue("work")
    assert (bench.sent.exchange, bench.sent.routing_key) == (route.exchange, route.key)


@pytest.mark.parametrize("delay", [LONGEST_DELAY * 2, float("inf")])
@pytest.mark.parametrize("outcome", [Retrying, Snoozed])
async def test_a_delay_beyond_the_levels_is_the_longest_there_is(
    delay: float, outcome: type[Retrying] | type[Snoozed]
) -> None:
    bench = Bench()

    settling = bench.start(outcome(delay))
    await bench.clock.advance(1)
    bench.channel.is_open = False
    await bench.clock.advance(20)

    assert settling.done()
    assert bench.failed == []
    assert bench.sent.exchange == TOPOLOGY.level(31)


async def test_the_first_failure_is_remembered_through_all_retries() -> None:
    bench = Bench()
    first = NOW - timedelta(days=1)

    await bench.settle(Retrying(2.0), envelope(first_at=first))

    assert come_back(bench.sent).first_at == first


async def test_a_snoozed_job_keeps_its_attempt() -> None:
    bench = Bench()

    await bench.settle(Snoozed(60.0), envelope(attempt=2))

    assert come_back(bench.sent).attempt == 2
    assert bench.sent.routing_key == TOPOLOGY.delayed(60.0, queue="work").key


async def test_a_job_of_unknown_kind_remembers_since_when() -> None:
    bench, later = Bench(), Bench()
    since = NOW - timedelta(seconds=20)

    await bench.settle(Snoozed(10.0, "no handler", unknown=True))
    await later.settle(Snoozed(20.0, "no handler", unknown=True), envelope(unknown_since=since))

    assert come_back(bench.sent).unknown_since == NOW
    assert come_back(later.sent).unknown_since == since


@pytest.mark.parametrize("outcome", [Snoozed(5.0), Retrying(5.0)])
async def test_a_job_that_was_known_again_has_its_whole_window_again(outcome: Outcome) -> None:
    bench = Bench()

    await bench.settle(outcome, envelope(unknown_since=NOW - timedelta(seconds=20)))

    assert come_back(bench.sent).unknown_since is None


@pytest.mark.parametrize(
    "error",
    [
        UnroutableError("nobody"),
        UnconfirmedError("lost"),
        BrokerUnavailableError("away"),
        TimeoutError(),
        RefusedError("full"),
        TooLargeError("too large"),
        ValueError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_publish_that_fails_is_tried_again(error: Exception) -> None:
    bench = Bench()
    bench.publisher.failures.append(error)

    settling = bench.start(Retrying(2.0))
    await bench.clock.advance(0.1)

    assert settling.result()
    assert bench.log == ["confirmed", ("ack", 7)]
    assert [(each.error, each.pause) for each in bench.failed] == [(error, 0.1)]


async def test_pauses_between_tries_grow_up_to_a_cap() -> None:
    bench = Bench()
    bench.publisher.failures.extend(BrokerUnavailableError("away") for _ in range(10))

    settling = bench.start(Retrying(2.0))
    await bench.clock.advance(60)

    assert settling.result()
    assert [each.pause for each in bench.failed] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0]


async def test_a_publish_that_is_never_answered_is_given_up_and_tried_again() -> None:
    bench = Bench()
    bench.publisher.failures.append(lambda: bench.clock.sleep(10_000))

    settling = bench.start(Retrying(2.0))
    await bench.clock.advance(PATIENCE - 1)
    log_before = list(bench.log)
    await bench.clock.advance(2)

    assert log_before == []
    assert settling.result()
    assert bench.log == ["confirmed", ("ack", 7)]
    assert isinstance(bench.failed[0].error, TimeoutError)


async def test_a_channel_that_closes_ends_the_tries() -> None:
    bench = Bench()
    bench.publisher.failures.extend(BrokerUnavailableError("away") for _ in range(100))

    settling = bench.start(Retrying(2.0))
    await bench.clock.advance(1)
    bench.channel.is_open = False
    await bench.clock.advance(20)

    assert settling.result() is False
    assert bench.log == []


@pytest.mark.parametrize("outcome", [Completed(), Retrying(1.0), Returned(), FAILED])
async def test_nothing_is_settled_on_a_closed_channel(outcome: Outcome) -> None:
    bench = Bench()
    bench.channel.is_open = False

    is_settled = await bench.settle(outcome)

    assert not is_settled
    assert bench.log == []


async def test_a_channel_that_closes_just_before_the_ack_is_told() -> None:
    bench = Bench()
    bench.channel.is_open = False

    await bench.settle(Completed())

    assert [each.pause for each in bench.failed] == [None]
    assert isinstance(bench.failed[0].error, BrokerUnavailableError)


async def test_a_dead_letter_says_why_where_and_when() -> None:
    bench = Bench()
    error = ValueError("wrong")
    try:
        raise error
    except ValueError:
        await bench.settle(Dead(DeadReason.NOT_RETRYABLE, error), envelope(attempt=3))

    headers = dict(bench.sent.properties.headers)
    traceback = headers.pop("amqpjobs-dead-traceback")
    assert headers == {
        "amqpjobs-id": "job-1",
        "amqpjobs-attempt": 3,
        "amqpjobs-queue": "work",
        "amqpjobs-first-at": 1_767_225_600_000,
        "amqpjobs-dead-reason": "not_retryable",
        "amqpjobs-dead-at": 1_767_225_600_000,
        "amqpjobs-dead-host": host_name(),
        "amqpjobs-dead-queue": "work",
        "amqpjobs-dead-error": "ValueError: wrong",
    }
    assert "raise error" in str(traceback)
    assert bench.sent.routing_key == TOPOLOGY.dead_queue("work")
    assert bench.sent.body == b"{}"


async def test_a_message_nobody_could_read_is_dead_lettered_as_it_came() -> None:
    bench = Bench()
    message = bench.delivery(body=b"\xff", kind=None, headers={"colour": "red", "x-death": []}, message_id="m")

    await bench.settler.settle(message, None, Dead(DeadReason.UNREADABLE, UnreadableError("no type")))

    headers = bench.sent.properties.headers
    assert bench.sent.body == b"\xff"
    assert (headers["colour"], headers["amqpjobs-id"]) == ("red", "m")
    assert headers["amqpjobs-dead-error"] == "UnreadableError: no type"
    assert "x-death" not in headers
    assert "amqpjobs-dead-traceback" not in headers


async def test_a_payload_that_did_not_fit_needs_no_traceback() -> None:
    bench = Bench()

    await bench.settle(Dead(DeadReason.INVALID_ARGUMENTS, InvalidArgumentsError("no")))

    assert "amqpjobs-dead-traceback" not in bench.sent.properties.headers


async def test_an_effect_sees_no_message_that_nobody_could_read() -> None:
    bench = Bench(broken_effect)

    await bench.settler.settle(bench.delivery(), None, Dead(DeadReason.UNREADABLE, UnreadableError("no")))

    assert bench.log == ["confirmed", ("ack", 7)]


async def test_huge_errors_and_headers_of_a_dead_letter_are_cut_and_marked() -> None:
    bench = Bench()
    error = ValueError("x" * 10_000_000)

    await bench.settle(
        Dead(DeadReason.NOT_RETRYABLE, error),
        envelope(headers={"huge": "y" * 90_000, "large": "z" * 20_000, "small": "s"}),
    )

    headers = bench.sent.properties.headers
    assert table_size(headers) <= LONGEST_HEADERS
    assert (headers["small"], headers[CUT_HEADER], "huge" in headers) == ("s", "huge", False)
    assert "[… cut …]" in str(headers["amqpjobs-dead-error"])


async def test_that_headers_were_cut_is_still_told_after_the_next_retry() -> None:
    first, second = Bench(), Bench()

    await first.settle(Retrying(1.0), envelope(headers={"huge": "y" * 120_000}))
    await second.settle(Retrying(1.0), come_back(first.sent))

    assert first.sent.properties.headers[CUT_HEADER] == "huge"
    assert second.sent.properties.headers.get(CUT_HEADER) == "huge"


@pytest.mark.parametrize("error", [TooLargeError("headers"), RefusedError("refused"), EnqueueError("other")])
async def test_a_dead_letter_the_broker_will_not_take_is_rejected(error: Exception) -> None:
    bench = Bench()
    bench.publisher.failures.append(error)

    is_settled = await bench.settle(FAILED)

    assert is_settled
    assert bench.log == [("reject", 7)]
    assert [(each.error, each.pause) for each in bench.failed] == [(error, None)]


async def test_a_dead_letter_waits_for_a_broker_that_is_away() -> None:
    bench = Bench()
    bench.publisher.failures.append(BrokerUnavailableError("away"))

    settling = bench.start(FAILED)
    await bench.clock.advance(0.1)

    assert settling.result()
    assert bench.log == ["confirmed", ("ack", 7)]


async def test_a_reject_on_a_closed_channel_is_no_settling() -> None:
    bench = Bench()

    async def close() -> None:
        bench.channel.is_open = False
        raise TooLargeError("headers")

    bench.publisher.failures.append(close)
    is_settled = await bench.settle(FAILED)

    assert not is_settled
    assert bench.log == []


@pytest.mark.parametrize("outcome", [Completed(), Retrying(1.0)])
async def test_an_effect_that_raises_holds_the_job_back(outcome: Outcome) -> None:
    bench = Bench(broken_effect)

    settling = bench.start(outcome)
    await bench.clock.advance(1)
    log_while_broken = list(bench.log)
    bench.channel.is_open = False
    await bench.clock.advance(20)

    assert log_while_broken == []
    assert settling.result() is False
    assert isinstance(bench.failed[0].error, KeyError)


async def test_an_effect_that_raises_for_a_dead_job_lets_the_broker_take_it() -> None:
    bench = Bench(broken_effect)

    await bench.settle(FAILED)

    assert bench.log == [("reject", 7)]


async def test_an_error_that_cannot_be_shown_still_makes_a_dead_letter() -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    bench = Bench()

    await bench.settle(Dead(DeadReason.ATTEMPTS_EXHAUSTED, Unspeakable()))

    assert bench.log == ["confirmed", ("ack", 7)]
    assert bench.sent.properties.headers["amqpjobs-dead-reason"] == "attempts_exhausted"


async def test_settling_that_is_cancelled_acks_nothing() -> None:
    bench = Bench()
    bench.publisher.failures.append(lambda: bench.clock.sleep(10_000))

    settling = bench.start(Retrying(2.0))
    await bench.clock.advance(1)
    settling.cancel()
    await asyncio.wait([settling])

    assert settling.cancelled()
    assert bench.log == []


# Answers

ASKED = envelope(reply_to=TOPOLOGY.reply_queue("caller"))


def undelivered(bench: Bench) -> list[ReplyUndelivered]:
    return cast("list[ReplyUndelivered]", watched(bench.events, ReplyUndelivered))


@pytest.mark.parametrize("outcome", [Completed(), Cancelled(), Expired()])
async def test_who_awaits_a_job_is_answered_before_its_ack(outcome: Outcome) -> None:
    bench = Bench()

    await bench.settle(outcome, ASKED)

    assert bench.log == ["confirmed", ("ack", 7)]
    assert bench.sent.routing_key == ASKED.reply_to


async def test_a_dead_job_is_answered_after_its_dead_letter_and_before_its_ack() -> None:
    bench = Bench()

    await bench.settle(FAILED, ASKED)

    assert bench.log == ["confirmed", "confirmed", ("ack", 7)]
    assert [each.routing_key for each in bench.publisher.sent] == [TOPOLOGY.dead_queue("work"), ASKED.reply_to]


async def test_a_dead_letter_that_the_broker_will_not_take_is_answered_all_the_same() -> None:
    bench = Bench()
    bench.publisher.failures.append(TooLargeError("headers"))

    await bench.settle(FAILED, ASKED)

    assert bench.log == ["confirmed", ("reject", 7)]
    assert bench.sent.routing_key == ASKED.reply_to


@pytest.mark.parametrize("outcome", [Retrying(2.0), Snoozed(2.0)])
async def test_a_job_that_goes_on_is_not_answered_and_takes_the_question_along(outcome: Outcome) -> None:
    bench = Bench()

    await bench.settle(outcome, ASKED)

    assert come_back(bench.sent).reply_to == ASKED.reply_to


async def test_what_is_returned_is_not_answered() -> None:
    bench = Bench()

    await bench.settle(Returned(), ASKED)

    assert bench.log == [("nack", 7)]


async def test_a_caller_that_is_gone_keeps_no_job() -> None:
    bench = Bench()
    told = undelivered(bench)
    bench.publisher.failures.append(UnroutableError("nobody"))

    await bench.settle(Completed(), ASKED)

    assert bench.log == [("ack", 7)]
    assert [each.why for each in told] == ["its caller is gone"]
    assert bench.failed == []


@pytest.mark.parametrize("place", ["amqpjobs.queue.work", "amq.rabbitmq.reply-to.x", ""])
async def test_a_foreign_address_is_not_answered_to_and_keeps_no_job(place: str) -> None:
    bench = Bench()
    told = undelivered(bench)

    await bench.settle(Completed(), ASKED.evolve(reply_to=place))

    assert bench.log == [("ack", 7)]
    assert repr(place) in told[0].why


async def test_an_answer_waits_for_a_broker_that_is_away_and_the_dead_letter_is_not_doubled() -> None:
    bench = Bench()
    bench.publisher.failures.append(lambda: asyncio.sleep(0))  # the dead letter goes through
    bench.publisher.failures.append(BrokerUnavailableError("away"))

    settling = asyncio.create_task(bench.settle(FAILED, ASKED))
    await bench.clock.advance(1)

    assert settling.result()
    assert bench.log == ["confirmed", "confirmed", ("ack", 7)]


async def test_an_answer_that_is_always_refused_keeps_no_job_for_ever() -> None:
    bench = Bench()
    told = undelivered(bench)
    bench.publisher.failures.extend(RefusedError("no permission") for _ in range(HOPELESS))

    settling = asyncio.create_task(bench.settle(Completed(), ASKED))
    await bench.clock.advance(60)

    assert settling.result()
    assert bench.log == [("ack", 7)]
    assert "no permission" in told[0].why


async def test_an_answer_too_large_for_the_broker_is_said_in_few_words() -> None:
    bench = Bench()
    bench.publisher.failures.append(TooLargeError("16 MiB"))

    settling = asyncio.create_task(bench.settle(Completed(), ASKED))
    await bench.clock.advance(1)

    assert settling.result()
    assert b"the broker takes less" in bench.sent.body


async def test_an_answer_on_a_channel_that_closes_is_no_settling() -> None:
    bench = Bench()

    async def close() -> None:
        bench.channel.is_open = False
        raise UnconfirmedError("lost")

    bench.publisher.failures.append(close)
    settling = asyncio.create_task(bench.settle(Completed(), ASKED))
    await bench.clock.advance(1)

    assert settling.result() is False
    assert bench.log == []
