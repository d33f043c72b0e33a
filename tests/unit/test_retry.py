import math
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amqpjobs.errors import DefinitionError
from amqpjobs.retry import (
    RetryPolicy,
    decide,
    delays,
    exponential,
    fibonacci,
    fixed,
    linear,
    preview,
)

EVERY_POLICY = {
    "fixed": fixed(3),
    "linear": linear(3),
    "exponential": exponential(2),
    "fibonacci": fibonacci(3),
    "delays": delays(1, 5, 30),
}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (fixed(3), [3, 3, 3, 3]),
        (linear(3), [3, 6, 9, 12]),
        (exponential(2), [2, 4, 8, 16]),
        (exponential(1, factor=3), [1, 3, 9, 27]),
        (fibonacci(10), [10, 10, 20, 30, 50, 80]),
        (delays(1, 5, 30), [1, 5, 30, 30, 30]),
        (fixed(timedelta(minutes=1)), [60, 60]),
        (linear(100, cap=250), [100, 200, 250, 250]),
        (exponential(2, cap=timedelta(seconds=5)), [2, 4, 5, 5]),
        (exponential(2).with_immediate(2), [0, 0, 2, 4]),
        (fixed(0), [0, 0]),
    ],
)
def test_a_policy_waits_so_long(policy: RetryPolicy, expected: list[float]) -> None:
    waits = preview(policy, len(expected))

    assert waits == expected


@pytest.mark.parametrize("name", EVERY_POLICY)
def test_a_policy_survives_its_five_thousandth_attempt(name: str) -> None:
    policy = EVERY_POLICY[name]

    delay = policy.delay_after(5000, Exception())

    assert delay is not None
    assert 0 <= delay <= policy.cap


@given(
    attempt=st.integers(1, 6000),
    jitter=st.floats(0, 1),
    chance=st.floats(0, 1, exclude_max=True),
    name=st.sampled_from(sorted(EVERY_POLICY)),
)
def test_chance_takes_at_most_its_share(attempt: int, jitter: float, chance: float, name: str) -> None:
    policy = EVERY_POLICY[name]
    without = policy.delay_after(attempt, Exception(), lambda: 0.0) or 0.0
    jittered = RetryPolicy(backoff=lambda failure: without, jitter=jitter)

    delay = jittered.delay_after(attempt, Exception(), lambda: chance)

    assert delay is not None
    assert without * (1 - jitter) * (1 - 1e-12) <= delay <= without


def test_full_jitter_may_take_all() -> None:
    policy = fixed(8, jitter=1.0)

    waits = [policy.delay_after(1, Exception(), partial(float, given)) for given in (0.0, 0.5, 1.0)]

    assert waits == [8.0, 4.0, 0.0]


def test_an_error_with_a_rule_of_its_own_follows_it() -> None:
    policy = fixed(1).on(LookupError, fixed(60)).on(ValueError, None)

    waits = [policy.delay_after(1, error) for error in (KeyError("subclass"), ValueError(), OSError())]

    assert waits == [60.0, None, 1.0]


def test_the_first_rule_that_fits_wins() -> None:
    policy = fixed(1).on(KeyError, fixed(2)).on(LookupError, fixed(3))

    waits = [policy.delay_after(1, error) for error in (KeyError(), IndexError())]

    assert waits == [2.0, 3.0]


def test_a_callable_decides_by_attempt_and_error() -> None:
    seen = list[object]()

    def wish(attempt: int, error: BaseException) -> timedelta | float | None:
        seen.append((attempt, error))
        wishes: dict[int, timedelta | float] = {1: timedelta(minutes=2), 2: -5.0}
        return wishes.get(attempt)

    error, policy = OSError(), decide(wish)
    waits = [policy.delay_after(attempt, error) for attempt in (1, 2, 3)]

    assert waits == [120.0, 0.0, None]
    assert seen == [(1, error), (2, error), (3, error)]


def test_rules_go_before_the_callable() -> None:
    policy = decide(lambda attempt, error: 5).on(ValueError, None)

    waits = [policy.delay_after(1, error) for error in (ValueError(), OSError())]

    assert waits == [None, 5.0]


def test_a_policy_without_a_cap_still_answers_when_numbers_end() -> None:
    policy = exponential(2, cap=math.inf, jitter=0)

    delay = policy.delay_after(5000, Exception())

    assert delay == math.inf


@pytest.mark.parametrize(
    "make",
    [
        lambda: fixed(-1),
        lambda: fixed(1, jitter=1.1),
        lambda: fixed(1, jitter=-0.1),
        lambda: linear(1, cap=-1),
        lambda: exponential(2, factor=0.5),
        lambda: exponential(timedelta(seconds=-2)),
        lambda: delays(),
        lambda: delays(1, -2),
        lambda: fixed(1).with_immediate(-1),
    ],
)
def test_a_policy_that_cannot_be_is_refused_at_once(make: Callable[[], RetryPolicy]) -> None:
    with pytest.raises(DefinitionError):
        make()
