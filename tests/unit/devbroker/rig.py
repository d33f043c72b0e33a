"""A vhost without a socket: its clock stands still until it is moved, its consumers keep what they get."""

import struct
from collections.abc import Mapping

from amqpjobs.devbroker.backlog import Entry
from amqpjobs.devbroker.consumers import Consumer
from amqpjobs.devbroker.exchange import Exchange
from amqpjobs.devbroker.memory import Memory
from amqpjobs.devbroker.message import Message, published
from amqpjobs.devbroker.profile import Profile, profile
from amqpjobs.devbroker.queue import Attributes, Queue
from amqpjobs.devbroker.table import Field, Table, flag, long, read_array, text
from amqpjobs.devbroker.timers import Timers, VirtualClock
from amqpjobs.devbroker.vhost import VHost

VERSIONS = ("3.10", "4.0", "4.3")
Value = str | int | bool | Field


def table(**values: Value) -> Table:
    """A table; underscores in names are dashes."""
    return Table({name.replace("_", "-").encode(): _field(value) for name, value in values.items()})


def _field(value: Value) -> Field:
    match value:
        case bool():
            return flag(value)
        case int():
            return long(value)
        case str():
            return text(value)
        case Field():
            return value


def properties(
    *, headers: Table | None = None, priority: int | None = None, expiration: str | None = None, persistent: bool = True
) -> bytes:
    """The bytes of a message's properties."""
    flags, parts = 0, list[bytes]()
    if headers is not None:
        flags, parts = flags | 1 << 13, [*parts, headers.written()]
    if persistent:
        flags, parts = flags | 1 << 12, [*parts, b"\x02"]
    if priority is not None:
        flags, parts = flags | 1 << 11, [*parts, bytes([priority])]
    if expiration is not None:
        flags, parts = flags | 1 << 8, [*parts, bytes([len(expiration)]) + expiration.encode()]
    return struct.pack(">H", flags) + b"".join(parts)


class Taker:
    """A channel: keeps what it is delivered."""

    def __init__(self) -> None:
        self.got: list[tuple[Consumer, Entry]] = []
        self.ended: list[Consumer] = []
        self.is_open = True
        self.is_cut = False

    def has_room(self) -> bool:
        return self.is_open

    def deliver(self, consumer: Consumer, entry: Entry) -> None:
        self.got.append((consumer, entry))

    def end_consumer(self, consumer: Consumer) -> None:
        self.ended.append(consumer)

    def cut(self) -> None:
        self.is_cut = True

    @property
    def bodies(self) -> list[str]:
        return [entry.message.body.decode() for _, entry in self.got]

    def entries(self, *numbers: int) -> list[Entry]:
        return [self.got[number][1] for number in numbers]


class Rig:
    """A vhost of one version, with short words for what tests do to it."""

    def __init__(self, version: str = "4.0", memory: int = 1_000_000) -> None:
        self.clock = VirtualClock(1_000_000.0)
        self.timers = Timers(self.clock)
        self.memory = Memory(memory)
        self.profile: Profile = profile(version)
        self.vhost = VHost("/", self.profile, self.timers, self.memory)

    def queue(self, name: str = "q", attributes: Attributes | None = None, **arguments: Value) -> Queue:
        return self.declare(arguments, name, attributes)

    def quorum(self, name: str = "q", **arguments: Value) -> Queue:
        return self.declare({"x_queue_type": "quorum", **arguments}, name)

    def declare(self, arguments: Mapping[str, Value], name: str = "q", attributes: Attributes | None = None) -> Queue:
        return self.vhost.declare_queue(name, table(**arguments), attributes or Attributes())

    def exchange(self, name: str, kind: str, **arguments: Value) -> None:
        self.vhost.declare_exchange(Exchange(name, kind, arguments=table(**arguments)))

    def bind(self, source: str, destination: str, key: str = "", **arguments: Value) -> None:
        target = self.vhost.queues.get(destination) or self.vhost.exchanges[destination]
        self.vhost.bind(self.vhost.exchange(source), target, key, table(**arguments))

    def publish(self, key: str, *bodies: str, exchange: str = "", raw: bytes | None = None) -> list[bool]:
        """Whether each was taken by all queues."""
        given = properties() if raw is None else raw
        return [self.vhost.publish(published(exchange, key, given, body.encode()))[1] for body in bodies]

    def consume(
        self, queue: Queue, *, prefetch: int = 0, priority: int = 0, silent: bool = False, taker: Taker | None = None
    ) -> tuple[Taker, Consumer]:
        taker = taker or Taker()
        consumer = Consumer(taker, "tag", is_silent=silent, prefetch=prefetch, priority=priority)
        queue.add_consumer(consumer, is_exclusive=False)
        return taker, consumer

    def bodies(self, queue: str = "q") -> list[str]:
        """What waits in a queue, in the order of going out."""
        return [message.body.decode() for message in self.messages(queue)]

    def messages(self, queue: str = "q") -> list[Message]:
        return [entry.message for entry in self.vhost.queues[queue].backlog]


def deaths(message: Message) -> list[Table]:
    """Its x-death header."""
    field = message.properties.headers().look("x-death")
    return [] if field is None else [Table.of(item.raw) for item in read_array(field.raw)]


def said(given: Table, name: str) -> str | int | None:
    """A text or a number in a table."""
    field = given.look(name)
    return None if field is None else field.text if field.letter == "S" else field.integer
