"""Publish on one confirming channel and hear of each confirm: through the client library, or on the lane.

Both tell the same: None when the broker has taken a message, `Returned` when no queue is bound for
it, `Refused` when one that is would not take it, and else the error that ended the channel.
"""

import asyncio
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import takewhile
from typing import Any, Protocol, cast

import aiormq
import aiormq.exceptions
from aiormq.channel import Channel

from amqpjobs.amqp.connection import Session, closing_of
from amqpjobs.amqp.guard import read_header
from amqpjobs.amqp.lane import Exit, Lane, message_frames, method_frame
from amqpjobs.amqp.properties import short, written_header
from amqpjobs.amqp.table import ExactProperties
from amqpjobs.envelope import new_id
from amqpjobs.wire import Properties, Publication

#: Bodies above so many bytes wait for the socket, so that a window of them is not all in memory.
DRAIN_ABOVE = 64 * 1024

#: Called once for each message, with what went wrong.
Told = Callable[[BaseException | None], object]


class Returned(Exception):
    """No queue is bound for it."""


class Refused(Exception):
    """A queue would not take it."""


class Confirms(Protocol):
    """A channel that publishes."""

    @property
    def is_closed(self) -> bool: ...

    @property
    def unconfirmed(self) -> int:
        """Messages whose answer is still to come."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether the connection takes more now."""
        ...

    async def room(self) -> None:
        """Wait until it does, or will never again."""
        ...

    def publish(self, publication: Publication, told: Told) -> None:
        """Send it, mandatory and persistent; `told` is called with what became of it. Raises ValueError."""
        ...


class LibraryConfirms:
    """Publishes through the client library, with a task for each message: a publish is never cancelled half-sent."""

    has_room = True

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._tasks = set[asyncio.Task[None]]()

    @property
    def is_closed(self) -> bool:
        return self._channel.is_closed

    @property
    def unconfirmed(self) -> int:
        return len(self._tasks)

    async def room(self) -> None:
        """Each task waits for itself."""

    def publish(self, publication: Publication, told: Told) -> None:
        task = asyncio.create_task(self._publish(publication, told))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _publish(self, publication: Publication, told: Told) -> None:
        try:
            await self._channel.basic_publish(
                publication.body,
                exchange=publication.exchange,
                routing_key=publication.routing_key,
                properties=_library_properties(publication.properties),
                mandatory=True,
                wait=len(publication.body) > DRAIN_ABOVE,
            )
        except aiormq.exceptions.PublishError:
            told(Returned())
        except aiormq.exceptions.DeliveryError:
            told(Refused())
        except (Exception, asyncio.CancelledError) as error:  # the library cancels what it closes
            told(error)
        else:
            told(None)


def _library_properties(own: Properties) -> aiormq.spec.Basic.Properties:
    return ExactProperties(
        content_type=own.content_type,
        content_encoding=own.content_encoding,
        headers=cast("Any", own.headers) or None,
        delivery_mode=2,
        priority=own.priority,
        correlation_id=own.correlation_id,
        reply_to=own.reply_to,
        message_id=own.message_id,
        timestamp=own.timestamp,
        message_type=own.kind,
        app_id=own.app_id,
    )


_CONFIRM = struct.Struct(">4sQB")
_ACK, _NACK, _FLOW = b"\x00\x3c\x00\x50", b"\x00\x3c\x00\x78", b"\x00\x14\x00\x14"
_FLOW_OK = b"\x00\x14\x00\x15"
_MULTIPLE = 1


class LaneConfirms(Exit):
    """Publishes on the lane. Confirms are told in the turn of the event loop in which they come."""

    begins = b"\x00\x3c\x00\x32"  # basic.return
    wants_bodies = False

    def __init__(self, lane: Lane, channel: Channel) -> None:
        super().__init__(lane, channel.number)
        self._tag = 0
        #: Whom to tell, and the message id, by the tags under way, in their order.
        self._pending: dict[int, tuple[Told, str]] = {}
        #: Returns say no tag, but the id of their message.
        self._tags: dict[str, int] = {}
        #: One at a time goes through when there is room again: else all would wake for each.
        self._door = asyncio.Lock()
        #: The broker's own word; RabbitMQ never says it.
        self._flow = asyncio.Event()
        self._flow.set()
        closing_of(channel).add_done_callback(self._channel_closed)

    @property
    def unconfirmed(self) -> int:
        return len(self._pending)

    @property
    def has_room(self) -> bool:
        return self._lane.is_flowing and self._flow.is_set() and not self._door.locked()

    async def room(self) -> None:
        async with self._door:
            while not self.is_closed and not (self._lane.is_flowing and self._flow.is_set()):
                await self._lane.flowing()
                await self._flow.wait()

    def publish(self, publication: Publication, told: Told) -> None:
        if self.is_closed:
            told(ConnectionError("The channel is closed."))
            return
        own = publication.properties
        message_id = own.message_id
        if message_id is None:
            message_id = new_id()
            own = replace(own, message_id=message_id)
        method = _publish_frame(self._number, publication.exchange, publication.routing_key)
        header = written_header(own, len(publication.body))
        frames = message_frames(self._number, method, header, publication.body, self._lane.longest)
        self._tag += 1
        self._pending[self._tag] = told, message_id
        self._tags[message_id] = self._tag
        self._lane.write(frames)

    def speak(self) -> None:
        """Nothing waits here: the lane has it all."""

    def lost(self, error: Exception) -> None:
        self._end(error)

    def _take_method(self, payload: bytes) -> bool:
        if payload.startswith((_ACK, _NACK)):
            method, tag, bit = _CONFIRM.unpack(payload)
            self._confirm(tag, bit & _MULTIPLE, None if method == _ACK else Refused())
            return True
        if payload.startswith(_FLOW):
            self._set_flow(payload[4] & 1)
            return True
        return False

    def _take_message(self, method: bytes, header: bytes, body: bytes) -> None:
        """It came back; its confirm follows, and says nothing more."""
        tag = self._tags.get(read_header(header).message_id or "")
        if tag is not None:
            self._tell(tag, Returned())

    def _confirm(self, tag: int, is_multiple: int, error: Refused | None) -> None:
        if is_multiple:
            # In their order; 0 means all that were sent.
            for each in list(takewhile(lambda sent: sent <= (tag or self._tag), self._pending)):
                self._tell(each, error)
        else:
            self._tell(tag, error)

    def _tell(self, tag: int, error: BaseException | None) -> None:
        found = self._pending.pop(tag, None)
        if found is not None:
            told, message_id = found
            self._tags.pop(message_id, None)
            told(error)

    def _set_flow(self, is_flowing: int) -> None:
        if is_flowing:
            self._flow.set()
        else:
            self._flow.clear()
        self._lane.write(method_frame(self._number, _FLOW_OK + bytes([is_flowing])))

    def _channel_closed(self, closing: "asyncio.Future[object]") -> None:
        self.is_closed = True
        error = None if closing.cancelled() else closing.exception()
        self._end(error or ConnectionError("The channel was closed."))

    def _end(self, error: BaseException) -> None:
        self._flow.set()
        for tag in list(self._pending):
            self._tell(tag, error)


@lru_cache(1024)
def _publish_frame(number: int, exchange: str, routing_key: str) -> bytes:
    """The method that begins a mandatory message."""
    return method_frame(number, b"\x00\x3c\x00\x28\x00\x00" + short(exchange) + short(routing_key) + b"\x01")


def confirms_of(session: Session, channel: Channel) -> Confirms:
    """A confirming channel of a session, made ready to publish."""
    if session.lane is None:
        return LibraryConfirms(channel)
    confirms = LaneConfirms(session.lane, channel)
    session.lane.add(channel.number, confirms)
    return confirms
