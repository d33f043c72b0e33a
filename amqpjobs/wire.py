"""What crosses the border to the broker, as small values of our own.

The client library's message objects stay inside `amqp/`. A `Delivery` knows the channel it
came on and can be settled there or not at all; a `Publication` says where bytes should go.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar, cast

#: A value in a header table, as the client decodes it (also Decimal, bytearray, None, nested).
HeaderValue = object
Headers = Mapping[str, HeaderValue]

T = TypeVar("T")


def maker_of(cls: type[T]) -> type[T]:
    """Makes what the frozen dataclass itself makes, for where that is done for every job.

    A frozen one sets each field by a call, which for 20 of them takes three times as long. So these
    are made thawed, and freeze at the end: both have the same slots.
    """

    def freeze(made: Any) -> None:
        made.__class__ = cls

    thawed = make_dataclass(
        cls.__name__,
        [
            (
                each.name,
                each.type,
                field(default_factory=each.default_factory)
                if each.default_factory is not MISSING
                else field(default=each.default),
            )
            for each in fields(cast("Any", cls))
        ],
        namespace={"__post_init__": freeze},
        kw_only=True,
        slots=True,
    )
    return cast("type[T]", thawed)


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


make_properties = maker_of(Properties)


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A message to be published: persistent, mandatory, confirmed."""

    exchange: str
    routing_key: str
    body: bytes
    properties: Properties


make_publication = maker_of(Publication)


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
    size = 4
    for name, value in headers.items():
        size += 1 + _text_size(name) + (9 if type(value) is int and -(2**63) <= value < 2**63 else _value_size(value))
    return size


def _text_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _value_size(value: HeaderValue) -> int:
    match value:
        case str():
            return 5 + _text_size(value)
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
