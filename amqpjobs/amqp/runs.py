"""What workers tell beats of the runs of ticks: a small stream of notices for each app whose beat leads.

A worker tells before a tick's handler runs that this copy of it was started, and before the ack
that it has ended; of other jobs nothing is told. A leader follows the stream to learn when the
last run is over. A worker that has a doubtful copy reads whether another one was started before:
the stream is the one order in which all see what copies did.

The notices go through the exchange of the queues, with a key that only the stream is bound to.
Workers may write there anyway, and it is there also where no beat ever was: then a notice has
nowhere to go, which the publisher says and nobody minds. An exchange of its own that is missing,
or that one may not write to, would cost the connection with each tick.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import TracebackType
from typing import NoReturn, Self, cast

import aiormq
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel

from amqpjobs.amqp.connection import CLIENT_ERRORS, OneSession, Session
from amqpjobs.amqp.declare import told_of_consuming
from amqpjobs.amqp.publisher import Publisher
from amqpjobs.envelope import Envelope, new_id
from amqpjobs.errors import BrokerUnavailableError
from amqpjobs.topology import Route, Topology
from amqpjobs.wire import Headers, Properties, Publication

#: Messages lent to a reader at once.
WINDOW = 500
#: From so long before one reads: the broker's clock is another one.
SLACK = timedelta(seconds=15)
#: Seconds in which a reader's goal must have come.
READ_WITHIN = 30.0
#: Bytes of a routing key: a longer one is of no app.
LONGEST_KEY = 255

_ID, _COPY, _FENCE = "amqpjobs-id", "amqpjobs-copy", "fence"
_OFFSET = "x-stream-offset"
#: The wire has no times before it.
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Word(StrEnum):
    """What is told of a copy."""

    #: It is about to run.
    STARTED = "started"
    #: The tick has run: completed, dead, cancelled or expired. Not: failed and to be tried again.
    ENDED = "ended"
    #: It is not run, because another copy is, which has not ended yet.
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Notice:
    """One word about one copy of a tick."""

    word: Word
    #: The id of its job.
    tick: str
    copy: str


def notice_of(topology: Topology, envelope: Envelope, word: Word) -> Publication | None:
    """The notice about a job; None for what is no copy of a tick, or of an app with no such name."""
    if envelope.copy is None or envelope.app_id is None:
        return None
    route = topology.to_beat_runs(envelope.app_id)
    if len(route.key.encode()) > LONGEST_KEY:
        return None
    return _publication(route, word, {_ID: envelope.job_id, _COPY: envelope.copy})


class Runs:
    """The notices of one app, read on one session."""

    def __init__(self, session: Session, queue: str, route: Route) -> None:
        self._session = session
        self._queue = queue
        self._route = route
        self._publisher = Publisher(OneSession(session), longest_body=0)

    async def read(self, since: datetime, until: Collection[str], ticks: Collection[str]) -> list[Notice]:
        """The notices of these ticks since about then, until all with these message ids came, which were confirmed.

        Raises BrokerUnavailableError when they do not come within 30 seconds, or the connection is lost,
        and AccessRefusedError.
        """
        notices = list[Notice]()

        def take(notice: Notice) -> None:
            if notice.tick in ticks:
                notices.append(notice)

        try:
            async with self._session.scratch() as channel, _Reading(channel, until, take) as reading:
                async with asyncio.timeout(READ_WITHIN):
                    await reading.begin(self._queue, since)
                    await reading.current()
        except (*CLIENT_ERRORS, TimeoutError) as error:
            raise self._gone(error) from error
        if not reading.is_current:
            raise self._gone(None)
        return notices

    async def follow(
        self, since: datetime, on_notice: Callable[[Notice], object], on_current: Callable[[], object]
    ) -> NoReturn:
        """Hand on the notices since about then, and those that come, for as long as the session lasts.

        `on_current` is called when all was handed on that was there at the beginning. Raises as `read` does,
        and what `Publisher.send` raises of a fence.
        """
        fence = _publication(self._route, _FENCE, {})
        until = [fence.properties.message_id or ""]
        try:
            async with self._session.scratch() as channel, _Reading(channel, until, on_notice, goes_on=True) as reading:
                async with asyncio.timeout(READ_WITHIN):
                    await reading.begin(self._queue, since)
                    await self._publisher.send(fence)
                    await reading.current()
                if reading.is_current:
                    on_current()
                await reading.closed()
        except (*CLIENT_ERRORS, TimeoutError) as error:
            raise self._gone(error) from error
        raise self._gone(None)

    def _gone(self, error: BaseException | None) -> BrokerUnavailableError:
        why = "its channel closed" if error is None else repr(error)
        return BrokerUnavailableError(f"The runs in {self._queue!r} could not be read: {why}.")


class _Reading:
    """One way through the stream, on a channel of its own: up to some messages, or beyond them."""

    def __init__(
        self, channel: Channel, until: Iterable[str], on_notice: Callable[[Notice], object], *, goes_on: bool = False
    ) -> None:
        self._channel = channel
        self._awaited = set(until)
        self._on_notice = on_notice
        self._goes_on = goes_on
        self._count = 0
        #: Whether the messages came.
        self.is_current = False
        self._is_closed = False
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An ack on a channel that is being closed would cost the connection.
        self._is_closed = True

    async def begin(self, queue: str, since: datetime) -> None:
        """Consume from about then on."""
        channel = self._channel
        channel.on_consumer_cancel_callbacks.add(self._cancelled)
        closing = cast("asyncio.Future[object]", channel.closing)  # pyright: ignore[reportUnknownMemberType]
        closing.add_done_callback(lambda _: self._close())
        await channel.basic_qos(prefetch_count=WINDOW)
        with told_of_consuming():
            await channel.basic_consume(queue, self._arrived, arguments={_OFFSET: max(_EPOCH, since - SLACK)})
        # Up to here the reader may still be looking for its place: it says ok before it has one.
        await channel.basic_qos(prefetch_count=WINDOW)

    async def current(self) -> None:
        """Wait until the messages came, or nothing more will."""
        while not (self.is_current or self._is_closed):
            self._news.clear()
            await self._news.wait()

    async def closed(self) -> None:
        """Wait until nothing more will come."""
        while not self._is_closed:
            self._news.clear()
            await self._news.wait()

    async def _arrived(self, message: DeliveredMessage) -> None:
        if self._is_closed or (self.is_current and not self._goes_on):
            return
        self._count += 1
        if (notice := _notice(message)) is not None:
            self._on_notice(notice)
        self._awaited.discard(message.header.properties.message_id or "")
        if not self._awaited and not self.is_current:
            self.is_current = True
            self._news.set()
        # Later ones at once: the broker closes the channel of who keeps a message for half an hour.
        if (self._goes_on and self.is_current) or self._count % (WINDOW // 2) == 0:
            tag = cast("aiormq.spec.Basic.Deliver", message.delivery).delivery_tag
            await self._channel.basic_ack(tag or 0, multiple=True, wait=False)

    async def _cancelled(self, frame: object) -> None:
        self._close()

    def _close(self) -> None:
        self._is_closed = True
        self._news.set()


def _publication(route: Route, kind: str, headers: Headers) -> Publication:
    properties = Properties(kind=kind, message_id=new_id(), headers=headers)
    return Publication(exchange=route.exchange, routing_key=route.key, body=b"", properties=properties)


def _notice(message: DeliveredMessage) -> Notice | None:
    """None for a fence, and for what nobody of ours has written."""
    properties = message.header.properties
    headers = cast("Headers", properties.headers or {})
    tick, copy = headers.get(_ID), headers.get(_COPY)
    if properties.message_type not in tuple(Word) or not isinstance(tick, str) or not isinstance(copy, str):
        return None
    return Notice(Word(properties.message_type), tick, copy)
