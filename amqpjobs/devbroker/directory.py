"""What all connections share: users, vhosts, memory, and what the broker says of itself."""

import asyncio
import logging
from typing import Protocol

from amqpjobs.devbroker.errors import RefusedError
from amqpjobs.devbroker.memory import Memory
from amqpjobs.devbroker.profile import Profile
from amqpjobs.devbroker.table import Field, Table, flag, table, text
from amqpjobs.devbroker.timers import Timers
from amqpjobs.devbroker.users import User
from amqpjobs.devbroker.vhost import VHost

_CAPABILITIES = (
    "publisher_confirms",
    "exchange_exchange_bindings",
    "basic.nack",
    "consumer_cancel_notify",
    "connection.blocked",
    "consumer_priorities",
    "authentication_failure_close",
    "per_consumer_qos",
    "direct_reply_to",
)
_log = logging.getLogger(__name__)


class Link(Protocol):
    """A connection."""

    def close(self, error: RefusedError) -> None: ...

    def abort(self) -> None:
        """End it without a word."""
        ...


class Directory:
    """One broker's."""

    def __init__(self, profile: Profile, timers: Timers, memory: Memory, consumer_timeout: float | None) -> None:
        self.profile = profile
        self.timers = timers
        self.memory = memory
        self._consumer_timeout = consumer_timeout
        self.users: dict[str, User] = {}
        self.vhosts: dict[str, VHost] = {}
        self.connections: dict[Link, None] = {}
        #: How many of the next confirms are lost, each with its connection.
        self.lost_confirms = 0
        self.is_deserted = asyncio.Event()
        self.is_deserted.set()

    def add_vhost(self, name: str) -> None:
        """Does nothing if there is one of that name."""
        if name not in self.vhosts:
            self.vhosts[name] = VHost(name, self.profile, self.timers, self.memory, self._consumer_timeout)

    def enter(self, link: "Link") -> None:
        self.connections[link] = None
        self.is_deserted.clear()

    def forget(self, link: "Link") -> None:
        self.connections.pop(link, None)
        if not self.connections:
            self.is_deserted.set()

    def remove_exclusive(self, link: object) -> None:
        """Delete a connection's own queues."""
        for vhost in self.vhosts.values():
            for queue in [queue for queue in vhost.queues.values() if queue.attributes.owner is link]:
                vhost.remove_queue(queue)

    def server_properties(self) -> Table:
        """It says RabbitMQ, since clients look for that name to know what they may do."""
        said: dict[str, Field] = {
            "capabilities": table(Table({name.encode(): flag(True) for name in _CAPABILITIES})),
            "cluster_name": text("amqpjobs@devbroker"),
            "copyright": text("The authors of amqpjobs"),
            "information": text("Behaves like RabbitMQ, for development and tests; it is not RabbitMQ"),
            "platform": text("amqpjobs.devbroker"),
            "product": text("RabbitMQ"),
            "version": text(self.profile.version),
        }
        return Table({name.encode(): field for name, field in said.items()})

    def report_crash(self) -> None:
        """Log the exception that is being handled: a mistake of the broker."""
        _log.exception("The broker failed in handling a frame.")
