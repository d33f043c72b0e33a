"""A message as queues hold it: its bytes, its way so far, and the little that must be known of it."""

import struct
from dataclasses import dataclass, field, replace
from functools import lru_cache

from amqpjobs.devbroker.errors import failed
from amqpjobs.devbroker.properties import (
    DELIVERY_MODE,
    EXPIRATION,
    HEADERS,
    PRIORITY,
    REPLY_TO,
    USER_ID,
    Properties,
    has,
    short,
)
from amqpjobs.devbroker.table import Field, Table, read_array

_CONTENT_HEADER = struct.Struct(">HHQ")
_BASIC = 60
#: Bytes of the objects around a message in one queue.
_OVERHEAD = 400
#: Addresses that many messages share.
_ADDRESSES = 1024
#: Ten years, RabbitMQ's longest expiry.
LONGEST_EXPIRY = 315_360_000_000


@dataclass(slots=True, eq=False)
class Message:
    """Nobody changes one: it may stand in any number of queues."""

    exchange: str
    #: The one it was published with, then those of its CC and BCC headers.
    keys: tuple[str, ...]
    #: Its properties, which were read once and found in order; what lies where is not kept.
    raw: bytes
    body: bytes
    #: Milliseconds of its own TTL.
    ttl: int | None = None
    priority: int | None = None
    #: The keys that its reader may not see.
    hidden: tuple[str, ...] = ()
    #: How often a delivery of it failed in the queues that it came through.
    failures: int = 0
    #: Entries of x-death, the latest first.
    deaths: tuple[Table, ...] = ()
    #: Bytes of the properties that it was published with.
    first_size: int = 0
    #: Exchange and key, as they are sent.
    way: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.way = _way(self.exchange, self.keys[0])

    @property
    def size(self) -> int:
        """What it weighs in memory, about: as many small messages as large ones must not be too many."""
        return len(self.body) + len(self.raw) + _OVERHEAD

    @property
    def header(self) -> bytes:
        """The content header, as it is sent."""
        return content_header(self.raw, len(self.body))

    @property
    def properties(self) -> Properties:
        return Properties(self.raw)

    @property
    def is_persistent(self) -> bool:
        return self.properties.octet(DELIVERY_MODE) == 2

    def with_properties(self, properties: Properties) -> "Message":
        return replace(self, raw=properties.raw)

    def with_headers(self, headers: Table) -> "Message":
        return self.with_properties(self.properties.replaced({HEADERS: headers.written()}))

    def header_with(self, added: Table) -> bytes:
        """The content header with these among the headers."""
        headers = Table(self.properties.headers() | added).sorted()
        return content_header(self.properties.replaced({HEADERS: headers.written()}).raw, len(self.body))


def content_header(properties: bytes, size: int) -> bytes:
    return _CONTENT_HEADER.pack(_BASIC, 0, size) + properties


def published(exchange: str, key: str, raw: bytes, body: bytes) -> Message:
    """What a client sent. Raises `RefusedError` for what RabbitMQ refuses."""
    properties = Properties(raw)
    expiration = properties.part(EXPIRATION)
    ttl = None if expiration is None else parsed_expiration(expiration)
    keys = _alone(key)
    hidden: tuple[str, ...] = ()
    if b"CC" in raw:
        keys, hidden, properties = _routes(key, properties)
    return Message(
        exchange,
        keys,
        properties.raw,
        body,
        ttl=ttl,
        priority=properties.octet(PRIORITY),
        hidden=hidden,
        first_size=len(raw),
    )


def parsed_expiration(raw: bytes) -> int:
    """Milliseconds. Raises `RefusedError` in RabbitMQ's words."""
    text = raw.decode("utf-8", "replace")
    sign = text[:1] in "+-" and text[:1]
    digits = text[1:] if sign else text
    whole = digits[: len(digits) - len(digits.lstrip("0123456789"))]
    if not whole:
        raise failed(f"invalid expiration '{text}': no_integer")
    if rest := digits[len(whole) :]:
        raise failed(f"invalid expiration '{text}': {{leftover_string,\"{rest}\"}}")
    value = -int(whole) if sign == "-" else int(whole)
    if value < 0:
        raise failed(f"invalid expiration '{text}': {{value_negative,{value}}}")
    if value > LONGEST_EXPIRY:
        raise failed(f"invalid expiration '{text}': {{value_too_large,{value}}}")
    return value


def user_of(message: Message) -> str | None:
    """Who it says it comes from."""
    raw = message.properties.part(USER_ID) if has(message.raw, USER_ID) else None
    return None if raw is None else raw.decode("utf-8", "replace")


def reply_to_of(message: Message) -> bytes | None:
    return message.properties.part(REPLY_TO) if has(message.raw, REPLY_TO) else None


def with_reply_to(message: Message, address: str) -> Message:
    return message.with_properties(message.properties.replaced({REPLY_TO: short(address.encode())}))


def routes_in(headers: Table, name: str) -> tuple[str, ...]:
    """The routing keys in a CC or BCC header."""
    given = headers.look(name)
    if given is None:
        return ()
    if given.letter != "A":
        raise failed(f'invalid message: {{unacceptable_type_in_header,"{name}",{given.type_name}}}')
    return tuple(_key(item) for item in read_array(given.raw) if item.letter == "S")


def _routes(key: str, properties: Properties) -> tuple[tuple[str, ...], tuple[str, ...], Properties]:
    headers = properties.headers()
    copies, hidden = routes_in(headers, "CC"), routes_in(headers, "BCC")
    if headers.pop(b"BCC", None) is not None:
        properties = properties.replaced({HEADERS: headers.written()})
    return (key, *copies, *hidden), hidden, properties


@lru_cache(maxsize=_ADDRESSES)
def _alone(key: str) -> tuple[str, ...]:
    return (key,)


@lru_cache(maxsize=_ADDRESSES)
def _way(exchange: str, key: str) -> bytes:
    return b"".join(short(name.encode("utf-8", "surrogateescape")) for name in (exchange, key))


def _key(item: Field) -> str:
    return item.raw.decode("utf-8", "surrogateescape")
