"""Bounds for what an instrument tells apart.

A back end keeps a series for each set of attributes that was ever told, and so does the SDK in this process.
How many kinds, queues and classes of errors there are is somebody else's code; it may make them as it runs.
"""

from collections.abc import Hashable
from typing import Protocol

from amqpjobs.telemetry import names
from amqpjobs.telemetry.spans import Attributes

#: What stands for all that is not told apart.
OTHER = "_OTHER"
#: Sets of attributes that one instrument of an app tells apart; and classes of errors.
MOST_SERIES, MOST_ERRORS = 1_000, 100

#: Of these attributes nobody here knows how many values there are.
_OPEN = (names.JOB_KIND, names.DESTINATION, names.ERROR_TYPE, names.SCHEDULE)


class Few:
    """The first so many of different values."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known = set[Hashable]()

    def has(self, value: Hashable) -> bool:
        """Whether it is one of them."""
        if value in self._known:
            return True
        if len(self._known) >= self._most:
            return False
        self._known.add(value)
        return True


class Counter(Protocol):
    """A counter, or an up-down counter."""

    def add(self, amount: int, attributes: Attributes, /) -> None: ...


class Histogram(Protocol):
    def record(self, amount: float, attributes: Attributes, /) -> None: ...


class _Bounded:
    """The same sets are told apart for ever, so that what goes up comes down again."""

    def __init__(self) -> None:
        self._sets = Few(MOST_SERIES)

    def _told(self, told: Attributes) -> Attributes:
        if self._sets.has(frozenset(told.items())):
            return told
        return {name: OTHER if name in _OPEN else value for name, value in told.items()}


class BoundedCounter(_Bounded):
    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self._counter = counter

    def add(self, amount: int, told: Attributes) -> None:
        self._counter.add(amount, self._told(told))


class BoundedHistogram(_Bounded):
    def __init__(self, histogram: Histogram) -> None:
        super().__init__()
        self._histogram = histogram

    def record(self, amount: float, told: Attributes) -> None:
        self._histogram.record(amount, self._told(told))
