"""What was said at runtime, and who leads: the part of a beat's memory that no code declares.

It lives in the register beside the marks (see `state.py`), whole or as what has changed, by
sections. Names of paused schedules stay when a deployment leaves them out, so that the next one
does not wake them. The answers to the last commands are kept, for whoever asked reads them there,
and a command that comes twice is told from a new one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from amqpjobs.beat.added import LONGEST_TOGETHER, MOST_ADDED
from amqpjobs.codec import dumps
from amqpjobs.errors import ScheduleError

#: Answers that are kept: more than the commands that one beat is lent at once.
MOST_ANSWERS = 64
#: Names that may be paused.
MOST_PAUSED = 10_000

_PAUSED, _ADDED, _ANSWERS, _LEADER = "paused", "added", "answers", "leader"
SECTIONS = frozenset({_PAUSED, _ADDED, _ANSWERS, _LEADER})


@dataclass(frozen=True, slots=True)
class Leader:
    """The beat that leads, or was the last to."""

    host: str
    pid: int
    since: datetime


class Runtime:
    """Who is paused, what was added, what was answered, and what of that is not yet kept."""

    def __init__(self) -> None:
        #: Since when.
        self.paused = dict[str, datetime]()
        #: As `Added.data` has them: one that this version cannot read is kept all the same.
        self.added = dict[str, Mapping[str, Any]]()
        #: By command, the oldest first: what was wrong, "" where it was done.
        self.answers = dict[str, str]()
        self.leader: Leader | None = None
        self._bytes = 0
        self._changed = dict[tuple[str, str], None]()

    @property
    def is_kept(self) -> bool:
        return not self._changed

    def pause(self, name: str, now: datetime) -> None:
        """Raises ScheduleError when too many are."""
        if name in self.paused:
            return
        if len(self.paused) >= MOST_PAUSED:
            raise ScheduleError(f"{MOST_PAUSED:,} schedules are paused, and no more can be. Resume or remove some.")
        self.paused[name] = now
        self._changed[_PAUSED, name] = None

    def resume(self, name: str) -> bool:
        """Whether it was paused."""
        self._changed[_PAUSED, name] = None
        return self.paused.pop(name, None) is not None

    def add(self, name: str, data: Mapping[str, Any]) -> None:
        """Instead of what had this name. Raises ScheduleError when there is no room."""
        old = self.added.get(name)
        total = self._bytes + _length(data) - _length(old)
        if (old is None and len(self.added) >= MOST_ADDED) or total > LONGEST_TOGETHER:
            raise ScheduleError(
                f"{len(self.added):,} schedules with {self._bytes:,} bytes are added. {MOST_ADDED:,} are the most, and "
                f"{LONGEST_TOGETHER:,} bytes together. Remove some, or let one schedule enqueue for many."
            )
        self.added[name], self._bytes = data, total
        self._changed[_ADDED, name] = None

    def remove(self, name: str) -> None:
        """It is paused no longer, either."""
        self._bytes -= _length(self.added.pop(name))
        self._changed[_ADDED, name] = None
        self.resume(name)

    def answer(self, command: str, problem: str) -> None:
        """What was wrong, "" where it was done."""
        self.answers[command] = problem
        self._changed[_ANSWERS, command] = None
        self._forget_answers()

    def lead(self, leader: Leader) -> None:
        self.leader = leader
        self._changed[_LEADER, ""] = None

    def whole(self) -> dict[str, Any]:
        """All of it, by sections."""
        self._changed.clear()
        return {
            _PAUSED: self.paused,
            _ADDED: self.added,
            _ANSWERS: self.answers,
            _LEADER: None if self.leader is None else _written(self.leader),
        }

    def changes(self) -> dict[str, Any]:
        """By sections what has changed since it was last asked; None is gone."""
        changed, self._changed = self._changed, dict[tuple[str, str], None]()
        whole, found = self.whole(), dict[str, Any]()
        for section, name in changed:
            if section == _LEADER:
                found[_LEADER] = whole[_LEADER]
            else:
                found.setdefault(section, {})[name] = whole[section].get(name)
        return found

    def merge(self, found: Mapping[str, Any]) -> None:
        """Take in what was written. Raises ValueError, TypeError, KeyError or AttributeError when no beat has."""
        for name, since in found.get(_PAUSED, {}).items():
            _put(self.paused, name, None if since is None else datetime.fromisoformat(since))
        for name, data in found.get(_ADDED, {}).items():
            self._bytes -= _length(self.added.get(name))
            _put(self.added, name, None if data is None else dict(data))
            self._bytes += _length(data)
        for command, problem in found.get(_ANSWERS, {}).items():
            _put(self.answers, command, None if problem is None else str(problem))
        self._forget_answers()
        if (leader := found.get(_LEADER)) is not None:
            host, pid, since = leader
            self.leader = Leader(str(host), int(pid), datetime.fromisoformat(since))

    def _forget_answers(self) -> None:
        for command in list(self.answers)[:-MOST_ANSWERS]:
            del self.answers[command]


def answer_in(sections: Mapping[str, Any], command: str) -> str | None:
    """What was wrong with a command, "" where it was done, None where nothing is said of it."""
    return cast("str | None", sections.get(_ANSWERS, {}).get(command))


def _put(into: dict[str, Any], name: str, value: object) -> None:
    if value is None:
        into.pop(name, None)
    else:
        into[name] = value


def _written(leader: Leader) -> list[Any]:
    return [leader.host, leader.pid, leader.since]


def _length(data: Mapping[str, Any] | None) -> int:
    return 0 if data is None else len(dumps(data))
