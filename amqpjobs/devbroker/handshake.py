"""The handshake: who a client is, what it can do, and how large its frames may be."""

from pamqp import commands

from amqpjobs.devbroker.directory import Directory
from amqpjobs.devbroker.errors import forbidden
from amqpjobs.devbroker.login import SASL, find_user
from amqpjobs.devbroker.table import Table
from amqpjobs.devbroker.users import Access, User
from amqpjobs.devbroker.vhost import VHost
from amqpjobs.devbroker.wire import client_properties_of, method

FRAME_MAX, FRAME_MIN = 131_072, 4_096
CHANNEL_MAX = 2047
HEARTBEAT_SECONDS = 60


class Handshake:
    """What was agreed on so far. Each step returns what to say next, and raises `RefusedError`."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._user: User | None = None
        self._capabilities = Table()
        self.frame_max = FRAME_MAX
        self.channel_max = CHANNEL_MAX
        #: Seconds; 0 for none.
        self.heartbeat = 0.0

    def can(self, capability: str) -> bool:
        """Whether the client said so."""
        given = self._capabilities.look(capability)
        return given is not None and given.value is True

    def greeted(self) -> bytes:
        return method(
            commands.Connection.Start,
            version_major=0,
            version_minor=9,
            server_properties=self._directory.server_properties(),
            mechanisms=" ".join(SASL),
            locales="en_US",
        )

    def started(self, asked: commands.Connection.StartOk) -> bytes:
        capabilities = client_properties_of(asked).look("capabilities")
        if capabilities is not None and capabilities.letter == "F":
            self._capabilities = Table.of(capabilities.raw)
        self._user = find_user(self._directory.users, asked.mechanism, asked.response)
        return method(
            commands.Connection.Tune, channel_max=CHANNEL_MAX, frame_max=FRAME_MAX, heartbeat=HEARTBEAT_SECONDS
        )

    def tuned(self, asked: commands.Connection.TuneOk) -> None:
        check_negotiated("frame_max", asked.frame_max, FRAME_MIN, FRAME_MAX)
        check_negotiated("channel_max", asked.channel_max, 1, CHANNEL_MAX)
        self.frame_max, self.channel_max = asked.frame_max, asked.channel_max
        self.heartbeat = float(asked.heartbeat)

    def opened(self, name: str) -> tuple[VHost, Access]:
        vhost = self._directory.vhosts.get(name)
        if vhost is None:
            raise forbidden(f"vhost {name} not found")
        if self._user is None or name not in self._user.permissions:
            user = "" if self._user is None else self._user.name
            raise forbidden(f"access to vhost '{name}' refused for user '{user}'")
        return vhost, Access(self._user, name)


def check_negotiated(name: str, value: int, least: int, most: int) -> None:
    """Raises `RefusedError` for what was not offered."""
    if value and value < least:
        raise forbidden(f"negotiated {name} = {value} is lower than the minimum allowed value ({least})")
    if value == 0 or value > most:
        raise forbidden(f"negotiated {name} = {value} is higher than the maximum allowed value ({most})")
