"""Letters by reason and exception: what went wrong how often, and since when."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from amqpjobs.deadletters.letter import DeadLetter


@dataclass(slots=True)
class Group:
    """Letters of one reason and exception."""

    reason: str | None
    exception: str | None
    count: int = 0
    kinds: set[str] = field(default_factory=set[str])
    oldest: datetime | None = None
    newest: datetime | None = None

    def add(self, letter: DeadLetter) -> None:
        self.count += 1
        if letter.kind is not None and len(self.kinds) < 100:
            self.kinds.add(letter.kind)
        if (since := letter.since) is not None:
            self.oldest = min(self.oldest or since, since)
            self.newest = max(self.newest or since, since)


class Groups:
    """Letters by reason and exception, without keeping them."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str | None, str | None], Group] = {}

    def add(self, letter: DeadLetter) -> None:
        key = (letter.reason, letter.exception)
        self._groups.setdefault(key, Group(*key)).add(letter)

    def __iter__(self) -> Iterator[Group]:
        """The largest first."""
        return iter(sorted(self._groups.values(), key=lambda group: -group.count))
