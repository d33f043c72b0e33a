"""A message's properties as the bytes they came as, and the few of them that the broker must know.

What nobody changes is sent on untouched. A change replaces the bytes of that one property; the others stay
what they were, types of header values included.
"""

import struct
from functools import lru_cache

from amqpjobs.devbroker.errors import Code, RefusedError
from amqpjobs.devbroker.table import Table, check_table

_FLAGS = struct.Struct(">H")
_LONG = struct.Struct(">I")
#: In the order in which they stand; each has its bit, from the highest down.
CONTENT_TYPE, CONTENT_ENCODING, HEADERS, DELIVERY_MODE, PRIORITY, CORRELATION_ID, REPLY_TO = range(7)
EXPIRATION, MESSAGE_ID, TIMESTAMP, TYPE, USER_ID, APP_ID, CLUSTER_ID = range(7, 14)
#: Bytes of those that have a fixed size.
_FIXED = {DELIVERY_MODE: 1, PRIORITY: 1, TIMESTAMP: 8}
_BITS = tuple((number, 1 << (15 - number)) for number in range(14))
_NOTHING = b"\x00\x00"


class Properties:
    """Where each property lies within the bytes. Raises `RefusedError` for what cannot be read."""

    __slots__ = ("_places", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._places = _places_of(raw)

    def has(self, number: int) -> bool:
        return number in self._places

    def part(self, number: int) -> bytes | None:
        """A property's value: text without its length, headers without theirs."""
        place = self._places.get(number)
        if place is None:
            return None
        start, end = place
        if number == HEADERS:
            return self.raw[start + 4 : end]
        return self.raw[start:end] if number in _FIXED else self.raw[start + 1 : end]

    def octet(self, number: int) -> int | None:
        value = self.part(number)
        return value[0] if value else None

    def headers(self) -> Table:
        """The header table, decoded; an empty one if there is none."""
        return Table.of(self.part(HEADERS) or b"")

    def replaced(self, changes: dict[int, bytes | None]) -> "Properties":
        """With these properties as given, in wire form; None takes one away."""
        wire = {number: self.raw[start:end] for number, (start, end) in self._places.items()}
        for number, value in changes.items():
            if value is None:
                wire.pop(number, None)
            else:
                wire[number] = value
        flags = sum(1 << (15 - number) for number in wire)
        return Properties(_FLAGS.pack(flags) + b"".join(wire[number] for number in sorted(wire)))


def has(raw: bytes, number: int) -> bool:
    """Whether properties that were found in order have this one: a look at the flags, and no more."""
    return raw[number >> 3] & 0x80 >> (number & 7) > 0


def short(text: bytes) -> bytes:
    """A short string on the wire."""
    return bytes([len(text)]) + text


@lru_cache(maxsize=1024)
def _given(flags: int) -> tuple[int, ...]:
    return tuple(number for number, bit in _BITS if flags & bit)


def _places_of(raw: bytes) -> dict[int, tuple[int, int]]:
    if raw == _NOTHING:
        return {}
    try:
        flags = _FLAGS.unpack_from(raw)[0]
        if flags & 1:
            raise IndexError
        at, places = 2, dict[int, tuple[int, int]]()
        for number in _given(flags):
            places[number] = at, (at := _end_of(raw, number, at))
        if at != len(raw):
            raise IndexError
        if HEADERS in places:
            start, end = places[HEADERS]
            check_table(raw, start + 4, end)
    except (IndexError, struct.error):
        raise RefusedError(Code.INTERNAL_ERROR, is_nameless=True) from None
    return places


def _end_of(raw: bytes, number: int, at: int) -> int:
    if number in _FIXED:
        return at + _FIXED[number]
    if number == HEADERS:
        return at + 4 + int(_LONG.unpack_from(raw, at)[0])
    return at + 1 + raw[at]
