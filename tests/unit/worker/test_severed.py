"""What lost its channel finds its run again, and nothing else does."""

from dataclasses import replace
from typing import Any

import pytest

from amqpjobs.wire import Delivery
from amqpjobs.worker.run import Run
from amqpjobs.worker.severed import Severed
from tests.unit.making import FakeSettler, delivery


def severed(message_id: str | None = "m-1", **properties: Any) -> Run:
    """A run whose channel is closed."""
    return Run(delivery(message_id=message_id, settler=FakeSettler(is_open=False), **properties))


def redelivered(message_id: str | None = "m-1", **properties: Any) -> Delivery:
    return replace(delivery(message_id=message_id, **properties), redelivered=True)


def kept(*runs: Run, limit: int = 10) -> Severed:
    made = Severed(limit)
    for run in runs:
        made.add(run)
    return made


def test_a_redelivery_finds_the_run_that_lost_its_channel_once() -> None:
    run = severed(headers={"a": 1})
    runs, again = kept(run), redelivered(headers={"a": 1, "x-delivery-count": 1})

    assert (runs.take(again), runs.take(again)) == (run, None)
    assert len(runs) == 0


@pytest.mark.parametrize(
    "other",
    [
        delivery(message_id="m-1"),
        redelivered("m-2"),
        redelivered(None),
        redelivered(queue="other"),
        redelivered(body=b'{"n": 1}'),
        redelivered(headers={"amqpjobs-attempt": 2}),
        redelivered(kind="other"),
        replace(redelivered(), routing_key="other"),
    ],
    ids=["first delivery", "message id", "no message id", "queue", "body", "headers", "kind", "routing key"],
)
def test_what_differs_in_anything_is_another_message(other: Delivery) -> None:
    runs = kept(severed())

    assert runs.take(other) is None
    assert len(runs) == 1


def test_a_run_whose_channel_is_open_shares_its_delivery_with_nobody() -> None:
    runs = kept(Run(delivery(message_id="m-1")))

    assert runs.take(redelivered()) is None


def test_a_message_without_an_id_is_run_again() -> None:
    assert len(kept(severed(None))) == 0


def test_of_more_severed_runs_than_there_may_be_the_oldest_goes() -> None:
    runs = kept(*(severed(f"m-{n}") for n in range(5)), limit=3)

    assert [runs.take(redelivered(f"m-{n}")) is not None for n in range(5)] == [False, False, True, True, True]


def test_of_two_runs_of_one_message_id_one_is_kept() -> None:
    first = severed()
    runs = kept(first, severed())

    assert (runs.take(redelivered()), runs.take(redelivered())) == (first, None)
