"""What waits in a queue, in the order in which it goes out.

Each type of queue has its own: a classic one by priority, then by age, and what is handed back takes its old
place; a quorum queue gives what was handed back first, and knows priorities in its versions' ways.
"""

from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

from amqpjobs.devbroker.message import Message
from amqpjobs.devbroker.profile import Priorities

#: Never.
FOREVER = float("inf")


class Entry:
    """A message in one queue, with what that queue knows of it."""

    __slots__ = ("acquired", "expires_at", "failures", "message", "number")

    def __init__(self, number: int, message: Message, expires_at: float = FOREVER) -> None:
        #: Its place in the queue's order of arrival.
        self.number = number
        self.message = message
        self.expires_at = expires_at
        #: How often it was lent out and came back.
        self.acquired = 0
        #: How often that was a failure, here and where it was before.
        self.failures = message.failures

    @property
    def size(self) -> int:
        return self.message.size


class Backlog(Protocol):
    """Entries in order."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Entry]: ...

    def add(self, entry: Entry) -> None:
        """One that just arrived."""
        ...

    def restore(self, entry: Entry) -> None:
        """One that was lent out and comes back."""
        ...

    def first(self) -> Entry:
        """The one that goes next. Raises `IndexError` if there is none."""
        ...

    def take(self) -> Entry:
        """The same, removed."""
        ...

    def heads(self) -> Iterable[Entry]:
        """Those that may expire: what stands before them does not, and hides them."""
        ...

    def take_expired(self, now: float) -> Entry:
        """A head whose time is over, removed."""
        ...


class PriorityBacklog:
    """A classic queue's: rows by priority, the highest first."""

    def __init__(self, highest: int | None) -> None:
        self._highest = highest or 0
        self._rows: dict[int, deque[Entry]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Entry]:
        for priority in sorted(self._rows, reverse=True):
            yield from self._rows[priority]

    def add(self, entry: Entry) -> None:
        self._row(entry).append(entry)
        self._size += 1

    def restore(self, entry: Entry) -> None:
        row = self._row(entry)
        if not row or entry.number < row[0].number:
            row.appendleft(entry)
        else:
            insort(row, entry, key=_number)
        self._size += 1

    def first(self) -> Entry:
        return self._rows[max(self._rows)][0] if self._rows else _nothing()

    def take(self) -> Entry:
        if not self._rows:
            _nothing()
        self._size -= 1
        return _popped(self._rows, max(self._rows))

    def heads(self) -> Iterable[Entry]:
        return [self.first()] if self._size else []

    def take_expired(self, now: float) -> Entry:
        return self.take()

    def _row(self, entry: Entry) -> deque[Entry]:
        priority = min(entry.message.priority or 0, self._highest)
        return self._rows.setdefault(priority, deque())


#: Of two classes of priority, every third message is of the lower one.
_WEIGHT = 2
_STRICTEST = 31
_MIDDLE = 4


class ReturnsBacklog:
    """A quorum queue's: first what was handed back, then the others, perhaps by priority."""

    def __init__(self, priorities: Priorities) -> None:
        self._priorities = priorities
        self._returned: deque[Entry] = deque()
        self._rows: dict[int, deque[Entry]] = {}
        self._size = 0
        self._turns = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Entry]:
        yield from self._returned
        for priority in sorted(self._rows, reverse=True):
            yield from self._rows[priority]

    def add(self, entry: Entry) -> None:
        self._rows.setdefault(self._class(entry), deque()).append(entry)
        self._size += 1

    def restore(self, entry: Entry) -> None:
        self._returned.append(entry)
        self._size += 1

    def first(self) -> Entry:
        if self._returned:
            return self._returned[0]
        return self._rows[self._next()][0] if self._rows else _nothing()

    def take(self) -> Entry:
        if self._returned:
            self._size -= 1
            return self._returned.popleft()
        if not self._rows:
            _nothing()
        priority = self._next()
        self._turns = 0 if self._turns == _WEIGHT else self._turns + 1
        self._size -= 1
        return _popped(self._rows, priority)

    def heads(self) -> Iterable[Entry]:
        if self._priorities is Priorities.STRICT:
            return [row[0] for row in self._lines()]
        return [self.first()] if self._size else []

    def take_expired(self, now: float) -> Entry:
        if self._priorities is not Priorities.STRICT:
            return self.take()
        row = next(row for row in self._lines() if row[0].expires_at <= now)
        self._size -= 1
        entry = row.popleft()
        self._rows = {priority: row for priority, row in self._rows.items() if row}
        return entry

    def _lines(self) -> list[deque[Entry]]:
        """In which messages wait for those before them only."""
        return [row for row in (self._returned, *self._rows.values()) if row]

    def _class(self, entry: Entry) -> int:
        priority = entry.message.priority
        match self._priorities:
            case Priorities.NONE:
                return 0
            case Priorities.TWO:
                return int((priority or 0) > _MIDDLE)
            case Priorities.STRICT:
                return _MIDDLE if priority is None else min(priority, _STRICTEST)

    def _next(self) -> int:
        if len(self._rows) == 1 or self._priorities is not Priorities.TWO:
            return max(self._rows)
        if self._turns != _WEIGHT:
            return 1
        return 1 if self._rows[1][0].number < self._rows[0][0].number else 0


def _popped(rows: dict[int, deque[Entry]], priority: int) -> Entry:
    row = rows[priority]
    entry = row.popleft()
    if not row:
        del rows[priority]
    return entry


def _number(entry: Entry) -> int:
    return entry.number


def _nothing() -> Entry:
    raise IndexError("The queue is empty.")
