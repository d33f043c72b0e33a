"""Header tables with their exact types.

The client library writes every float as 32 bits and refuses bytes. A foreign header must
come back from a retry as it was sent, so tables are written here. AMQP 0-9-1 as RabbitMQ
speaks it: https://www.rabbitmq.com/amqp-0-9-1-errata#section_3
"""

import struct
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, cast

import aiormq

_LONG, _STRING, _INTEGER = struct.Struct(">I"), struct.Struct(">cI"), struct.Struct(">ci")


class ExactProperties(aiormq.spec.Basic.Properties):
    """The library's properties, but for how the header table is written."""

    def encode_property(self, name: str, value: Any) -> bytes:
        return encode_table(value) if name == "headers" else super().encode_property(name, value)


def encode_table(table: Mapping[str, object]) -> bytes:
    """A field table, with its length before it."""
    parts = list[bytes]()
    for name, value in table.items():
        # Nearly all are one of these.
        if type(value) is str:
            raw = value.encode("utf-8", "surrogatepass")
            parts += (_name(name), _STRING.pack(b"S", len(raw)), raw)
        elif type(value) is int and -(2**31) <= value < 2**31:
            parts += (_name(name), _INTEGER.pack(b"I", value))
        else:
            parts += (_name(name), _value(value))
    return _counted(b"".join(parts))


@lru_cache(256)
def _name(name: str) -> bytes:
    key = name.encode("utf-8", "surrogatepass")[:255]
    return bytes([len(key)]) + key


def _value(value: object) -> bytes:
    match value:
        case None:
            return b"V"
        case bool():
            return b"t\x01" if value else b"t\x00"
        case int():
            return _integer(value)
        case float():
            return b"d" + struct.pack(">d", value)
        case str():
            return b"S" + _counted(value.encode("utf-8", "surrogatepass"))
        case bytes():  # a long string that was no UTF-8
            return b"S" + _counted(value)
        case bytearray():
            return b"x" + _counted(bytes(value))
        case datetime():
            return b"T" + struct.pack(">Q", max(0, int(value.timestamp())))
        case Decimal():
            return _decimal(value)
        case Mapping():
            return b"F" + encode_table(cast("Mapping[str, object]", value))
        case list() | tuple():
            return b"A" + _counted(b"".join(map(_value, cast("Iterable[object]", value))))
        case _:
            return _value(str(value))


def _integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"I" + struct.pack(">i", value)
    if -(2**63) <= value < 2**63:
        return b"l" + struct.pack(">q", value)
    return _value(str(value))


def _decimal(value: Decimal) -> bytes:
    _, digits, exponent = value.as_tuple()
    scaled = int(value.scaleb(-exponent)) if isinstance(exponent, int) and digits else 0
    if isinstance(exponent, int) and -255 <= exponent <= 0 and -(2**31) <= scaled < 2**31:
        return b"D" + struct.pack(">Bi", -exponent, scaled)
    return _value(str(value))


def _counted(raw: bytes) -> bytes:
    return _LONG.pack(len(raw)) + raw
