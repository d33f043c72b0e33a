"""The last value, kept by the broker: a small stream that is read from its end.

Who peeks into a queue of length one holds its value, and one that is written meanwhile is lost
when the old one goes back. Nobody takes anything out of a stream. It has one writer at a time,
the holder of a lease; a value is written whole, and may then be amended by changes.

To read is to find the end, and AMQP does not tell where that is. So a reader publishes a fence
and reads until it comes. The last chunk nearly always has enough; where it begins with changes
each of them says how far back its value lies; and where it has nothing but fences, the whole
stream is read.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import aiormq
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel

from amqpjobs.amqp.connection import CLIENT_ERRORS, OneSession, Session
from amqpjobs.amqp.declare import told_of_consuming
from amqpjobs.amqp.publisher import Publisher
from amqpjobs.envelope import new_id
from amqpjobs.errors import BrokerUnavailableError, TooLargeError
from amqpjobs.topology import REGISTER_BYTES, Route
from amqpjobs.wire import Headers, Properties, Publication

#: Bytes of a value, and of a change: a register keeps the last value whatever comes after it.
LONGEST_VALUE = REGISTER_BYTES // 4
#: Entries of others, that is fences, that may lie between a value and its changes before all is read.
FENCES = 64
#: Messages lent to a reader at once.
WINDOW = 500
#: Seconds in which the end must have come.
READ_WITHIN = 30.0

_VALUE, _CHANGE, _FENCE = "value", "change", "fence"
_SINCE = "amqpjobs-since"
_OFFSET = "x-stream-offset"


@dataclass(frozen=True, slots=True)
class Record:
    """What a register holds: the last value, None when there never was one, and the changes since."""

    value: bytes | None = None
    changes: Sequence[bytes] = ()


class Register:
    """One register, on one session: when that is lost, nothing is written any more."""

    def __init__(self, session: Session, queue: str, route: Route) -> None:
        self._session = session
        self._queue = queue
        self._route = route
        self._publisher = Publisher(OneSession(session), longest_body=LONGEST_VALUE)
        self._since = 0

    async def read(self) -> Record:
        """The last value that was confirmed, and its changes; perhaps some that were not.

        Raises BrokerUnavailableError when the end does not come within 30 seconds or the
        connection is lost, AccessRefusedError, and what `write` raises.
        """
        try:
            async with asyncio.timeout(READ_WITHIN):
                return await self._read()
        except (*CLIENT_ERRORS, TimeoutError) as error:
            raise BrokerUnavailableError(f"The register {self._queue!r} could not be read: {error!r}.") from error

    async def write(self, value: bytes) -> None:
        """Replace the value; returns when that is confirmed. Callers bound the wait.

        Raises TooLargeError above 8 MiB, and what `Publisher.send` raises: then nobody can tell
        whether it is written.
        """
        self._since = 0
        await self._append(_VALUE, value)

    async def amend(self, change: bytes) -> None:
        """Add a change to the value that was written here; as `write` otherwise."""
        self._since += 1
        await self._append(_CHANGE, change)

    @asynccontextmanager
    async def followed(self, on_entry: Callable[[bytes], None], on_end: Callable[[], None]) -> AsyncGenerator[None]:
        """Call `on_entry` with each value and change that is written from now on, and some that were before.

        `on_end` is called when nothing more will come, also at the end of the block. Raises what `read` raises.
        """
        try:
            async with self._session.scratch() as channel:
                closing = cast("asyncio.Future[object]", channel.closing)  # pyright: ignore[reportUnknownMemberType]
                closing.add_done_callback(lambda _: on_end())
                await self._consume(channel, "last", _Follower(on_entry))
                yield
        except CLIENT_ERRORS as error:
            raise BrokerUnavailableError(f"The register {self._queue!r} could not be read: {error!r}.") from error

    async def _read(self) -> Record:
        tail = await self._tail("last")
        if tail.value is None and tail.first is not None:
            tail = await self._tail(max(0, tail.first - tail.since - FENCES))
        if tail.value is None:
            tail = await self._tail("first")
        return Record(tail.value, tuple(tail.changes))

    async def _tail(self, start: str | int) -> "_Tail":
        tail = _Tail(new_id())
        async with self._session.scratch() as channel:
            closing = cast("asyncio.Future[object]", channel.closing)  # pyright: ignore[reportUnknownMemberType]
            await self._consume(channel, start, tail)
            await self._append(_FENCE, b"", tail.fence)
            closing.add_done_callback(lambda _: tail.news.set())
            await tail.news.wait()
        if not tail.is_whole:
            raise BrokerUnavailableError(f"The register {self._queue!r} was not read to its end: the channel closed.")
        return tail

    async def _consume(self, channel: Channel, start: str | int, tail: "_Tail | _Follower") -> None:
        async def arrived(message: DeliveredMessage) -> None:
            if tail.take(message) % (WINDOW // 2) == 0 and not channel.is_closed:
                tag = cast("aiormq.spec.Basic.Deliver", message.delivery).delivery_tag
                await channel.basic_ack(tag or 0, multiple=True, wait=False)

        await channel.basic_qos(prefetch_count=WINDOW)
        with told_of_consuming():
            await channel.basic_consume(self._queue, arrived, arguments={_OFFSET: start})
        # Up to here the reader may still be looking for its place: it says ok before it has one.
        await channel.basic_qos(prefetch_count=WINDOW)

    async def _append(self, entry: str, body: bytes, message_id: str | None = None) -> None:
        if len(body) > LONGEST_VALUE:
            raise TooLargeError(f"The register {self._queue!r} takes {LONGEST_VALUE} bytes at most, not {len(body)}.")
        properties = Properties(
            kind=entry, message_id=message_id or new_id(), headers={_SINCE: 0 if entry == _FENCE else self._since}
        )
        await self._publisher.send(
            Publication(exchange=self._route.exchange, routing_key=self._route.key, body=body, properties=properties)
        )


class _Follower:
    """Hands on what it gets, fences left out."""

    def __init__(self, on_entry: Callable[[bytes], None]) -> None:
        self._on_entry = on_entry
        self._count = 0

    def take(self, message: DeliveredMessage) -> int:
        """How many messages that makes."""
        self._count += 1
        if message.header.properties.message_type in (_VALUE, _CHANGE):
            self._on_entry(message.body)
        return self._count


@dataclass(slots=True)
class _Tail:
    """What was read so far, up to the fence; no more than the last value and what came after it."""

    fence: str
    value: bytes | None = None
    changes: list[bytes] = field(default_factory=list[bytes])
    #: Where the first change lies, and how many entries its value lies before it.
    first: int | None = None
    since: int = 0
    count: int = 0
    #: Whether the fence came; `news` is set then, and when it will not come any more.
    is_whole: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, message: DeliveredMessage) -> int:
        """How many messages that makes."""
        self.count += 1
        if not self.is_whole:
            self._sort(message)
        return self.count

    def _sort(self, message: DeliveredMessage) -> None:
        properties = message.header.properties
        headers = cast("Headers", properties.headers or {})
        match properties.message_type:
            case "value":
                self.value, self.changes = message.body, []
            case "change":
                self.changes.append(message.body)
                if self.first is None:
                    self.first, self.since = _whole(headers, _OFFSET), _whole(headers, _SINCE)
            case _:
                if properties.message_id == self.fence:
                    self.is_whole = True
                    self.news.set()


def _whole(headers: Headers, name: str) -> int:
    value = headers.get(name)
    return value if isinstance(value, int) else 0
