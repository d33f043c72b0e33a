from amqpjobs.telemetry.series import MOST_SERIES, BoundedCounter, Few
from amqpjobs.telemetry.spans import Attributes


class Counted:
    """A counter that keeps its sums."""

    def __init__(self) -> None:
        self.sums = dict[frozenset[tuple[str, object]], int]()

    def add(self, amount: int, attributes: Attributes, /) -> None:
        key = frozenset(attributes.items())
        self.sums[key] = self.sums.get(key, 0) + amount


def of(n: int) -> Attributes:
    return {"amqpjobs.job.kind": f"kind-{n}", "amqpjobs.job.outcome": "dead"}


def test_the_first_few_are_known_for_ever() -> None:
    few = Few(2)

    assert [few.has(each) for each in ("a", "b", "c", "a", "b")] == [True, True, False, True, True]


def test_what_is_too_much_is_not_told_apart_by_names_and_still_counted() -> None:
    counted = Counted()
    counter = BoundedCounter(counted)

    for n in range(MOST_SERIES + 500):
        counter.add(1, of(n))

    other = frozenset({"amqpjobs.job.kind": "_OTHER", "amqpjobs.job.outcome": "dead"}.items())
    assert len(counted.sums) == MOST_SERIES + 1
    assert counted.sums[other] == 500


def test_what_goes_up_comes_down_again_under_the_same_name() -> None:
    counted = Counted()
    counter = BoundedCounter(counted)

    for change in (1, -1):
        for n in range(MOST_SERIES + 500):
            counter.add(change, of(n))

    assert set(counted.sums.values()) == {0}
