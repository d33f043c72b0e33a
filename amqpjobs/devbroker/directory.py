"""What all connections share: users, vhosts, memory, and what the broker says of itself."""

import logging
from collections.abc import Hashable

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


class Directory:
    """One broker's."""

    def __init__(self, profile: Profile, timers: Timers, memory: Memory) -> None:
        self.profile = profile
        self.timers = timers
        self.memory = memory
        self.users: dict[str, User] = {}
        self.vhosts: dict[str, VHost] = {}
        self.connections: dict[Hashable, None] = {}

    def add_vhost(self, name: str) -> None:
        """Does nothing if there is one of that name."""
        if name not in self.vhosts:
            self.vhosts[name] = VHost(name, self.profile, self.timers, self.memory)

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
