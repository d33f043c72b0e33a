"""What fills a buffer and what empties it, wherever that is done: in a task, or in a `BlockingClient`'s thread.

Jobs are checked and drafted when they are put. They are sent in windows that keep the order,
and again under the same job_id for as long as the broker is away or blocks.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from typing import Any, TypeVar

from amqpjobs.amqp.connection import Session
from amqpjobs.amqp.publisher import check_size
from amqpjobs.backlog import Backlog, Waiting
from amqpjobs.client import Client, as_enqueue_error
from amqpjobs.errors import (
    AmqpJobsError,
    BrokerError,
    BufferFullError,
    EnqueueError,
    EnqueueTimeoutError,
    FlushError,
    RefusedError,
    TooLargeError,
    UnconfirmedError,
)
from amqpjobs.events import JobDropped
from amqpjobs.handle import BufferedJob, EnqueueOptions, refuse_reply, result_of
from amqpjobs.job import Job
from amqpjobs.producer import Producing, drafts_of
from amqpjobs.retry import exponential
from amqpjobs.wire import table_size

R = TypeVar("R")

#: Jobs sent at once; all are confirmed before the next ones, which keeps their order.
WINDOW = 200
#: Seconds between two looks for jobs that expired.
SWEEP = 1.0
#: Seconds that sends under way have to fail by themselves when their connection has ended.
GRACE = 1.0
#: What passes by itself, so that the job is sent again.
PASSING = (BrokerError, UnconfirmedError, EnqueueTimeoutError)


class Tank:
    """A backlog, what fills it, and what empties it: all but where its work is done."""

    def __init__(self, app: Producing, *, limit: int, max_bytes: int) -> None:
        if limit < 1 or max_bytes < 1:
            raise ValueError("limit and max_bytes of a buffer must be 1 or more.")
        self.backlog = Backlog(limit=limit, max_bytes=max_bytes)
        self._max_bytes = max_bytes
        self._clock = app.clock
        self._events = app.events
        self._middlewares = app.enqueue_middlewares
        self._settings = app.settings
        self._drafts = drafts_of(app)
        self._pauses = exponential(0.25, cap=app.settings.reconnect_cap, jitter=0.5)  # those of a link
        self._failures = 0
        self._moved_at = 0.0
        self._used: Client | None = None

    # Filling

    def put(self, job: Job[R], options: EnqueueOptions) -> BufferedJob[R]:
        """Raises BufferFullError, and what `Drafts.check` raises."""
        if options.get("deadline") is not None:
            raise ValueError("A job in a buffer has no deadline; `expires` says for how long it is of use.")
        refuse_reply(options, "in a buffer")
        waiting = self._waiting(job, options)
        if not self.backlog.put(waiting):
            raise self._full(waiting)
        return BufferedJob(waiting.envelope.job_id, waiting.envelope.kind, result_of(job))

    def _waiting(self, job: Job[Any], options: EnqueueOptions) -> Waiting:
        envelope = self._drafts.envelope(job, options)
        publication = self._drafts.publication(envelope)
        check_size(publication, self._settings.max_body)
        size = len(publication.body) + table_size(publication.properties.headers)
        if size > self._max_bytes:
            raise TooLargeError(
                f"Job {envelope.kind!r} has {size} bytes, and the whole buffer holds {self._max_bytes} (max_bytes)."
            )
        return Waiting(
            envelope,
            size,
            put_at=self._clock.monotonic(),
            parks=options.get("on_unroutable") == "park",
            context=copy_context() if self._middlewares else None,
        )

    def _full(self, job: Waiting) -> BufferFullError:
        count, oldest = len(self.backlog), self.backlog.oldest
        since = self._clock.monotonic() - max(self._moved_at, oldest.put_at if oldest else 0.0)
        error = BufferFullError(
            f"The buffer is full: {count} jobs ({self.backlog.size} bytes) wait, and none was confirmed "
            f"for {since:.1f} s. {self.trouble} Job {job.envelope.kind!r} was not taken.",
            waiting=count,
            seconds=since,
        )
        error.job_id = job.envelope.job_id
        return error

    @property
    def trouble(self) -> str:
        return "There is no connection yet." if self._used is None else self._used.trouble

    @property
    def oldest(self) -> float:
        oldest = self.backlog.oldest
        return 0.0 if oldest is None else max(0.0, self._clock.monotonic() - oldest.put_at)

    # Emptying

    async def drain(self, sender: object, client: Callable[[], Awaitable[Client]]) -> None:
        """Send until nothing waits."""
        async with asyncio.TaskGroup() as group:
            sweeping = group.create_task(self._sweep())
            while not self.backlog.is_done(sender):
                pause = await self._step(client)
                await self._clock.sleep(pause)
            sweeping.cancel()

    async def _sweep(self) -> None:
        while True:
            await self._clock.sleep(SWEEP)
            self._drop_expired()

    async def _step(self, ask: Callable[[], Awaitable[Client]]) -> float:
        """Send one window. Seconds until the next."""
        try:
            client = self._used = await ask()
            session = await client.connected()
        except BrokerError:  # refused, or closed under us: it may be mended
            return self._pause()
        self._drop_expired()
        if await self._send(client, session, self.backlog.window(WINDOW)):
            self._failures = 0
            return 0.0
        return self._pause()

    def _pause(self) -> float:
        self._failures += 1
        return self._pauses.delay_after(self._failures, EnqueueError()) or 0.0

    async def _send(self, client: Client, session: Session, jobs: Sequence[Waiting]) -> bool:
        """Whether all of them are done with."""
        for job in jobs:
            job.is_under_way = True
        try:
            ready = await self._passed(client, jobs)
            async with asyncio.TaskGroup() as group:
                sending = [group.create_task(self._send_one(client, session, job)) for job in ready]
                cutting = group.create_task(self._cut(session, sending))
                if sending:
                    await asyncio.wait(sending)
                cutting.cancel()
        finally:
            for job in jobs:
                job.is_under_way = False
        return not any(job in self.backlog for job in jobs)

    async def _cut(self, session: Session, sending: Sequence[asyncio.Task[None]]) -> None:
        """A connection that has ended confirms nothing more, and the library forgets some who wait for that."""
        await session.ended()
        await self._clock.sleep(GRACE)
        for task in sending:
            task.cancel()

    async def _passed(self, client: Client, jobs: Sequence[Waiting]) -> list[Waiting]:
        """Those that have passed the middlewares, up to the first one that must wait."""
        passed: list[Waiting] = []
        for job in jobs:
            try:
                await self._pass(client, job)
            except Exception as error:
                if self._failed(job, error):
                    continue
                break
            passed.append(job)
        return passed

    async def _pass(self, client: Client, job: Waiting) -> None:
        if job.context is None:
            return
        limit = self._settings.enqueue_timeout
        try:
            async with self._clock.timeout(limit):
                job.envelope = await asyncio.create_task(client.passed(job.envelope), context=job.context)
        except TimeoutError as error:  # also one of their own: what they wait for may come back
            raise EnqueueTimeoutError(f"The middlewares were not done in time (they have {limit:g} s).") from error
        job.context = None

    async def _send_one(self, client: Client, session: Session, job: Waiting) -> None:
        if job.is_over(self._clock.now()):
            self._expire(job)
            return
        job.is_tried = True
        try:
            await client.send(job.envelope, park=job.parks)
        except Exception as error:
            # Of a connection that is being closed the library says nearly anything.
            if session.is_open or isinstance(error, AmqpJobsError):
                self._failed(job, error)
            return
        self.backlog.remove(job)
        self._moved_at, self._failures = self._clock.monotonic(), 0

    def _failed(self, job: Waiting, error: Exception) -> bool:
        """Whether that is the end of it."""
        if isinstance(error, PASSING):
            return False
        self._drop(job, _refused(job, error))
        return True

    def _drop_expired(self) -> None:
        for job in self.backlog.expired(self._clock.now()):
            self._expire(job)

    def _expire(self, job: Waiting) -> None:
        self._drop(job, _told(job, "expired while it waited in the buffer."))

    def _drop(self, job: Waiting, error: EnqueueError) -> None:
        if self.backlog.remove(job, error):
            self._events.emit(JobDropped(job.envelope, error))

    # Telling

    def problem(self, last: int) -> FlushError | None:
        """Those dropped since they were last told, and those up to this number that still wait."""
        errors = self.backlog.take_errors()
        errors += [self._late(job) for job in self.backlog.until(last)]
        return FlushError(errors) if errors else None

    def give_up(self) -> FlushError | None:
        """Drop all that still waits; that, and those dropped since they were last told."""
        errors = self.backlog.take_errors()
        for job in self.backlog.until(None):
            self._drop(job, self._late(job))
        errors += self.backlog.take_errors()
        return FlushError(errors) if errors else None

    def _late(self, job: Waiting) -> EnqueueTimeoutError:
        return _told(job, f"was not confirmed in time. {self.trouble}")


def _refused(job: Waiting, error: Exception) -> EnqueueError:
    if isinstance(error, AmqpJobsError):
        return as_enqueue_error(error, job.envelope)
    envelope = job.envelope  # a middleware's veto, or a bug
    refused = RefusedError(f"Job {envelope.kind!r} ({envelope.job_id}) was not enqueued: {error!r}.")
    refused.__cause__ = error
    refused.job_id = envelope.job_id
    return refused


def _told(job: Waiting, what: str) -> EnqueueTimeoutError:
    envelope = job.envelope
    known = "It may be queued or not." if job.is_tried else "It was never sent."
    error = EnqueueTimeoutError(f"Job {envelope.kind!r} ({envelope.job_id}) {what} {known}")
    error.job_id = envelope.job_id
    return error
