"""When slots are stuck, and which queues nobody consumes. Sessions and consumers are fakes."""

from dataclasses import dataclass, field
from typing import cast

import pytest

from amqpjobs.amqp.consumer import Consumer
from amqpjobs.worker.readiness import MARGIN, Holders, unconsumed
from amqpjobs.worker.run import Run
from tests.unit.making import delivery, envelope


def run(kind: str, timeout: float = 10) -> Run:
    made = Run(delivery())
    made.envelope = envelope(kind, timeout=timeout)
    return made


def holders() -> Holders:
    return Holders(lambda run: 0.0 if run.envelope is None else run.envelope.timeout or 0.0)


def test_runs_within_their_timeouts_are_not_stuck() -> None:
    looks, runs = holders(), [run("a"), run("b")]
    looks.look(runs, 100)

    looks.look(runs, 110 + MARGIN)

    assert looks.stuck(110 + MARGIN) == ""


def test_all_that_have_outlived_their_timeouts_are_stuck() -> None:
    looks, runs = holders(), [run("b", 10), run("a", 20)]
    looks.look(runs, 100)

    looks.look(runs, 130)

    assert looks.stuck(130) == "they have outlived their timeouts, one by 20 s (a, b)"


def test_one_with_time_left_is_enough() -> None:
    looks, runs = holders(), [run("a", 1), run("b", 1_000)]
    looks.look(runs, 100)

    looks.look(runs, 900)

    assert looks.stuck(900) == ""


def test_a_run_that_has_just_begun_is_enough() -> None:
    looks, old = holders(), [run("a"), run("b")]
    looks.look(old, 100)
    looks.look([*old[:1], run("c")], 500)

    assert looks.stuck(501) == ""


def test_without_runs_nothing_is_stuck() -> None:
    looks = holders()
    looks.look([run("a")], 100)
    looks.look([], 500)

    assert looks.stuck(1_000) == ""


def test_a_message_that_is_no_job_has_no_timeout() -> None:
    looks, unread = holders(), Run(delivery())
    looks.look([unread], 100)

    assert looks.stuck(100 + MARGIN) == ""
    assert looks.stuck(101 + MARGIN)


def test_only_some_kinds_are_named() -> None:
    looks = holders()
    looks.look([run(kind) for kind in "fedcba"], 0)

    assert looks.stuck(1_000).endswith("(a, b, c and others)")


@dataclass
class FakeSession:
    is_open: bool = True


@dataclass
class FakeConsumer:
    queue: str = "tests.queue.email"
    is_wanted: bool = True
    is_known: bool = True
    session: FakeSession = field(default_factory=FakeSession)


QUEUES = {"tests.queue.email": "email", "tests.queue.bulk": "bulk"}


@pytest.mark.parametrize(
    "consumer",
    [FakeConsumer(is_wanted=False), FakeConsumer(is_known=False), FakeConsumer(session=FakeSession(False))],
    ids=["cancelled here", "unknown to the library", "of a lost session"],
)
def test_a_queue_without_a_consumer_is_named(consumer: FakeConsumer) -> None:
    consumers = cast("list[Consumer]", [consumer, FakeConsumer("tests.queue.bulk")])

    assert unconsumed(QUEUES, consumers) == ["queue email: no consumer"]


def test_queues_that_are_consumed_are_no_trouble() -> None:
    assert unconsumed(QUEUES, cast("list[Consumer]", [FakeConsumer(queue) for queue in QUEUES])) == []
