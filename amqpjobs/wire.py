"""What crosses the border to the broker, as small values of our own.

The client library's message objects stay inside `amqp/`. A `Delivery` knows the channel it
came on and can be settled there or not at all; a `Publication` says where bytes should go.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import datetime
from typing import Any, Protocol, TypeVar, cast

#: A value in a header table, as the client decodes it (also Decimal, bytearray, None, nested).
HeaderValue = object
Headers = Mapping[str, HeaderValue]

T = TypeVar("T")


def no_headers() -> Headers:
    """An empty table. (`dict[str, HeaderValue]` would make one as well, and take ten times as long.)"""
    return {}


def maker_of(cls: type[T]) -> type[T]:
    """Makes what the dataclass itself makes, for where that is done for every job.

    A class is called through a tuple and a dict, and a frozen one sets each field by a call: for 20 fields that takes
    five times as long as a function that sets them and then freezes what it has made. It is written here from the
    names of the fields, as `dataclasses` writes its own.
    """
    values, wanted, optional, known = dict[str, str](), list[str](), list[str](), dict[str, Any]()
    for each in fields(cast("Any", cls)):
        name, default = each.name, f"default_{each.name}"
        own = each.default_factory is not MISSING
        known[default] = each.default_factory if own else each.default
        (wanted if known[default] is MISSING else optional).append(name)
        values[name] = f"{default}() if {name} is {default} else {name}" if own else name
    return cast("type[T]", _written(cls, [*wanted, *(f"{name}=default_{name}" for name in optional)], values, known))


def copier_of(cls: type[T], *changed: str) -> Callable[..., T]:
    """Makes a copy of one, with these fields changed: they follow in this order."""
    values = {each.name: each.name if each.name in changed else f"old.{each.name}" for each in fields(cast("Any", cls))}
    return cast("Callable[..., T]", _written(cls, ["old", *changed], values, {}))


def _written(cls: type[Any], arguments: list[str], values: dict[str, str], known: dict[str, Any]) -> object:
    """A function that makes one of these values of its fields."""
    # Of the same shape, so that what is made can become one.
    own = {"__slots__": (), "__setattr__": object.__setattr__, "__delattr__": object.__delattr__}
    thawed = type(cls.__name__, (cls,), own)
    known |= {"new": object.__new__, "thawed": thawed, "frozen": cls}
    lines = ["made = new(thawed)", *(f"made.{name} = {value}" for name, value in values.items())]
    exec("\n    ".join([f"def make({', '.join(arguments)}):", *lines, "made.__class__ = frozen", "return made"]), known)
    return known["make"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Properties:
    """The AMQP properties we use. `expiration` is missing on purpose: it would fire inside the levels."""

    headers: Headers = field(default_factory=no_headers)
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


make_delivery = maker_of(Delivery)


def table_size(headers: Headers) -> int:
    """Bytes a header table needs on the wire, rounded up a little."""
    size = 4
    for name, value in headers.items():
        size += 1 + (len(name) if name.isascii() else _text_size(name))
        if type(value) is str and value.isascii():
            size += 5 + len(value)
        elif type(value) is int and -(2**63) <= value < 2**63:
            size += 9
        else:
            size += _value_size(value)
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
