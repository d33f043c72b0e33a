"""What crosses the border to the broker, as small values of our own.

The client library's message objects stay inside `amqp/`. A `Delivery` knows the channel it
came on and can be settled there or not at all; a `Publication` says where bytes should go.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, cast

#: A value in a header table, as the client decodes it (also Decimal, bytearray, None, nested).
HeaderValue = object
Headers = Mapping[str, HeaderValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Properties:
    """The AMQP properties we use. `expiration` is missing on purpose: it would fire inside the levels."""

    headers: Headers = field(default_factory=dict[str, HeaderValue])
    kind: str | None = None
    message_id: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    app_id: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    priority: int | None = None
    timestamp: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A message to be published: persistent, mandatory, confirmed."""

    exchange: str
    routing_key: str
    body: bytes
    properties: Properties


class Settler(Protocol):
    """The channel a delivery came on."""

    @property
    def is_open(self) -> bool:
        """Whether a delivery of it can still be settled."""
        ...

    async def ack(self, tag: int) -> None: ...

    async def nack(self, tag: int) -> None: ...

    async def reject(self, tag: int) -> None: ...


@dataclass(slots=True, eq=False)
class Delivery:
    """A message that the broker lent us until it is settled."""

    body: bytes
    properties: Properties
    #: The work queue's own name, as the app knows it.
    queue: str
    exchange: str
    routing_key: str
    redelivered: bool
    tag: int
    settler: Settler
    #: What the client library could not read of properties or headers; "" when all is well.
    defect: str = ""

    @property
    def is_open(self) -> bool:
        """Whether it can still be settled."""
        return self.settler.is_open


def table_size(headers: Headers) -> int:
    """Bytes a header table needs on the wire, rounded up a little."""
    return 4 + sum(1 + len(name.encode()) + _value_size(value) for name, value in headers.items())


def _value_size(value: HeaderValue) -> int:
    match value:
        case str():
            return 5 + len(value.encode("utf-8", "surrogatepass"))
        case bytes() | bytearray():
            return 5 + len(value)
        case dict():
            return 1 + table_size(cast("Headers", value))
        case list() | tuple():
            return 5 + sum(_value_size(each) for each in cast("list[HeaderValue]", value))
        case None | bool() | float() | datetime():
            return 9
        case int() if -(2**63) <= value < 2**63:
            return 9
        case _:  # small Decimals too; what AMQP has no type for is written as text
            return 9 + len(str(value).encode("utf-8", "surrogatepass"))
