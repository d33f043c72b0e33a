"""What beats remember: for each schedule its last tick, whose run may go on, and a fingerprint of its definition.

It lives in a register, so that the next leader goes on where the last one ended. A definition
that is the same goes on, however often it is deployed; one that is new or has changed is anchored
at the present, and nothing of its past is due. What is settled stays so: the last tick of a
schedule only goes forward. The exception is a last tick far in the future, which only a clock
that was wrong can have written, and which would keep a schedule silent until then.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Protocol, cast

from amqpjobs.beat.plan import Scheduled
from amqpjobs.beat.schedule import RESOLUTION
from amqpjobs.codec import dumps, loads

#: So long is remembered what no beat schedules any more: another one, of an older deployment, may.
KEPT = timedelta(days=7)
#: A last tick further ahead than this was written by a wrong clock.
AHEAD = timedelta(hours=1)
#: Changes of so many bytes are cheaper to read than to write a small value anew.
LEAST_CHANGES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Run:
    """The job of a tick, from before it is published until it has ended."""

    instant: datetime
    #: When it was published.
    since: datetime


@dataclass(frozen=True, slots=True)
class Mark:
    """How far one schedule has come."""

    fingerprint: str
    #: Since when it has this definition.
    anchor: datetime
    #: All its ticks up to here are settled: published, or left out by its policy.
    last: datetime
    #: The last tick's, where the overlap policy asks for it, until it is over.
    run: Run | None = None

    @property
    def open(self) -> Run | None:
        """The run that goes on, as far as one knows. What is not settled is yet to be published, perhaps again."""
        return self.run if self.run is not None and self.run.instant <= self.last else None


class Kept(Protocol):
    """What a register holds."""

    @property
    def value(self) -> bytes | None: ...
    @property
    def changes(self) -> Sequence[bytes]: ...


class Keeper(Protocol):
    """What a state is kept in."""

    async def write(self, value: bytes) -> None: ...
    async def amend(self, change: bytes) -> None: ...


class State:
    """The marks of all schedules, and which of them are not yet kept."""

    def __init__(self, marks: Mapping[str, Mark] | None = None) -> None:
        self._marks = dict(marks or {})
        self._changed = dict[str, None]()
        #: Bytes of the value, and of the changes since; a value is to be written first.
        self._value = 0
        self._changes = 0
        self._is_whole_wanted = True

    def __getitem__(self, name: str) -> Mark:
        return self._marks[name]

    @property
    def is_kept(self) -> bool:
        """Whether the register knows all."""
        return not self._changed and not self._is_whole_wanted

    def take_up(self, scheduled: Iterable[Scheduled], now: datetime) -> list[str]:
        """Go on with these schedules; the names of those that are new or have changed."""
        old, self._marks = self._marks, dict[str, Mark]()
        begun = list[str]()
        for each in scheduled:
            before, fingerprint = old.pop(each.name, None), fingerprint_of(each)
            if before is None or before.fingerprint != fingerprint:
                begun.append(each.name)
                last = max(now - RESOLUTION, before.last if before else now - RESOLUTION)
                before = Mark(fingerprint, now, last, before.run if before else None)
            self._marks[each.name] = replace(before, run=None) if each.overlap == "allow" else before
        self._marks |= {name: mark for name, mark in old.items() if now - mark.last < KEPT}
        self._is_whole_wanted = True
        self.set_right(now)
        return begun

    def set_right(self, now: datetime) -> list[str]:
        """Let those go on from now that a wrong clock has settled until far ahead; their names."""
        wrong = [name for name, mark in self._marks.items() if mark.last - now > AHEAD]
        for name in wrong:
            mark = self._marks[name]
            self._marks[name] = replace(mark, last=now, anchor=min(mark.anchor, now))
            self._is_whole_wanted = True
        return wrong

    def settle(self, name: str, last: datetime) -> None:
        """All ticks of a schedule up to this instant are settled."""
        mark = self._marks[name]
        if last > mark.last:
            self._marks[name] = replace(mark, last=last)
            self._changed[name] = None

    def begin(self, name: str, run: Run) -> None:
        """The job of a tick is about to be published."""
        self._marks[name] = replace(self._marks[name], run=run)
        self._changed[name] = None

    def end(self, name: str, instant: datetime) -> bool:
        """The job of a tick has ended. False: it is not the one that was asked for."""
        mark = self._marks.get(name)
        if mark is None or mark.run is None or mark.run.instant != instant:
            return False
        self._marks[name] = replace(mark, run=None)
        self._changed[name] = None
        return True

    async def keep(self, keeper: Keeper) -> None:
        """Write what has changed. If that raises, all is written anew the next time."""
        is_whole = self._is_whole_wanted or self._changes > max(LEAST_CHANGES, self._value)
        names = list(self._changed)
        self._is_whole_wanted = False
        self._changed.clear()
        try:
            await (self._write(keeper) if is_whole else self._amend(keeper, names))
        except BaseException:
            # Nobody can tell whether a write that failed is there.
            self._is_whole_wanted = True
            raise

    async def _write(self, keeper: Keeper) -> None:
        value = _written(self._marks)
        await keeper.write(value)
        self._value, self._changes = len(value), 0

    async def _amend(self, keeper: Keeper, names: Sequence[str]) -> None:
        if names:
            change = _written({name: self._marks[name] for name in names})
            await keeper.amend(change)
            self._changes += len(change)


def state_from(record: Kept) -> State:
    """What a register holds, as a state. Raises ValueError when it was not written by us."""
    marks = dict[str, Mark]()
    for body in (record.value, *record.changes):
        if body is None:
            continue
        for name, mark in _read(body).items():
            before = marks.get(name)
            is_same = before is not None and before.fingerprint == mark.fingerprint
            marks[name] = replace(mark, last=max(before.last, mark.last)) if before and is_same else mark
    return State(marks)


def fingerprint_of(scheduled: Scheduled) -> str:
    """The same for the same definition, in every process."""
    return hashlib.sha256(scheduled.definition.encode()).hexdigest()[:16]


def _written(marks: Mapping[str, Mark]) -> bytes:
    return dumps({name: [each.fingerprint, each.anchor, each.last, *_run(each)] for name, each in marks.items()})


def _run(mark: Mark) -> Sequence[datetime]:
    return () if mark.run is None else (mark.run.instant, mark.run.since)


def _read(body: bytes) -> dict[str, Mark]:
    found = cast("dict[str, list[Any]]", loads(body))
    return {
        name: Mark(
            fingerprint,
            datetime.fromisoformat(anchor),
            datetime.fromisoformat(last),
            Run(*map(datetime.fromisoformat, run)) if run else None,
        )
        for name, (fingerprint, anchor, last, *run) in found.items()
    }
