from hypothesis import given
from hypothesis import strategies as st

from amqpjobs.worker.supervisor import LONGEST_PAUSE, YOUNG, pause_after

SPANS = st.floats(min_value=0, max_value=1e6)


def test_a_process_that_ends_young_again_and_again_is_replaced_ever_later() -> None:
    pauses = [0.0]
    for _ in range(9):
        pauses.append(pause_after(0.1, pauses[-1]))

    assert pauses[1:] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_process_that_has_lived_a_while_is_replaced_at_once() -> None:
    assert pause_after(YOUNG, 30) == 0


@given(consumed=SPANS, before=SPANS)
def test_no_pause_is_longer_than_the_longest(consumed: float, before: float) -> None:
    assert 0 <= pause_after(consumed, before) <= LONGEST_PAUSE
