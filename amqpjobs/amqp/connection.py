"""A connection that comes back, and the only owner of reconnection.

A `Link` keeps one AMQP connection open for as long as it is entered. When the connection is
lost, for whatever reason, it is opened again with a jittered backoff and its `prepare` makes
everything anew: channels, declares, consumers. A channel that dies takes its session down:
one way to be rebuilt, and that one is used every day.
"""

import asyncio
import contextlib
import functools
import logging
import random
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import TracebackType
from typing import Protocol, Self, cast

import aio_pika
import aiormq
import aiormq.exceptions
from aiormq.abc import AbstractConnection
from aiormq.channel import Channel

from amqpjobs.amqp.lane import AROUND, UNLIMITED, Lane
from amqpjobs.amqp.transport import GuardedTransport
from amqpjobs.amqp.waits import Waits
from amqpjobs.clock import end_task, is_cancelled
from amqpjobs.errors import AccessRefusedError, BrokerError, BrokerUnavailableError
from amqpjobs.events import ConnectionBlocked, ConnectionLost, ConnectionOpened, ConnectionUnblocked, Events
from amqpjobs.settings import Settings, host_name, masked

_log = logging.getLogger(__name__)

#: Frames the library holds for a channel before its reader waits for it.
FRAME_BUFFER = 256

#: Seconds that a new connection has to make what is needed. The delay levels take some, on a slow broker many.
PREPARE_WITHIN = 120.0

#: What the client library raises when a connection or channel is refused or gone.
CLIENT_ERRORS = (
    aiormq.exceptions.AMQPError,
    aiormq.exceptions.ChannelInvalidStateError,
    ConnectionError,
    OSError,
)


class Session:
    """One live connection. It ends once, and everything made on it ends with it."""

    def __init__(self, connection: AbstractConnection, transport: GuardedTransport) -> None:
        self._connection = connection
        self._transport = transport
        #: What passes by the client library; None: nothing does.
        self.lane: Lane | None = transport.lane
        if self.lane is not None:
            frame_max = connection.connection_tune.frame_max
            self.lane.longest = frame_max - AROUND if frame_max else UNLIMITED
        #: Channels that are closed on purpose.
        self._released = set[Channel]()
        self._failure: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        closing_of(connection).add_done_callback(self._on_closed)
        #: Around what waits for room on the connection; raises BrokerUnavailableError when it ends.
        self.waits = Waits()
        #: Set while publications are taken, and when it has ended.
        self._flowing = asyncio.Event()
        self._flowing.set()
        #: Why the broker takes no publications; "" while it takes them.
        self.blocked = ""
        #: Since when it is as it is, by the loop's clock.
        self.since = _now()
        transport.on_blocked = self._told_blocked
        #: Called when it was blocked, and with the seconds that took when it no longer is.
        self.on_blocked: Callable[[str], None] = lambda reason: None
        self.on_unblocked: Callable[[float], None] = lambda seconds: None

    @property
    def is_open(self) -> bool:
        return not self._failure.done()

    @property
    def broker(self) -> str:
        """What the broker says it is: "RabbitMQ 4.0.5"."""
        properties = self._connection.server_properties or {}
        return f"{properties.get('product')!s} {properties.get('version')!s}"

    @property
    def information(self) -> str:
        """What it says about itself beside that."""
        return str((self._connection.server_properties or {}).get("information", ""))

    async def unblocked(self) -> None:
        """Wait while the broker takes no publications, but not beyond the session's end."""
        await self._flowing.wait()

    async def channel(self, *, confirms: bool) -> Channel:
        """A channel of its own; when it closes, the session fails."""
        channel = await self._open(confirms=confirms)
        closing_of(channel).add_done_callback(functools.partial(self._on_channel_closed, channel))
        return channel

    async def release(self, channel: Channel) -> None:
        """Close one of them, after what was said on it; the session goes on."""
        self._released.add(channel)
        if self.lane is not None:
            self.lane.finish()
        if not channel.is_closed:
            await _closed(channel)
        if not channel.is_closed:
            self.fail(BrokerUnavailableError("The broker did not answer the close of a channel."))

    @contextlib.asynccontextmanager
    async def scratch(self, *, confirms: bool = True) -> AsyncGenerator[Channel]:
        """A channel that may be lost: declares that are refused close theirs, and no other."""
        channel = await self._open(confirms=confirms)
        try:
            yield channel
        finally:
            if not channel.is_closed:
                await _closed(channel)

    def fail(self, error: BaseException | None) -> None:
        """End the session; the link opens a new one."""
        if not self._failure.done():
            self._failure.set_result(error)
            self._flowing.set()
            self.waits.end()

    async def ended(self) -> BaseException | None:
        """Wait for its end; what ended it."""
        return await asyncio.shield(self._failure)

    async def close(self) -> None:
        """Close the connection in good order, or drop it when it does not answer."""
        self.fail(None)
        if self.lane is not None:
            self.lane.finish()
        try:
            with contextlib.suppress(*CLIENT_ERRORS, TimeoutError):
                await asyncio.wait_for(self._connection.close(), 5)
        finally:
            self._transport.abort()
        # The library did not come to its end when it was interrupted: whoever waits on a channel must hear of it.
        with contextlib.suppress(*CLIENT_ERRORS, TimeoutError):
            await asyncio.wait_for(self._connection.close(), 1)

    async def _open(self, *, confirms: bool) -> Channel:
        try:
            channel = await self._connection.channel(publisher_confirms=confirms, frame_buffer_size=FRAME_BUFFER)
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            raise BrokerUnavailableError("The connection was closed while a channel was opened.") from error
        except RuntimeError as error:  # what the library says of a closed connection; no more than here
            raise BrokerUnavailableError(f"The connection is closed ({error}).") from error
        return cast("Channel", channel)

    def _told_blocked(self, reason: str | None) -> None:
        before, self.blocked = self.blocked, "" if reason is None else reason or "no reason given"
        if bool(before) == bool(self.blocked) or not self.is_open:
            return
        since, self.since = self.since, _now()
        if self.blocked:
            self._flowing.clear()
            self.on_blocked(self.blocked)
        else:
            self._flowing.set()
            self.on_unblocked(self.since - since)

    def _on_channel_closed(self, channel: Channel, closing: "asyncio.Future[object]") -> None:
        if channel in self._released:
            self._released.discard(channel)
        else:
            self._on_closed(closing)

    def _on_closed(self, closing: "asyncio.Future[object]") -> None:
        self.fail(None if closing.cancelled() else closing.exception())


class Line(Protocol):
    """Where sessions come from, as those see it who publish."""

    @property
    def is_up(self) -> bool: ...
    @property
    def blocked(self) -> str: ...
    @property
    def last_error(self) -> BaseException | None: ...

    async def session(self) -> Session: ...


class OneSession:
    """A line that is never renewed: what is sent on it goes out on this connection, or not at all."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.last_error: BaseException | None = None

    @property
    def is_up(self) -> bool:
        return self._session.is_open

    @property
    def blocked(self) -> str:
        return self._session.blocked if self.is_up else ""

    async def session(self) -> Session:
        """Raises BrokerUnavailableError when it has ended."""
        if not self._session.is_open:
            raise BrokerUnavailableError("The connection was lost, and nothing may be sent on another one.")
        return self._session


async def _closed(channel: Channel) -> None:
    # In a task of its own: cancelled amid it, the library says the close again, and that costs the connection.
    closing = asyncio.create_task(channel.close(timeout=5))
    while not closing.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([closing])
    # A cancellation is also what the library says when the connection ends meanwhile.
    with contextlib.suppress(*CLIENT_ERRORS, TimeoutError, asyncio.CancelledError):
        closing.result()
    if is_cancelled():  # of which the library may have made another error
        raise asyncio.CancelledError


def _now() -> float:
    return asyncio.get_running_loop().time()


def closing_of(closable: AbstractConnection | Channel) -> "asyncio.Future[object]":
    """Done when it is closed; the library leaves its type open."""
    return cast("asyncio.Future[object]", closable.closing)  # pyright: ignore[reportUnknownMemberType]


Prepare = Callable[[Session], Awaitable[None]]


class Link:
    """Keeps a session open. `prepare` makes what each new session needs before others see it."""

    def __init__(self, role: str, settings: Settings, events: Events, prepare: Prepare) -> None:
        self._role = role
        self._settings = settings
        self._events = events
        self._prepare = prepare
        self._live: asyncio.Future[Session] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._has_been_up = False
        #: Since when there is no live session, by the loop's clock; None: nobody has noticed that yet.
        self._down_since: float | None = None
        #: Why the last attempt to connect failed, for those who waited in vain.
        self.last_error: BaseException | None = None

    async def __aenter__(self) -> Self:
        self._live = _future()
        self._down_since = _now()
        self._keeper = asyncio.create_task(self._keep(self._live), name=f"amqpjobs {self._role} link")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            await end_task(keeper)
        if self._live is not None and not self._live.done():
            self._live.set_exception(self._closed())
        self._live = None

    @property
    def is_up(self) -> bool:
        """Whether there is a live session."""
        live = self._live
        return live is not None and live.done() and live.exception() is None and live.result().is_open

    @property
    def absence(self) -> str:
        """For how long there has been no live session, and why, without a password; "" when there is one."""
        if self.is_up:
            return ""
        seconds = 0.0 if self._down_since is None else _now() - self._down_since
        why = f" ({_shown(self.last_error)})" if self.last_error is not None else ""
        return f"not connected to {self._settings.shown_url}: reconnecting since {seconds:.0f} s{why}"

    @property
    def blocked(self) -> str:
        """Why the broker takes no publications on the live session; "" when it takes them, or there is none."""
        return self._live.result().blocked if self._live is not None and self.is_up else ""

    async def session(self) -> Session:
        """The live session, as soon as there is one. Callers bound the wait.

        Raises AccessRefusedError or TopologyMismatchError when an attempt ended with one:
        waiting would not mend it. The link itself goes on trying.
        """
        while self._live is not None:
            session = await asyncio.shield(self._live)
            if session.is_open:
                return session
            await asyncio.sleep(0)  # it has just ended, and its keeper takes note in a moment
        raise self._closed()

    async def first_session(self) -> Session:
        """As `session`, but with the default URL also raises when nobody answers there."""
        if not self._settings.is_default_url:
            return await self.session()
        while not self.is_up:
            if isinstance(self.last_error, BrokerUnavailableError):
                raise self.last_error
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    return await self.session()
        return await self.session()

    async def _keep(self, live: "asyncio.Future[Session]") -> None:
        failures = 0
        while True:
            url = self._settings.urls[failures % len(self._settings.urls)]
            # In no variable of this loop: its traceback holds the whole connection, for as long as the next one lives.
            self.last_error = await self._live_once(url, live)
            if live.done():  # it had been up, or waiters were told why not
                failures = 0 if live.exception() is None else failures
                live = self._renewed(live)
            pause = self._pause(failures)
            failures += 1
            self._events.emit(ConnectionLost(self._role, masked(url), self.last_error, pause))
            await asyncio.sleep(pause)

    async def _live_once(self, url: str, live: "asyncio.Future[Session]") -> BaseException | None:
        """Open one session and wait for its end. What ended it."""
        session: Session | None = None
        try:
            session = await open_session(url, self._settings, self._role)
            self._tell_of_blocking(session, masked(url))
            await self._prepared(session, url)
            if session.is_open:
                live.set_result(session)
                self.last_error = self._down_since = None
                self._events.emit(ConnectionOpened(self._role, masked(url), session.broker, self._has_been_up))
                self._has_been_up = True
            error = await session.ended()
            self._down_since = self._down_since or _now()
            self._renewed(live)  # before its close, which may take seconds: who comes now waits for the next one
            return error
        except BrokerError as error:
            if not isinstance(error, BrokerUnavailableError) and not live.done():
                live.set_exception(error)
            return error
        except (*CLIENT_ERRORS, TimeoutError) as error:
            return told(error, url)
        except Exception as error:  # a bug must not end the only one who reconnects
            _log.exception("The %s connection could not be set up", self._role)
            return error
        finally:
            if session is not None:
                await session.close()

    def _renewed(self, live: "asyncio.Future[Session]") -> "asyncio.Future[Session]":
        """The future of the next session, if this one's has been told."""
        if live.done() and self._live is live:
            self._live = _future()
        return self._live or live

    async def _prepared(self, session: Session, url: str) -> None:
        """Bounded: a broker may send heartbeats and answer nothing."""
        deadline = asyncio.timeout(PREPARE_WITHIN)
        try:
            async with deadline:
                await self._prepare(session)
        except (*CLIENT_ERRORS, BrokerUnavailableError) as error:
            if deadline.expired():  # the library makes what it likes of a cancellation
                raise told(TimeoutError(), url) from error
            raise

    def _tell_of_blocking(self, session: Session, url: str) -> None:
        emit, role = self._events.emit, self._role
        session.on_blocked = lambda reason: emit(ConnectionBlocked(role, url, reason))
        session.on_unblocked = lambda seconds: emit(ConnectionUnblocked(role, url, seconds))

    def _pause(self, failures: int) -> float:
        # Half of it chance, so that a thousand workers do not come back at once.
        longest = min(self._settings.reconnect_cap, 0.25 * 2.0 ** min(failures, 16))
        return longest * random.uniform(0.5, 1.0)

    def _closed(self) -> BrokerUnavailableError:
        return BrokerUnavailableError(f"The {self._role} connection is not open.")


def _future() -> "asyncio.Future[Session]":
    future: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
    # Nobody may be waiting; an error that nobody reads is no news then.
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


async def open_session(url: str, settings: Settings, role: str) -> Session:
    """Connect once. Raises BrokerUnavailableError or AccessRefusedError."""
    guard = GuardedTransport(fast_lane=settings.fast_lane)
    try:
        async with asyncio.timeout(settings.connect_timeout):
            connection = await _opened(url, settings, role, guard)
    except (*CLIENT_ERRORS, TimeoutError, ssl.SSLError) as error:
        raise told(error, url) from error
    return Session(connection, guard)


async def _opened(url: str, settings: Settings, role: str, guard: GuardedTransport) -> AbstractConnection:
    wrapper = aio_pika.Connection(
        aio_pika.connection.make_url(url, heartbeat=settings.heartbeat),
        ssl_context=_tls(settings) if url.startswith("amqps:") else None,
        client_properties={"product": "amqpjobs", "connection_name": f"amqpjobs {role} on {host_name()}"},
    )
    wrapper.kwargs["transport_factory"] = guard
    try:
        await wrapper.connect()
    finally:
        # We keep what it wraps. Not closed itself, its finalizer would see to that: in whatever thread collects it,
        # by a task on an event loop that it makes there and nobody runs.
        transport, wrapper.transport = wrapper.transport, None
        await wrapper.close()
    assert transport is not None
    return transport.connection


def told(error: BaseException, url: str) -> BrokerError:
    """An error of the client library in our words, with what to do about it."""
    place = masked(url)
    words = _words(error)
    refused = (
        aiormq.exceptions.ProbableAuthenticationError,
        aiormq.exceptions.AuthenticationError,
        aiormq.exceptions.ConnectionNotAllowed,
        aiormq.exceptions.ChannelAccessRefused,
    )
    if isinstance(error, refused) or "ACCESS_REFUSED" in words or "NOT_ALLOWED" in words:
        return AccessRefusedError(
            f"The broker at {place} refused us: {words}. Check user, password, vhost and permissions in AMQPJOBS_URL."
        )
    if isinstance(error, TimeoutError):
        words = "it did not answer in time"
    return BrokerUnavailableError(f"No connection to the broker at {place}: {words}.")


def _shown(error: BaseException) -> str:
    """An error in few words; only of our own it is known that they have no secret in them."""
    return str(error) if isinstance(error, BrokerError) else type(error).__name__


def _words(error: BaseException) -> str:
    if isinstance(error, aiormq.exceptions.ConnectionClosed | aiormq.exceptions.ChannelClosed) and error.args:
        return " ".join(str(each) for each in error.args if each)
    return (str(error) or type(error).__name__).rstrip(".")


def _tls(settings: Settings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.tls_cafile)
    if settings.tls_certfile is not None:
        context.load_cert_chain(settings.tls_certfile, settings.tls_keyfile)
    return context
