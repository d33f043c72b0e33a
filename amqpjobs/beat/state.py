"""What beats remember: for each schedule its last tick, whose run may go on, and a fingerprint of its definition.

And what was said at runtime, which is `runtime.py`'s.

It lives in a register, so that the next leader goes on where the last one ended. A definition
that is the same goes on, however often it is deployed; one that is new or has changed is anchored
at the present, and nothing of its past is due. What is settled stays so: the last tick of a
schedule only goes forward. The exception is a last tick far in the future, which only a clock
that was wrong can have written, and which would keep a schedule silent until then.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Protocol, cast

from amqpjobs.beat.plan import Scheduled
from amqpjobs.beat.runtime import SECTIONS, Runtime
from amqpjobs.beat.schedule import RESOLUTION
from amqpjobs.codec import dumps, loads

_MARKS = "marks"

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
    #: The last tick that was published.
    ran: datetime | None = None
    #: The last tick's run, where the overlap policy asks for it, until it is over.
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
    """The marks of all schedules, what was said at runtime, and what of that is not yet kept."""

    def __init__(self, marks: Mapping[str, Mark] | None = None, runtime: Runtime | None = None) -> None:
        self._marks = dict(marks or {})
        self.runtime = runtime or Runtime()
        self._keeping = asyncio.Lock()
        self._changed = dict[str, None]()
        #: Bytes of the value, and of the changes since; a value is to be written first.
        self._value = 0
        self._changes = 0
        self._is_whole_wanted = True

    def __getitem__(self, name: str) -> Mark:
        return self._marks[name]

    def get(self, name: str) -> Mark | None:
        """Its mark, None where no beat has seen it."""
        return self._marks.get(name)

    @property
    def is_kept(self) -> bool:
        """Whether the register knows all."""
        return not self._changed and not self._is_whole_wanted and self.runtime.is_kept

    def take_up(self, scheduled: Iterable[Scheduled], now: datetime) -> list[str]:
        """Go on with these schedules; the names of those that are new or have changed."""
        every = list(scheduled)
        begun = [each.name for each in every if self.begin(each, now)]
        wanted = {each.name for each in every}
        self._marks = {name: mark for name, mark in self._marks.items() if name in wanted or now - mark.last < KEPT}
        self._is_whole_wanted = True
        self.set_right(now)
        return begun

    def begin(self, scheduled: Scheduled, now: datetime) -> bool:
        """Go on with one schedule; whether it is new or has changed."""
        name, fingerprint = scheduled.name, fingerprint_of(scheduled)
        before = self._marks.get(name)
        is_known = before is not None and before.fingerprint == fingerprint
        if before is None:
            mark = Mark(fingerprint, now, now - RESOLUTION)
        elif is_known:
            mark = before
        else:
            mark = replace(before, fingerprint=fingerprint, anchor=now, last=max(now - RESOLUTION, before.last))
        if scheduled.overlap == "allow" and mark.run is not None:
            mark = replace(mark, run=None)
        if mark is not before:
            self._marks[name] = mark
            self._changed[name] = None
        return not is_known

    def forget(self, name: str) -> None:
        """As if it had never been."""
        self._marks.pop(name, None)
        self._changed[name] = None

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
        mark = self._marks.get(name)
        if mark is not None and last > mark.last:  # None: it was removed while its tick was on the way
            self._marks[name] = replace(mark, last=last)
            self._changed[name] = None

    def open(self, name: str, run: Run) -> None:
        """The job of a tick is about to be published."""
        mark = self._marks.get(name)
        if mark is not None:
            self._marks[name] = replace(mark, run=run)
            self._changed[name] = None

    def end(self, name: str, instant: datetime) -> bool:
        """The job of a tick has ended. False: it is not the one that was asked for."""
        mark = self._marks.get(name)
        if mark is None or mark.run is None or mark.run.instant != instant:
            return False
        self._marks[name] = replace(mark, run=None)
        self._changed[name] = None
        return True

    def note_run(self, name: str, instant: datetime) -> None:
        """The tick of this instant was published."""
        mark = self._marks.get(name)
        if mark is not None:
            self._marks[name] = replace(mark, ran=instant)
            self._changed[name] = None

    async def keep(self, keeper: Keeper) -> None:
        """Write what has changed. If that raises, all is written anew the next time.

        One call at a time: when it returns, all is kept that was so when it was called.
        """
        async with self._keeping:
            await self._keep(keeper)

    async def _keep(self, keeper: Keeper) -> None:
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
        value = dumps({_MARKS: _written(self._marks), **self.runtime.whole()})
        await keeper.write(value)
        self._value, self._changes = len(value), 0

    async def _amend(self, keeper: Keeper, names: Sequence[str]) -> None:
        sections = self.runtime.changes()
        if names:
            sections[_MARKS] = _written({name: self._marks.get(name) for name in names})
        if sections:
            change = dumps(sections)
            await keeper.amend(change)
            self._changes += len(change)


def state_from(record: Kept) -> State:
    """What a register holds, as a state. Raises ValueError when it was not written by us."""
    marks, runtime = dict[str, Mark](), Runtime()
    for body in (record.value, *record.changes):
        if body is None:
            continue
        sections = cast("dict[str, Any]", loads(body))
        if not sections.keys() <= {_MARKS, *SECTIONS}:
            raise ValueError(f"unknown sections {sorted(sections)[:5]}")
        runtime.merge(sections)
        for name, mark in _read(sections.get(_MARKS, {})).items():
            if mark is None:
                marks.pop(name, None)
                continue
            before = marks.get(name)
            is_same = before is not None and before.fingerprint == mark.fingerprint
            marks[name] = replace(mark, last=max(before.last, mark.last)) if before and is_same else mark
    return State(marks, runtime)


def fingerprint_of(scheduled: Scheduled) -> str:
    """The same for the same definition, in every process."""
    return hashlib.sha256(scheduled.definition.encode()).hexdigest()[:16]


def _written(marks: Mapping[str, Mark | None]) -> dict[str, list[Any] | None]:
    return {
        name: None if each is None else [each.fingerprint, each.anchor, each.last, each.ran, *_run(each)]
        for name, each in marks.items()
    }


def _read(found: Mapping[str, list[Any] | None]) -> dict[str, Mark | None]:
    return {name: None if values is None else _mark(*values) for name, values in found.items()}


def _mark(fingerprint: str, anchor: str, last: str, ran: str | None, *run: str) -> Mark:
    return Mark(
        fingerprint,
        datetime.fromisoformat(anchor),
        datetime.fromisoformat(last),
        None if ran is None else datetime.fromisoformat(ran),
        Run(*map(datetime.fromisoformat, run)) if run else None,
    )


def _run(mark: Mark) -> Sequence[datetime]:
    return () if mark.run is None else (mark.run.instant, mark.run.since)
