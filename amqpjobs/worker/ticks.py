"""What a worker tells beats of the ticks it runs, and the second copy of one that it drops.

A beat that dies between a confirm and its note of it leaves a tick to the next one, which publishes
it again: as a copy that is doubtful, and says so. Every copy is told as started before its handler
runs. Who has a doubtful one then reads what was told before, and does not run it when another copy
comes first in that order: a copy that was started is a message of its own, which comes back if its
worker dies. Where this cannot be told or read, the copy runs: at least once comes first.

One reading answers for all copies that wait for it, so that many that come at once, as when a
leader is followed, cost little more than one, and stay in their order.

A copy that was dropped is told as such before its ack, so that no other one is dropped because of
it. Of two copies one is first in the stream, and that one runs.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from amqpjobs.amqp.connection import Line
from amqpjobs.amqp.publisher import Publisher
from amqpjobs.amqp.runs import Notice, Runs, Word, notice_of
from amqpjobs.clock import Clock
from amqpjobs.envelope import Envelope
from amqpjobs.errors import UnroutableError
from amqpjobs.events import Events, RunNotTold
from amqpjobs.outcome import Dropped, Outcome, Retrying, Returned, Snoozed
from amqpjobs.topology import Topology
from amqpjobs.wire import Publication

#: Seconds that a tick waits for its start to be told, and for what was told before: then it runs all the same.
TELL_WITHIN, ASK_WITHIN = 5.0, 10.0


@dataclass(slots=True, eq=False)
class _Question:
    """Whether another copy of a tick was started."""

    app: str
    tick: str
    since: datetime
    #: The message id of the notice of this copy.
    until: str
    #: The answer, once somebody has read it.
    notices: Sequence[Notice] | None = None


class Ticks:
    """The ticks of one worker, before they run."""

    def __init__(self, *, topology: Topology, publisher: Publisher, line: Line, clock: Clock, events: Events) -> None:
        self._topology = topology
        self._publisher = publisher
        self._line = line
        self._clock = clock
        self._events = events
        self._questions: list[_Question] = []
        self._reading = asyncio.Lock()

    async def begin(self, envelope: Envelope) -> Dropped | None:
        """Tell that this copy is started. Dropped: another one was before it, and this one is not to be run."""
        if envelope.first_at is not None:  # it was told before the first attempt
            return None
        notice = notice_of(self._topology, envelope, Word.STARTED)
        if notice is None or not await self._tell(envelope, notice) or envelope.doubt_since is None:
            return None
        return await self._looked_up(envelope, notice)

    async def _tell(self, envelope: Envelope, notice: Publication) -> bool:
        try:
            async with self._clock.timeout(TELL_WITHIN):
                await self._publisher.send(notice)
        except UnroutableError:  # no beat has its stream here
            return False
        except Exception as error:
            self._events.emit(RunNotTold(envelope, Word.STARTED.value, error))
            return False
        return True

    async def _looked_up(self, envelope: Envelope, notice: Publication) -> Dropped | None:
        since, app, until = envelope.doubt_since, envelope.app_id, notice.properties.message_id
        assert since is not None
        assert app is not None
        assert until is not None
        question = _Question(app, envelope.job_id, since, until)
        self._questions.append(question)
        try:
            async with self._clock.timeout(ASK_WITHIN):
                return judge(await self._answered(question), envelope.copy)
        except Exception as error:
            self._events.emit(RunNotTold(envelope, Word.STARTED.value, error))
            return None
        finally:
            self._questions.remove(question)

    async def _answered(self, question: _Question) -> Sequence[Notice]:
        async with self._reading:
            if question.notices is None:  # else who was here before has read it, too
                await self._read([each for each in self._questions if each.app == question.app])
        return question.notices or ()

    async def _read(self, questions: Sequence[_Question]) -> None:
        app = questions[0].app
        runs = Runs(await self._line.session(), self._topology.beat_runs(app), self._topology.to_beat_runs(app))
        ticks = {each.tick for each in questions}
        notices = await runs.read(min(each.since for each in questions), [each.until for each in questions], ticks)
        for question in questions:
            question.notices = [each for each in notices if each.tick == question.tick]


def judge(notices: Sequence[Notice], copy: str | None) -> Dropped | None:
    """Whether another copy was started before this one, and not dropped. The notices are of one tick, in order."""
    started = list(dict.fromkeys(each.copy for each in notices if each.word is Word.STARTED))
    if copy not in started:
        return None
    dropped = {each.copy for each in notices if each.word is Word.DROPPED}
    others = [each for each in started[: started.index(copy)] if each not in dropped]
    ended = {each.copy for each in notices if each.word is Word.ENDED}
    return Dropped(is_over=not ended.isdisjoint(others)) if others else None


def last_word(topology: Topology, envelope: Envelope, outcome: Outcome | Dropped) -> Publication | None:
    """What is told when a copy is done with; None while it is not, and for jobs that are no ticks."""
    match outcome:
        case Retrying() | Snoozed() | Returned():
            return None
        case Dropped(is_over=False):
            return notice_of(topology, envelope, Word.DROPPED)
        case _:
            return notice_of(topology, envelope, Word.ENDED)
