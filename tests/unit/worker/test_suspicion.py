"""Who is suspected, by what the broker says it has counted."""

import pytest

from amqpjobs.outcome import Dead, DeadReason, Retrying
from amqpjobs.wire import Delivery
from amqpjobs.worker.suspicion import (
    MOST_CRASHES,
    MOST_RETURNS,
    REMEMBERED,
    Suspicion,
    convicted,
    given_up,
    pause_before,
    returns_of,
    slowed,
)
from tests.unit.making import delivery, envelope


def returned(count: int, message_id: str | None = "message-1") -> Delivery:
    return delivery(headers={"x-delivery-count": count}, redelivered=True, message_id=message_id)


@pytest.mark.parametrize(
    ("redelivered", "headers", "returns"),
    [
        (False, {"x-delivery-count": 7}, 0),  # somebody else's header: the broker has not had it back
        (True, {"x-delivery-count": 7}, 7),
        (True, {"x-delivery-count": -7}, 0),
        (True, {"x-acquired-count": 3}, 0),  # RabbitMQ 4.3, handed back
        (True, {"x-acquired-count": 3, "x-delivery-count": 1}, 1),
        (True, {}, 1),  # a classic queue
        (True, {"x-delivery-count": "many"}, 1),
    ],
)
def test_what_the_broker_got_back_is_what_it_says(redelivered: bool, headers: dict[str, object], returns: int) -> None:
    assert returns_of(delivery(headers=headers, redelivered=redelivered)) == returns


def test_what_came_back_is_suspected() -> None:
    assert Suspicion().against(returned(2)) == 2


def test_what_was_held_when_our_own_connection_went_is_not_suspected_for_that() -> None:
    suspicion = Suspicion()
    suspicion.pardon([delivery(message_id="message-1")])

    assert suspicion.against(returned(1)) == 0
    assert suspicion.against(returned(2)) == 1  # and then another worker died with it
    assert suspicion.against(returned(1, "message-2")) == 1


def test_each_lost_connection_is_pardoned() -> None:
    suspicion = Suspicion()
    for _ in range(3):
        suspicion.pardon([delivery(message_id="message-1")])

    assert suspicion.against(returned(4)) == 1


def test_a_message_without_an_id_cannot_be_pardoned() -> None:
    suspicion = Suspicion()
    suspicion.pardon([delivery()])

    assert suspicion.against(returned(1, None)) == 1


def test_the_oldest_pardons_are_forgotten() -> None:
    suspicion = Suspicion()
    suspicion.pardon([delivery(message_id=f"message-{n}") for n in range(REMEMBERED + 1)])

    assert suspicion.against(returned(1, "message-0")) == 1
    assert suspicion.against(returned(1, "message-1")) == 0


def test_pauses_grow_with_the_returns_up_to_a_minute() -> None:
    assert [pause_before(returns) for returns in (0, 4, 5, 6, 7, 10, 11, 99)] == [0, 0, 1, 2, 4, 32, 60, 60]


def test_what_shall_not_run_again_need_not_wait_for_that() -> None:
    assert pause_before(MOST_RETURNS) == 0


def test_what_came_back_too_often_is_dead_without_a_run() -> None:
    end = given_up(MOST_RETURNS)

    assert given_up(MOST_RETURNS - 1) is None
    assert isinstance(end, Dead)
    assert end.reason is DeadReason.ATTEMPTS_EXHAUSTED
    assert "came back 100 times" in str(end.error)


def test_rolling_restarts_are_far_from_the_end() -> None:
    assert MOST_RETURNS >= 2 * (25 + 25)


def test_a_crash_is_counted_for_each_run_that_ended_with_its_process() -> None:
    alone = convicted(envelope(attempt=2, crashes=1), 1)
    after_the_group = convicted(envelope(attempt=1), 2)

    assert (alone.attempt, alone.crashes) == (2, 2)
    assert (after_the_group.attempt, after_the_group.crashes) == (2, 2)
    assert convicted(envelope(crashes=MOST_CRASHES), 2).crashes == MOST_CRASHES


def test_a_retry_after_a_crash_comes_no_sooner_than_the_crashes_allow() -> None:
    dead = Dead(DeadReason.ATTEMPTS_EXHAUSTED)

    delays = [slowed(Retrying(3), crashes) for crashes in (1, 2, 3, 4, 10**9)]

    assert delays == [Retrying(3), Retrying(3), Retrying(4), Retrying(8), Retrying(60)]
    assert slowed(dead, 3) is dead
