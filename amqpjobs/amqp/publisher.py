"""Publish, mandatory and confirmed: the only room that does.

`send` returns when the broker has taken the message into at least one queue, and raises
otherwise. One confirm channel carries all; publishes on it are pipelined.

A publish is never cancelled half-sent. Who stops waiting leaves the confirm to come; only
when nothing at all was confirmed since, the channel is taken for stuck and dropped. But not
while the broker says that it blocks publishers: then nothing more is sent, so that it does not
pile up in memory, and who was waiting may go on when the alarm is over.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, cast

import aiormq
import aiormq.exceptions
from aiormq.channel import Channel

from amqpjobs.amqp.connection import CLIENT_ERRORS, Line, Session
from amqpjobs.amqp.table import ExactProperties
from amqpjobs.clock import is_cancelled
from amqpjobs.errors import (
    AmqpJobsError,
    BrokerUnavailableError,
    EnqueueError,
    RefusedError,
    TooLargeError,
    UnconfirmedError,
    UnroutableError,
)
from amqpjobs.wire import Properties, Publication, table_size

#: Publishes under way at once in `send_all`.
WINDOW = 200
#: Bodies above so many bytes wait for the socket, so that a window of them is not all in memory.
DRAIN_ABOVE = 64 * 1024
#: A frame has 131,072 bytes as RabbitMQ is delivered; the other properties need up to 2,600.
LONGEST_HEADERS = 128_000
#: Seconds without any confirm after which who stops waiting takes the channel for stuck.
STUCK_AFTER = 1.0


class Publisher:
    """Publishes on whatever session its link has."""

    def __init__(self, link: Line, *, longest_body: int) -> None:
        self._link = link
        self._longest_body = longest_body
        self._session: Session | None = None
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()
        self._confirmed = 0

    async def send(self, publication: Publication) -> None:
        """Publish and wait for the confirm. Callers bound the wait.

        Raises UnroutableError, RefusedError, TooLargeError, UnconfirmedError, and what
        `Link.session` raises.
        """
        check_size(publication, self._longest_body)
        session, channel = await self._open_channel()
        before, started = self._confirmed, asyncio.get_running_loop().time()
        try:
            await channel.basic_publish(
                publication.body,
                exchange=publication.exchange,
                routing_key=publication.routing_key,
                properties=_properties(publication.properties),
                mandatory=True,
                wait=len(publication.body) > DRAIN_ABOVE,
            )
        except asyncio.CancelledError as error:
            if not is_cancelled():
                raise _failed(publication, error) from error
            waited = asyncio.get_running_loop().time() - max(started, session.since)
            if self._confirmed == before and waited > STUCK_AFTER and not session.blocked:
                self._drop(session, channel)
            raise
        except aiormq.exceptions.PublishError as error:
            self._confirmed += 1  # the broker answers
            raise _unroutable(publication) from error
        except aiormq.exceptions.DeliveryError as error:
            self._confirmed += 1
            raise RefusedError(
                f"The broker refused {_what(publication)}: a queue it goes to is full or cannot take it now."
            ) from error
        except CLIENT_ERRORS as error:
            raise _failed(publication, error) from error
        except Exception as error:  # the library's bare ones, when the connection was closed in good order
            if session.is_open:
                raise
            raise _failed(publication, error) from error
        self._confirmed += 1

    async def send_all(
        self, publications: Iterable[Publication], results: dict[int, BaseException | None] | None = None
    ) -> dict[int, BaseException | None]:
        """Publish them pipelined. Callers bound the wait.

        The results are by position: what went wrong, or None. Who passes the dictionary has
        those known so far also when the wait is cut short.
        """
        done = {} if results is None else results
        todo = enumerate(publications)

        async def lane() -> None:
            for position, publication in todo:
                try:
                    await self.send(publication)
                    done[position] = None
                except AmqpJobsError as error:
                    done[position] = error

        async with asyncio.TaskGroup() as group:
            for _ in range(WINDOW):
                group.create_task(lane())
        return done

    def _drop(self, session: Session, channel: Channel) -> None:
        if not channel.is_closed:
            session.fail(UnconfirmedError("The broker confirmed nothing within the deadline."))

    async def _open_channel(self) -> tuple[Session, Channel]:
        """One on which the broker takes publications now."""
        while True:
            live = self._live()
            if live is None:
                async with self._opening:
                    live = self._live() or await self._opened()
            if live is not None and not live[0].blocked:
                return live
            if live is not None:
                await live[0].unblocked()

    def _live(self) -> tuple[Session, Channel] | None:
        if self._session is None or self._channel is None:
            return None
        return (self._session, self._channel) if self._session.is_open and not self._channel.is_closed else None

    async def _opened(self) -> tuple[Session, Channel] | None:
        """None when the session ended meanwhile: then there will be another."""
        session = await self._link.session()
        try:
            channel = await session.channel(confirms=True)
        except (*CLIENT_ERRORS, BrokerUnavailableError) as error:
            if not session.is_open:
                return None
            raise BrokerUnavailableError(f"No channel could be opened: {error!r}") from error
        self._session, self._channel = session, channel
        return session, channel


def _properties(own: Properties) -> aiormq.spec.Basic.Properties:
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


def check_size(publication: Publication, longest_body: int) -> None:
    """What would cost the connection is not sent. Raises TooLargeError."""
    size = table_size(publication.properties.headers)
    if size > LONGEST_HEADERS:
        raise TooLargeError(
            f"The headers of {_what(publication)} need {size} bytes; all must fit one frame, "
            f"so {LONGEST_HEADERS} are the most."
        )
    if len(publication.body) > longest_body:
        raise TooLargeError(
            f"The body of {_what(publication)} has {len(publication.body)} bytes, and {longest_body} are the most. "
            "Keep what is large in a store of its own and enqueue its address, or raise AMQPJOBS_MAX_BODY "
            "(RabbitMQ 4 takes 16 MiB at most)."
        )


def _failed(publication: Publication, error: BaseException) -> EnqueueError:
    what = _what(publication)
    if isinstance(error, aiormq.exceptions.ChannelAccessRefused):
        return RefusedError(f"The broker refused {what}: {error}. Give the user write on that exchange.")
    if isinstance(error, aiormq.exceptions.ChannelNotFoundEntity):
        return UnroutableError(
            f"{what.capitalize()} has nowhere to go: {error}. Start its worker once, or run "
            "`amqpjobs topology apply` for the service that handles it."
        )
    if isinstance(error, aiormq.exceptions.ChannelPreconditionFailed) and "message size" in str(error):
        return TooLargeError(f"The broker takes no message as large as {what}: {error}")
    return UnconfirmedError(
        f"The connection was lost before {what} was confirmed ({error!r}): it may be queued or not. "
        "Enqueue it again under the same job_id."
    )


def is_forbidden(error: BaseException | None) -> bool:
    """Whether the user may not publish there, so that whatever else goes there will be refused, too."""
    return error is not None and isinstance(error.__cause__, aiormq.exceptions.ChannelAccessRefused)


def _unroutable(publication: Publication) -> UnroutableError:
    return UnroutableError(
        f"No queue is bound for {_what(publication)} on exchange {publication.exchange!r}. Start its worker once, "
        "or run `amqpjobs topology apply` for the service that handles it, or enqueue with "
        'on_unroutable="park" to let it wait.'
    )


def _what(publication: Publication) -> str:
    return f"job {publication.properties.kind!r}"
