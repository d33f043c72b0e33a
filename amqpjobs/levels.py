"""How much there is of something just now, told to who asks: an observer, each time somebody reads its metrics.

Nobody keeps count for that. Whoever has something to tell names a function that looks; so a job costs no more.
"""

import os
from collections.abc import Callable, Mapping
from enum import StrEnum


class Level(StrEnum):
    """What can be asked for. Those of one app in one process are added up."""

    #: Slots of workers: so many jobs, or batches of them, may run at once.
    CAPACITY = "capacity"
    #: Slots that are taken.
    BUSY = "busy"
    #: Messages that were published, and that the broker has not answered yet.
    UNCONFIRMED = "unconfirmed"
    #: Beats that lead, as far as they have heard.
    LEADING = "leading"


Look = Callable[[], float]


class Levels:
    """Who can tell which levels. Any thread may use it."""

    def __init__(self) -> None:
        # A dict's own methods are atomic; an iteration over it in Python would not be.
        self._tellers: dict[object, tuple[int, Mapping[Level, Look]]] = {}

    def tell(self, looks: Mapping[Level, Look]) -> Callable[[], None]:
        """From now on these can be asked; call what this returns to end that, any number of times."""
        key = object()
        self._tellers[key] = os.getpid(), looks

        def fall_silent() -> None:
            self._tellers.pop(key, None)

        return fall_silent

    def sum(self, level: Level) -> float | None:
        """How much of it there is; None when nobody can tell. A fork does not tell for its parent."""
        found = [looks[level]() for pid, looks in list(self._tellers.values()) if level in looks and pid == os.getpid()]
        return sum(found) if found else None
