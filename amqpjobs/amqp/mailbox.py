"""A queue of this process's own, for the answers to its jobs.

It lives longer than a connection: with each new one it is declared again, under the same name, and
consumed again, and what came meanwhile is there. Only when nobody has consumed it for a while the
broker deletes it, which is what becomes of the queue of a process that was killed.

It is none of the things that a connection needs: it is opened when somebody first asks for its
address, and while it cannot be had, all else goes on.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from contextvars import Context
from secrets import token_hex

from amqpjobs.amqp.connection import CLIENT_ERRORS, Line, Session
from amqpjobs.amqp.consumer import Consumer, consume
from amqpjobs.amqp.declare import Declarer
from amqpjobs.clock import end_task
from amqpjobs.errors import BrokerError, BrokerUnavailableError
from amqpjobs.events import Events, MailboxClosed, MailboxFailed, MailboxOpened
from amqpjobs.topology import Topology
from amqpjobs.wire import Delivery

_log = logging.getLogger(__name__)

#: Messages lent to us at once.
WINDOW = 200
#: Seconds before the first repeat of a failed try; doubles up to the cap.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
#: Seconds in which its node may come back before another queue takes its place; doubles up to the cap. Of a queue
#: whose node is away 3.10 says so at once, 4.0 and 4.3 say nothing for 65 s.
ABSENT, LONG_ABSENT = 4.0, 60.0
#: Seconds that a goodbye may take.
LAST_WORDS = 2.0


class Mailbox:
    """Opened by the first `address`, and kept open until `close`."""

    def __init__(
        self,
        *,
        line: Line,
        topology: Topology,
        declarer: Declarer,
        events: Events,
        expires: float,
        on_delivery: Callable[[Delivery], object],
    ) -> None:
        self._line = line
        self._topology = topology
        self._declarer = declarer
        self._events = events
        self._expires = expires
        self._on_delivery = on_delivery
        self._name = self._new_name()
        self._session: Session | None = None
        self._consumer: Consumer | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._opening: asyncio.Future[None] | None = None
        #: Since when it could not be declared, by the loop's clock, and how long that is borne.
        self._absent_since: float | None = None
        self._patience = ABSENT

    @property
    def name(self) -> str:
        """Its queue's name, be it open or not."""
        return self._name

    async def address(self) -> str:
        """Its queue's name, as soon as what is sent there arrives. Callers bound the wait.

        Raises what `Link.session` raises, and AccessRefusedError.
        """
        while self._session is None or not self._session.is_open:
            if self._keeper is None or self._keeper.done():
                # In no job's context: it outlives whoever happens to ask first.
                self._keeper = asyncio.create_task(self._keep(), name="amqpjobs mailbox", context=Context())
            self._opening = self._opening or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._opening)
        return self._name

    async def close(self) -> None:
        """Hear nothing more, and delete the queue if the broker can be told."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        session, consumer = self._session, self._consumer
        await end_task(keeper)
        self._tell(BrokerUnavailableError("The mailbox was closed."))
        self._events.emit(MailboxClosed(self._name))
        if session is None or consumer is None or not session.is_open:
            return
        # Else it expires by itself.
        with contextlib.suppress(BrokerError, TimeoutError, *CLIENT_ERRORS):
            async with asyncio.timeout(LAST_WORDS):
                await consumer.cancel()
                await self._declarer.delete_queue(session, self._name, only_if_empty=False)

    async def _keep(self) -> None:
        pause = FIRST_PAUSE
        while True:
            error = await self._live_once()
            if error is not None and not isinstance(error, BrokerUnavailableError):
                self._events.emit(MailboxFailed(self._name, error))
                self._tell(error)
                return
            pause = FIRST_PAUSE if error is None else min(pause * 2, LONGEST_PAUSE)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def _live_once(self) -> Exception | None:
        """Open it and serve what comes until the session ends; why it could not be opened."""
        try:
            session = await self._line.session()
            await session.unblocked()
            waiting = await self._opened(session)
        except BrokerError as error:
            return error
        except (*CLIENT_ERRORS, TimeoutError) as error:
            return BrokerUnavailableError(f"The connection was lost while {self._name!r} was opened ({error!r}).")
        except Exception as error:  # a bug must not be waited out by whoever asks for the address
            _log.exception("The mailbox could not be opened")
            return error
        self._session = session
        self._events.emit(MailboxOpened(self._name))
        self._tell(None)
        serving = asyncio.create_task(self._serve(waiting))
        try:
            await session.ended()
        finally:
            self._session = None
            await end_task(serving)
        return None

    async def _opened(self, session: Session) -> "asyncio.Queue[Delivery]":
        waiting = asyncio.Queue[Delivery]()  # no more than the window, since each is acked after it
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._patience):
                await self._declarer.plan(session, self._topology.replies(self._name, self._expires))
                # On a channel that may be lost: a refused consume costs the connection.
                await self._declarer.check_readable(session, self._name)
        except (BrokerUnavailableError, TimeoutError, *CLIENT_ERRORS):
            if session.is_open and not session.blocked:
                self._note_absence(started)
            raise
        self._absent_since, self._patience = None, ABSENT
        self._consumer = await consume(
            session, queue=self._name, name=self._name, prefetch=WINDOW, on_delivery=waiting.put_nowait
        )
        return waiting

    def _note_absence(self, started: float) -> None:
        """After a while what is in it comes too late, and another queue is as good."""
        self._absent_since = self._absent_since or started
        if asyncio.get_running_loop().time() - self._absent_since >= self._patience:
            self._name, self._absent_since = self._new_name(), None
            self._patience = min(self._patience * 2, LONG_ABSENT)

    async def _serve(self, waiting: "asyncio.Queue[Delivery]") -> None:
        with contextlib.suppress(BrokerUnavailableError):  # what was not acked comes again
            while True:
                delivery = await waiting.get()
                try:
                    self._on_delivery(delivery)
                except Exception:  # the others must come all the same
                    _log.exception("An answer could not be taken")
                await delivery.settler.ack(delivery.tag)

    def _tell(self, error: Exception | None) -> None:
        opening, self._opening = self._opening, None
        if opening is None or opening.done():
            return
        if error is None:
            opening.set_result(None)
        else:
            opening.set_exception(error)
            opening.exception()  # nobody may be waiting any more

    def _new_name(self) -> str:
        return self._topology.reply_queue(token_hex(16))
