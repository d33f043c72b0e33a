"""The broker itself: a port, its users and vhosts, and the time."""

import asyncio
from datetime import timedelta
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import quote

from amqpjobs.devbroker.connection import Connection
from amqpjobs.devbroker.definitions import Definitions, import_definitions
from amqpjobs.devbroker.directory import Directory
from amqpjobs.devbroker.errors import Code, RefusedError
from amqpjobs.devbroker.memory import Memory
from amqpjobs.devbroker.profile import Profile
from amqpjobs.devbroker.profile import profile as find_profile
from amqpjobs.devbroker.timers import Clock, RealClock, Timers
from amqpjobs.devbroker.users import Permissions, User

_MIB = 1024 * 1024
_GOODBYE = "broker forced connection closure with reason 'shutdown'"


class Stock(NamedTuple):
    """The messages of a queue."""

    #: Those that wait.
    ready: int
    #: Those that consumers have and did not settle.
    lent: int


class Broker:
    """An AMQP 0-9-1 server on a TCP port, for development and tests.

    An async context manager; inside, `url` leads to it. `profile` is the RabbitMQ version to behave like:
    "3.10", "4.0" (the default) or "4.3". `port` 0, the default, is any free one. There is one vhost, `/`,
    and one user, with every permission: guest, or another that is given. Above `memory_limit` bytes of messages,
    1 GiB by default, publishers are not read from. A delivery that is not settled within `consumer_timeout`
    seconds, 30 minutes by default, ends its channel or, from a quorum queue of 4.3, its consumer; None lets them
    hold it for ever. Everything is in memory: what is durable survives `restart`, and nothing survives the process.
    """

    def __init__(
        self,
        *,
        profile: str | Profile = "4.0",
        host: str = "127.0.0.1",
        port: int = 0,
        user: str = "guest",
        password: str = "guest",
        clock: Clock | None = None,
        memory_limit: int = 1024 * _MIB,
        consumer_timeout: float | None = 1800.0,
    ) -> None:
        self.profile = find_profile(profile) if isinstance(profile, str) else profile
        self._host = host
        self._port = port
        self._user, self._password = user, password
        self._timers = Timers(clock or RealClock())
        self._directory = Directory(self.profile, self._timers, Memory(memory_limit), consumer_timeout)
        self._server: asyncio.Server | None = None
        self.add_vhost("/")
        self.add_user(user, password)

    @property
    def port(self) -> int:
        """Where it listens; 0 before it does, if it was not told."""
        return self._port

    @property
    def url(self) -> str:
        return self.url_of(self._user, self._password)

    def url_of(self, user: str, password: str, vhost: str = "/") -> str:
        """For another user or vhost."""
        # A path of `/` is the vhost `/` to some clients, and one without a name to librabbitmq; no path is `/` to all.
        path = "" if vhost == "/" else f"/{quote(vhost, safe='')}"
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"amqp://{quote(user, safe='')}:{quote(password, safe='')}@{host}:{self._port}{path}"

    def add_vhost(self, name: str) -> None:
        """Does nothing if there is one of that name. The first user may use it."""
        self._directory.add_vhost(name)
        if (first := self._directory.users.get(self._user)) is not None:
            first.permissions.setdefault(name, Permissions())

    def add_user(self, name: str, password: str, *, vhost: str = "/", permissions: Permissions | None = None) -> None:
        """Again for each further vhost. Without `permissions` everything is allowed."""
        user = self._directory.users.setdefault(name, User(name, password))
        user.password = password
        user.permissions[vhost] = permissions or Permissions()

    def import_definitions(self, definitions: Definitions) -> None:
        """Make what `rabbitmqctl import_definitions` makes of exchanges, queues and bindings, at once."""
        import_definitions(self._directory.vhosts, definitions)

    def stock(self, queue: str, vhost: str = "/") -> Stock | None:
        """What a queue holds now; None if there is no such queue."""
        found = self._directory.vhosts[vhost].queues.get(queue)
        return None if found is None else Stock(len(found.backlog), found.lent)

    def set_consumer_timeout(self, queue: str, seconds: float | None, vhost: str = "/") -> None:
        """Another one for those who consume from this queue from now on; None lets them hold messages for ever."""
        self._directory.vhosts[vhost].queues[queue].consumer_timeout = seconds

    @property
    def next_due(self) -> float | None:
        """When the next TTL, expiry or timeout is due, by the broker's clock; None if nothing waits for the time."""
        return self._timers.next_due

    async def start(self) -> None:
        """Listen. Does nothing if it does."""
        if self._server is not None:
            return
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self._directory), self._host, self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        self._timers.start(loop)

    async def stop(self) -> None:
        """Tell the clients, and stop listening. Any number of times."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        await self.drop_connections()
        self._timers.stop()
        await server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def advance(
        self, seconds: float = 0.0, *, minutes: float = 0.0, hours: float = 0.0, days: float = 0.0
    ) -> None:
        """Move time on: every TTL and expiry fires, in order, each at its own moment, before this returns.

        What clients have sent is not waited for; what they are sent is on its way.
        """
        self._timers.advance(timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds())
        await asyncio.sleep(0)

    async def advance_to(self, moment: float) -> None:
        """The same, to a moment of the broker's clock, such as `next_due`."""
        self._timers.advance_to(moment)
        await asyncio.sleep(0)

    async def cut_connections(self) -> None:
        """End all connections without a word, as when a cable is pulled or a client dies."""
        for connection in list(self._directory.connections):
            connection.abort()
        await self._directory.is_deserted.wait()

    def cut_holders(self, queue: str, vhost: str = "/") -> None:
        """End the connections of consumers that hold messages of this queue, as `cut_connections` ends all."""
        self._directory.vhosts[vhost].queues[queue].cut_holders()

    def lose_next_confirm(self) -> None:
        """The next message to be confirmed is taken, but its connection ends without a word before the confirm."""
        self._directory.lost_confirms += 1

    async def drop_connections(self) -> None:
        """Close all connections, with RabbitMQ's words for a shutdown, and see that they are gone."""
        for connection in list(self._directory.connections):
            connection.close(RefusedError(Code.CONNECTION_FORCED, _GOODBYE))
        await self._directory.is_deserted.wait()

    async def restart(self) -> None:
        """As if the broker had been stopped and started: what is not durable is gone, and so are connections."""
        await self.stop()
        for vhost in self._directory.vhosts.values():
            vhost.forget_transient()
        await self.start()
