"""Field tables as raw bytes, spliced and not rewritten.

A decoded value forgets its type: 1 as one byte, signed or not, becomes 1 as something else. So a value stays
the bytes it came as, beside its type's letter; only what the broker itself must know is decoded.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from amqpjobs.devbroker.errors import Code, RefusedError

_LONG = struct.Struct(">I")
_NUMBERS = {letter: struct.Struct(f">{code}") for letter, code in zip("bBsuIilLfdT", "bBhHiIqqfdQ", strict=True)}
#: Size of the values that have a fixed one; the others begin with their length.
_SIZES = {letter: number.size for letter, number in _NUMBERS.items()} | {"t": 1, "D": 5, "V": 0}
_COUNTED = frozenset("SxFA")
# The same by the bytes of the letters, for what looks at every message.
_PLAIN = {ord(letter): size for letter, size in _SIZES.items()}
_WITH_LENGTH, _NESTING, _ARRAY = frozenset(b"SxFA"), frozenset(b"FA"), ord("A")
#: RabbitMQ's names of the types, for its error texts.
_NAMES = {
    "b": "byte",
    "B": "unsignedbyte",
    "s": "short",
    "u": "unsignedshort",
    "I": "signedint",
    "i": "unsignedint",
    "l": "long",
    "L": "long",
    "f": "float",
    "d": "double",
    "T": "timestamp",
    "t": "bool",
    "D": "decimal",
    "V": "void",
    "S": "longstr",
    "x": "binary",
    "F": "table",
    "A": "array",
}
_INTEGERS = frozenset("bBsuIilL")
_DECIMAL = struct.Struct(">BI")


@dataclass(frozen=True)
class Field:
    """A value: the letter of its type, and its bytes without a length before them."""

    letter: str
    raw: bytes

    @cached_property
    def value(self) -> object:
        """Decoded as far as two values can be compared: text as bytes, tables and arrays of fields."""
        if self.letter in _NUMBERS:
            return _NUMBERS[self.letter].unpack(self.raw)[0]
        match self.letter:
            case "t":
                return self.raw != b"\x00"
            case "D":
                return _DECIMAL.unpack(self.raw)
            case "V":
                return None
            case "F":
                return Table.of(self.raw)
            case "A":
                return tuple(read_array(self.raw))
            case _:
                return self.raw

    @property
    def integer(self) -> int | None:
        """The number, if it is one without a fraction."""
        value = self.value if self.letter in _INTEGERS else None
        return value if isinstance(value, int) else None

    @property
    def text(self) -> str | None:
        """The long string, if it is one."""
        return self.raw.decode("utf-8", "replace") if self.letter == "S" else None

    @property
    def type_name(self) -> str:
        return _NAMES[self.letter]

    @property
    def type_class(self) -> str:
        """Types whose values may be equal have the same class."""
        if self.letter in _INTEGERS or self.letter == "D":
            return "int"
        return "float" if self.letter in "fd" else self.type_name

    def written(self) -> bytes:
        """The letter and the value, as it stands in a table."""
        length = _LONG.pack(len(self.raw)) if self.letter in _COUNTED else b""
        return self.letter.encode("ascii") + length + self.raw


class Table(dict[bytes, Field]):
    """Fields by name, in the order they came. Of a name given twice the first counts, as with RabbitMQ."""

    @classmethod
    def of(cls, raw: bytes) -> Self:
        """Parse a table without its length. Raises `RefusedError` for what is none."""
        table, at = cls(), 0
        try:
            while at < len(raw):
                end = at + 1 + raw[at]
                name = raw[at + 1 : end]
                field, at = _read(raw, end)
                table.setdefault(name, field)
        except (IndexError, struct.error):
            raise RefusedError(Code.SYNTAX_ERROR, "malformed field table") from None
        return table

    def written(self) -> bytes:
        """As it stands in a frame, with its length before it."""
        body = b"".join(bytes([len(name)]) + name + field.written() for name, field in self.items())
        return _LONG.pack(len(body)) + body

    def look(self, name: str) -> Field | None:
        return self.get(name.encode())

    def sorted(self) -> "Table":
        """In the order of the names, as RabbitMQ writes a table that it has changed."""
        return Table(sorted(self.items()))


def read_array(raw: bytes) -> Iterable[Field]:
    """The values of an array, without its length."""
    at = 0
    while at < len(raw):
        field, at = _read(raw, at)
        yield field


def check_table(raw: bytes, at: int, end: int) -> None:
    """Raises `IndexError` or `struct.error` unless these bytes are fields from end to end, however deep."""
    around, is_array = list[tuple[int, bool]](), False
    while True:
        while at == end and around:
            end, is_array = around.pop()
        if at >= end:
            break
        if not is_array:
            at += 1 + raw[at]
        letter = raw[at]
        if (size := _PLAIN.get(letter)) is not None:
            at += 1 + size
            continue
        start, at = at + 5, at + 5 + _LONG.unpack_from(raw, at + 1)[0]
        if letter not in _WITH_LENGTH or at > end:
            raise IndexError
        if letter in _NESTING:
            around.append((end, is_array))
            at, end, is_array = start, at, letter == _ARRAY
    if at != end:
        raise IndexError


def _read(raw: bytes, at: int) -> tuple[Field, int]:
    letter = chr(raw[at])
    at += 1
    if letter in _COUNTED:
        end = at + 4 + _LONG.unpack_from(raw, at)[0]
        at += 4
    elif letter in _SIZES:
        end = at + _SIZES[letter]
    else:
        raise RefusedError(Code.SYNTAX_ERROR, f"field type {letter!r} is unknown")
    if end > len(raw):
        raise IndexError
    return Field(letter, raw[at:end]), end


def long(value: int) -> Field:
    """A signed integer of 64 bits, RabbitMQ's own choice for its headers."""
    return Field("l", _NUMBERS["l"].pack(value))


def text(value: str | bytes) -> Field:
    return Field("S", value if isinstance(value, bytes) else value.encode())


def flag(value: bool) -> Field:
    return Field("t", b"\x01" if value else b"\x00")


def moment(seconds: float) -> Field:
    """A timestamp, in whole seconds since 1970."""
    return Field("T", _NUMBERS["T"].pack(int(seconds)))


def array(values: Iterable[Field]) -> Field:
    return Field("A", b"".join(value.written() for value in values))


def table(fields: Table) -> Field:
    return Field("F", fields.written()[4:])
