"""Only one of us: a lease that goes with a connection. The states are drawn in docs/lease.md.

The lease is a quorum queue with a single active consumer. Every candidate consumes it, and
publishes a token into it once a `pulse`; the broker hands tokens to one consumer only, so who
gets one knows that it holds the lease. When the holder's connection closes, or the broker
closes it for missed heartbeats, the next candidate gets the token that was held last, and
those that come.

Nobody who lost the lease can act by it, as long as it acts on the connection that held it: the
broker no longer listens there. So the lease gives a `Session`, and what the holder publishes
goes out on that one or not at all (`OneSession`). A holder that no longer gets its own tokens
back gives up the session by itself.
"""

import asyncio
from typing import cast

from amqpjobs.amqp.connection import CLIENT_ERRORS, OneSession, Session
from amqpjobs.amqp.consumer import Consumer, consume
from amqpjobs.amqp.declare import told_of_consuming
from amqpjobs.amqp.publisher import Publisher
from amqpjobs.clock import end_task
from amqpjobs.envelope import new_id
from amqpjobs.errors import AmqpJobsError, BrokerUnavailableError
from amqpjobs.topology import LEASE_LENGTH, Route
from amqpjobs.wire import Delivery, Properties, Publication

#: Seconds between two tokens of a candidate.
PULSE = 0.5
#: A token is a word and no more.
LONGEST_TOKEN = 1024


class Lease:
    """One candidate. It holds the lease on one session at most."""

    def __init__(self, queue: str, route: Route, *, patience: float, pulse: float = PULSE) -> None:
        """A holder that hears nothing of the broker for `patience` seconds gives up its session."""
        self._queue = queue
        self._route = route
        self._patience = patience
        self._pulse = pulse
        self._candidacy: _Candidacy | None = None
        self._pulsing: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    @property
    def is_held(self) -> bool:
        """Whether we hold it, as far as we have heard."""
        candidacy = self._candidacy
        return candidacy is not None and candidacy.is_held and candidacy.session.is_open

    async def campaign(self, session: Session) -> None:
        """Become a candidate on this session, for as long as it lasts. For a link's `prepare`.

        Raises AccessRefusedError when one may not read the queue.
        """
        await self.withdraw()
        candidacy = _Candidacy(session, self._route, self._patience, self._changed)
        with told_of_consuming():
            await candidacy.begin(self._queue)
        self._candidacy = candidacy
        if candidacy.is_held:  # a token came before we knew that we consume
            self._changed.set()
        self._pulsing = asyncio.create_task(candidacy.pulse(self._pulse), name=f"amqpjobs lease {self._queue}")

    async def won(self) -> Session:
        """Wait until we hold the lease; the session it is held on. It is lost when that has `ended`."""
        while True:
            if self.is_held:
                return cast("_Candidacy", self._candidacy).session
            self._changed.clear()
            await self._changed.wait()

    async def withdraw(self) -> None:
        """Send no more tokens. The lease itself goes with the session."""
        pulsing, self._pulsing, self._candidacy = self._pulsing, None, None
        if pulsing is not None:
            await end_task(pulsing)


class _Candidacy:
    """A candidate on one session."""

    def __init__(self, session: Session, route: Route, patience: float, changed: asyncio.Event) -> None:
        self.session = session
        self.is_held = False
        self._publisher = Publisher(OneSession(session), longest_body=LONGEST_TOKEN)
        self._route = route
        self._patience = patience
        self._changed = changed
        self._tokens: list[Delivery] = []
        self._heard = _now()
        self._consumer: Consumer | None = None

    async def begin(self, queue: str) -> None:
        self._consumer = await consume(
            self.session, queue=queue, name=queue, prefetch=LEASE_LENGTH, on_delivery=self._received
        )

    async def pulse(self, seconds: float) -> None:
        """Send tokens, let go of those that came, and give up the session when it is of no use any more."""
        try:
            while self.session.is_open:
                if self.session.blocked:
                    await self.session.unblocked()
                    self._heard = _now()  # nothing of ours could come back meanwhile
                await self._send()
                await self._let_go()
                self._check()
                await asyncio.sleep(seconds)
        except (AmqpJobsError, *CLIENT_ERRORS, TimeoutError) as error:
            self.session.fail(error)

    def _received(self, token: Delivery) -> None:
        self._heard = _now()
        self._tokens.append(token)
        if not self.is_held:
            self.is_held = True
            self._changed.set()

    async def _send(self) -> None:
        token = Publication(
            exchange=self._route.exchange,
            routing_key=self._route.key,
            body=b"",
            properties=Properties(kind="token", message_id=new_id()),
        )
        try:
            async with asyncio.timeout(self._patience):
                await self._publisher.send(token)
        except TimeoutError:
            if not self.session.blocked:
                raise

    async def _let_go(self) -> None:
        """All but the last one: that is handed to the next holder at once when we are gone."""
        spent, self._tokens = self._tokens[:-1], self._tokens[-1:]
        for token in spent:
            await token.settler.ack(token.tag)

    def _check(self) -> None:
        if self.is_held and not self.session.blocked and _now() - self._heard > self._patience:
            raise BrokerUnavailableError(
                f"The lease {self._route.key!r} was not heard of for {self._patience:g} s, so it is given up."
            )


def _now() -> float:
    return asyncio.get_running_loop().time()
