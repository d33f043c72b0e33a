"""The results that one process awaits: its mailbox, and who waits for which answer.

Answers are matched by the id that was sent along. Who is waited for lives in the handles alone: a
handle that is dropped takes its wait with it, and the answer that comes then is dropped as well. So
what is kept is bounded by the handles that callers keep.
"""

import asyncio
from typing import Any
from weakref import WeakValueDictionary

from amqpjobs.amqp.connection import Line
from amqpjobs.amqp.declare import Declarer
from amqpjobs.amqp.mailbox import Mailbox
from amqpjobs.clock import Clock
from amqpjobs.envelope import Envelope
from amqpjobs.errors import ResultError, ResultTimeoutError, UnreadableError
from amqpjobs.events import Events, ReplyDropped
from amqpjobs.job import Job
from amqpjobs.replies import Reply, read_reply, result_in
from amqpjobs.settings import Settings
from amqpjobs.topology import Topology
from amqpjobs.wire import Delivery


class Answer:
    """What comes, or will come, for one job; the first that comes counts."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._is_there = asyncio.Event()
        self._came: tuple[bytes, Reply] | None = None
        self._problem = ""

    @property
    def is_there(self) -> bool:
        return self._is_there.is_set()

    def give(self, body: bytes, reply: Reply) -> None:
        self._came = body, reply
        self._is_there.set()

    def give_up(self, problem: str) -> None:
        """Nothing of use will come."""
        self._problem = problem
        self._is_there.set()

    async def come(self, timeout: float) -> tuple[bytes, Reply]:
        """Raises TimeoutError, and ResultError when nothing will come."""
        if not timeout >= 0:  # NaN neither
            raise ValueError(f"timeout must be 0 or more seconds, not {timeout!r}.")
        if not self.is_there:
            async with self._clock.timeout(timeout):
                await self._is_there.wait()
        if self._came is None:
            raise ResultError(self._problem)
        return self._came


class AwaitedResult:
    """The answer to one job, read as its class says."""

    def __init__(self, answer: Answer, job: type[Job[Any]], envelope: Envelope) -> None:
        self._answer = answer
        self._job = job
        self._job_id = envelope.job_id

    async def result(self, timeout: float) -> object:
        try:
            body, reply = await self._answer.come(timeout)
        except TimeoutError as error:
            late = ResultTimeoutError(
                f"No answer to {self._job.__name__} ({self._job_id}) came within {timeout:g} s. The job may wait, run, "
                "or have ended with its answer lost: nothing here says which, and it is not stopped."
            )
            late.job_id = self._job_id
            raise late from error
        except ResultError as error:
            error.job_id = self._job_id
            raise
        return result_in(self._job, self._job_id, body, reply)


class Results:
    """Of one producer."""

    def __init__(self, *, line: Line, topology: Topology, settings: Settings, clock: Clock, events: Events) -> None:
        self._clock = clock
        self._events = events
        self._longest = settings.max_body
        self._answers = WeakValueDictionary[str, Answer]()
        self._mailbox = Mailbox(
            line=line,
            topology=topology,
            declarer=Declarer(topology, events),
            events=events,
            expires=settings.reply_expires,
            on_delivery=self.take,
        )

    def __len__(self) -> int:
        """How many answers somebody keeps a handle for."""
        return len(self._answers)

    async def address(self) -> str:
        """Where answers are heard; see `Mailbox.address`."""
        return await self._mailbox.address()

    def expect(self, job: Job[Any], envelope: Envelope) -> AwaitedResult:
        """Call it before the job is sent: the answer may be faster than the confirm."""
        key = _key(envelope.correlation_id, envelope.job_id)
        answer = self._answers.get(key)
        if answer is None:
            answer = self._answers[key] = Answer(self._clock)
        return AwaitedResult(answer, type(job), envelope)

    def take(self, delivery: Delivery) -> None:
        """Hand on what came, to whoever awaits it."""
        key = delivery.properties.correlation_id
        answer = self._answers.get(key or "")
        if answer is None or answer.is_there:
            self._events.emit(ReplyDropped(self._mailbox.name, key))
            return
        size = len(delivery.body)
        if size > self._longest:
            answer.give_up(f"The answer has {size} bytes, and this process takes {self._longest} (AMQPJOBS_MAX_BODY).")
            return
        try:
            if delivery.defect:
                raise UnreadableError(delivery.defect)
            answer.give(delivery.body, read_reply(delivery.body))
        except UnreadableError as error:
            self._events.emit(ReplyDropped(self._mailbox.name, key, str(error)))

    async def close(self) -> None:
        """Who still waits is told that nothing will come."""
        await self._mailbox.close()
        for answer in list(self._answers.values()):
            if not answer.is_there:
                answer.give_up("The connection was closed here before an answer came. The job is not stopped.")


def _key(correlation_id: str | None, job_id: str) -> str:
    return correlation_id or job_id
