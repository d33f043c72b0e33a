from datetime import timedelta

import pytest

from amqpjobs.outcome import Cancel, Completed, Dead, DeadReason, Retry, Retrying, Snooze


@pytest.mark.parametrize(("given", "delay"), [(None, None), (5, 5.0), (timedelta(minutes=1), 60.0), (-3, 0.0)])
def test_a_wish_to_retry_may_say_when(given: float | timedelta | None, delay: float | None) -> None:
    wish = Retry("later", delay=given)

    assert wish.delay == delay
    assert str(wish) == "later"


@pytest.mark.parametrize(("given", "delay"), [(5, 5.0), (timedelta(minutes=1), 60.0), (-3, 0.0)])
def test_a_wish_to_snooze_says_when(given: float | timedelta, delay: float) -> None:
    wish = Snooze(given)

    assert wish.delay == delay


def test_wishes_say_something_also_without_a_reason() -> None:
    texts = [str(wish) for wish in (Retry(), Snooze(60), Cancel())]

    assert texts == ["the job asked to be tried again", "snoozed for 60 s", "the job cancelled itself"]


def test_the_reasons_of_dead_letters_are_a_closed_list() -> None:
    assert {reason.value for reason in DeadReason} == {
        "attempts_exhausted",
        "not_retryable",
        "invalid_arguments",
        "unreadable",
        "too_large",
        "unknown_kind",
        "unknown_version",
        "unsettled",
    }


def test_outcomes_are_values() -> None:
    assert Retrying(2.0) == Retrying(2.0)
    assert Completed() != Completed(5)


def test_outcomes_are_compared_without_their_errors() -> None:
    assert Retrying(2.0, ValueError("one")) == Retrying(2.0, ValueError("another"))
    assert Dead(DeadReason.NOT_RETRYABLE, ValueError()) == Dead(DeadReason.NOT_RETRYABLE)
