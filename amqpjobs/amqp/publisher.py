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
from functools import partial

import aiormq.exceptions

from amqpjobs.amqp.confirms import Confirms, Refused, Returned, confirms_of
from amqpjobs.amqp.connection import CLIENT_ERRORS, Line, Session
from amqpjobs.errors import (
    AmqpJobsError,
    BrokerUnavailableError,
    EnqueueError,
    RefusedError,
    TooLargeError,
    UnconfirmedError,
    UnroutableError,
)
from amqpjobs.wire import Publication, table_size

#: Publishes under way at once in `send_all`.
WINDOW = 200
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
        self._channel: Confirms | None = None
        self._opening = asyncio.Lock()
        self._confirmed = 0

    @property
    def unconfirmed(self) -> int:
        """Messages whose answer is still to come."""
        channel = self._channel
        return 0 if channel is None else channel.unconfirmed

    async def send(self, publication: Publication) -> None:
        """Publish and wait for the confirm. Callers bound the wait.

        Raises UnroutableError, RefusedError, TooLargeError, UnconfirmedError, and what
        `Link.session` raises.
        """
        check_size(publication, self._longest_body)
        session, channel = await self._open_channel()
        watch = _Watch(session, self._confirmed)
        answer: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        channel.publish(publication, partial(self._hear, answer))
        try:
            error = await answer
        except asyncio.CancelledError:
            self._drop_if_stuck(watch, channel)
            raise
        if error is not None:
            raise _told(publication, error) from error

    async def send_all(
        self, publications: Iterable[Publication], results: dict[int, BaseException | None] | None = None
    ) -> dict[int, BaseException | None]:
        """Publish them pipelined, in their order. Callers bound the wait.

        The results are by position: what went wrong, or None. Who passes the dictionary has
        those known so far also when the wait is cut short.
        """
        done = {} if results is None else results
        under_way = _UnderWay()
        live: tuple[Session, Confirms] | None = None
        for position, publication in enumerate(publications):
            try:
                check_size(publication, self._longest_body)
                live = self._flowing() or await self._open_channel()
            except AmqpJobsError as error:
                done[position] = error
                continue
            under_way.begin()
            live[1].publish(publication, partial(self._note, done, under_way, position, publication))
            if under_way.count >= WINDOW:
                await self._wait_for(under_way, WINDOW // 2, *live)
        if live is not None:
            await self._wait_for(under_way, 0, *live)
        return done

    def _hear(self, answer: "asyncio.Future[BaseException | None]", error: BaseException | None) -> None:
        self._confirmed += _is_answer(error)
        if not answer.done():  # nobody waits for it any more
            answer.set_result(error)

    def _note(
        self,
        done: dict[int, BaseException | None],
        under_way: "_UnderWay",
        position: int,
        publication: Publication,
        error: BaseException | None,
    ) -> None:
        """One of many has its answer."""
        if error is None:
            self._confirmed += 1
            done[position] = None
        else:
            self._confirmed += _is_answer(error)
            told = _told(publication, error)
            told.__cause__ = error  # before it is handed over: some look at the cause
            done[position] = told
        under_way.end()

    async def _wait_for(self, under_way: "_UnderWay", most: int, session: Session, channel: Confirms) -> None:
        """Until no more than so many are under way."""
        watch = _Watch(session, self._confirmed)
        try:
            await under_way.until(most)
        except asyncio.CancelledError:
            self._drop_if_stuck(watch, channel)
            raise

    def _drop_if_stuck(self, watch: "_Watch", channel: Confirms) -> None:
        session = watch.session
        waited = asyncio.get_running_loop().time() - max(watch.started, session.since)
        is_silent = self._confirmed == watch.confirmed and waited > STUCK_AFTER
        if is_silent and not session.blocked and not channel.is_closed:
            session.fail(UnconfirmedError("The broker confirmed nothing within the deadline."))

    async def _open_channel(self) -> tuple[Session, Confirms]:
        """One on which the broker takes publications now."""
        while True:
            live = self._live()
            if live is None:
                async with self._opening:
                    live = self._live() or await self._opened()
            if live is None:
                continue
            session, channel = live
            if session.blocked:
                await session.unblocked()
            elif not channel.has_room:
                await channel.room()
            else:
                return live

    def _flowing(self) -> tuple[Session, Confirms] | None:
        """The one there is, if it takes publications without any wait."""
        live = self._live()
        return live if live is not None and live[1].has_room and not live[0].blocked else None

    def _live(self) -> tuple[Session, Confirms] | None:
        if self._session is None or self._channel is None:
            return None
        return (self._session, self._channel) if self._session.is_open and not self._channel.is_closed else None

    async def _opened(self) -> tuple[Session, Confirms] | None:
        """None when the session ended meanwhile: then there will be another."""
        if self._session is not None and self._session.is_open and self._channel is not None:
            await self._session.ended()  # as it does when a channel closes: the next one would be lost with it
        session = await self._link.session()
        try:
            channel = await session.channel(confirms=True)
        except Exception as error:
            if not session.is_open:
                return None
            if isinstance(error, (*CLIENT_ERRORS, BrokerUnavailableError)) or type(error) is Exception:
                raise BrokerUnavailableError(f"No channel could be opened: {error!r}") from error
            raise
        self._session, self._channel = session, confirms_of(session, channel)
        return session, self._channel


class _UnderWay:
    """How many publishes of one call have no answer yet."""

    def __init__(self) -> None:
        self.count = 0
        self._most = -1
        self._few = asyncio.Event()

    def begin(self) -> None:
        self.count += 1

    def end(self) -> None:
        self.count -= 1
        if self.count <= self._most:
            self._few.set()

    async def until(self, most: int) -> None:
        """Wait until there are no more than so many."""
        self._few.clear()
        self._most = most
        if self.count > most:
            await self._few.wait()


class _Watch:
    """What there was when somebody began to wait."""

    def __init__(self, session: Session, confirmed: int) -> None:
        self.session = session
        self.confirmed = confirmed
        self.started = asyncio.get_running_loop().time()


def _is_answer(error: BaseException | None) -> bool:
    """Whether the broker said anything of the message itself."""
    return error is None or isinstance(error, Returned | Refused)


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


def _told(publication: Publication, error: BaseException) -> EnqueueError:
    """What a channel tells of a message, in words for who sent it."""
    what = _what(publication)
    if isinstance(error, Returned):
        return _unroutable(publication)
    if isinstance(error, Refused):
        return RefusedError(f"The broker refused {what}: a queue it goes to is full or cannot take it now.")
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
