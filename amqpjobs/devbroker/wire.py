"""Frames: pamqp's commands, read and written with field tables as they are.

pamqp knows each method's fields and their order. Their values are read here, since its tables forget types
and its validation is not RabbitMQ's. Methods that come with every message have short cuts of their own.
"""

import struct
from functools import lru_cache
from typing import cast

from pamqp import commands
from pamqp.base import Frame

from amqpjobs.devbroker.errors import Code, RefusedError
from amqpjobs.devbroker.table import Table

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_END = b"\xce"
HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"
PREFIX = struct.Struct(">BHI")
#: Bytes of a frame beside its payload.
OVERHEAD = 8
INDEX = struct.Struct(">I")
#: Decoded addresses that are remembered.
_ADDRESSES = 1024
_OCTET, _SHORT, _LONG, _LONGLONG = (struct.Struct(f">{code}") for code in "BHIQ")
_INTEGERS = {"octet": _OCTET, "short": _SHORT, "long": _LONG, "longlong": _LONGLONG}

PUBLISH, ACK = commands.Basic.Publish.index, commands.Basic.Ack.index
_DELIVER = INDEX.pack(commands.Basic.Deliver.index)
_ACK, _NACK = INDEX.pack(ACK), INDEX.pack(commands.Basic.Nack.index)
_TAGGED = struct.Struct(">QB")
_FLAGGED_ACK = struct.Struct(">BHI4sQBB")

Value = int | str | bool | Table
_EMPTY: dict[str, Value] = {
    "bit": False,
    "octet": 0,
    "short": 0,
    "long": 0,
    "longlong": 0,
    "shortstr": "",
    "name": "",
    "longstr": "",
    "table": Table(),
}
_NAMES = frozenset({"queue", "exchange", "source", "destination"})
_layouts: dict[type[Frame], list[tuple[str, str]]] = {}


def arguments_of(asked: Frame) -> Table:
    """The field table of a decoded method that has one."""
    return cast("Table", asked["arguments"])


def client_properties_of(asked: commands.Connection.StartOk) -> Table:
    """The same of a connection.start-ok."""
    return cast("Table", asked.client_properties)


def decode(payload: bytes) -> Frame:
    """A method frame's payload. Raises `RefusedError` for what cannot be read."""
    try:
        command = cast("type[Frame]", commands.INDEX_MAPPING[INDEX.unpack_from(payload)[0]])
        asked: Frame = object.__new__(command)  # without its constructor, which validates
        _read_fields(asked, payload)
    except KeyError:
        raise RefusedError(Code.COMMAND_INVALID, "unknown method") from None
    except UnicodeDecodeError:
        raise RefusedError(Code.FRAME_ERROR, "Malformed UTF-8 in shortstr", is_nameless=True) from None
    except (IndexError, struct.error):
        raise undecodable(payload) from None
    return asked


def method(command: type[Frame], **fields: Value) -> bytes:
    """A method frame's payload. Fields that are not given are empty or zero."""
    parts = [INDEX.pack(command.index)]
    bits, used = 0, 0
    for name, kind in _layout(command):
        value = fields.get(name, _EMPTY[kind])
        if kind == "bit":
            bits |= bool(value) << used
            used += 1
            continue
        if used:
            parts.append(bytes([bits]))
            bits, used = 0, 0
        parts.append(_written(kind, value))
    if used:
        parts.append(bytes([bits]))
    return b"".join(parts)


def frame(channel: int, payload: bytes, kind: int = METHOD) -> bytes:
    return PREFIX.pack(kind, channel, len(payload)) + payload + FRAME_END


def content(channel: int, header: bytes, body: bytes, largest: int) -> bytes:
    """A message's header frame and its body, cut into frames of at most `largest` bytes."""
    parts = [PREFIX.pack(HEADER, channel, len(header)), header, FRAME_END]
    size, step = len(body), largest - OVERHEAD
    if size <= step:
        if size:
            parts += (PREFIX.pack(BODY, channel, size), body, FRAME_END)
        return b"".join(parts)
    for at in range(0, size, step):
        piece = body[at : at + step]
        parts += (PREFIX.pack(BODY, channel, len(piece)), piece, FRAME_END)
    return b"".join(parts)


def short(text: str) -> bytes:
    """A short string on the wire."""
    raw = text.encode("utf-8", "surrogateescape")
    return bytes([len(raw)]) + raw


def delivery(channel: int, tag: bytes, number: int, redelivered: bool, way: bytes) -> bytes:
    """basic.deliver; `tag` and `way` (exchange and key) are short strings on the wire."""
    payload = _DELIVER + tag + _TAGGED.pack(number, redelivered) + way
    return PREFIX.pack(METHOD, channel, len(payload)) + payload + FRAME_END


def confirmation(channel: int, number: int, multiple: bool) -> bytes:
    return _FLAGGED_ACK.pack(METHOD, channel, 13, _ACK, number, multiple, 0xCE)


def refusal(channel: int, number: int, multiple: bool) -> bytes:
    """The confirm that says no: basic.nack."""
    return _FLAGGED_ACK.pack(METHOD, channel, 13, _NACK, number, multiple, 0xCE)


@lru_cache(maxsize=_ADDRESSES)
def read_publish(payload: bytes) -> tuple[str, str, bool, bool]:
    """Exchange, routing key, mandatory, immediate. Most messages go where others went before."""
    try:
        middle = 7 + payload[6]
        end = middle + 1 + payload[middle]
        flags = payload[end]
        key = str(payload[middle + 1 : end], "utf-8", "surrogateescape")
        return str(payload[7:middle], "utf-8"), key, flags & 1 > 0, flags & 2 > 0
    except UnicodeDecodeError:
        raise RefusedError(Code.FRAME_ERROR, "Malformed UTF-8 in shortstr", is_nameless=True) from None
    except IndexError:
        raise undecodable(payload) from None


def undecodable(payload: bytes) -> RefusedError:
    """A method whose fields are cut."""
    return RefusedError(Code.FRAME_ERROR, f"cannot decode <<{','.join(map(str, payload[INDEX.size :]))}>>")


def _layout(command: type[Frame]) -> list[tuple[str, str]]:
    if command not in _layouts:
        _layouts[command] = [(name, _kind(command, name)) for name in command.attributes()]
    return _layouts[command]


def _kind(command: type[Frame], name: str) -> str:
    """Names of queues and exchanges must be UTF-8; other short strings need not."""
    return "name" if name in _NAMES else command.amqp_type(name)


def _read_fields(asked: Frame, payload: bytes) -> None:
    at, used = 4, 0
    for name, kind in _layout(type(asked)):
        if kind == "bit":
            setattr(asked, name, payload[at] >> used & 1 == 1)
            used += 1
            continue
        if used:
            at, used = at + 1, 0
        value, at = _read(kind, payload, at)
        setattr(asked, name, value)


def _read(kind: str, raw: bytes, at: int) -> tuple[Value, int]:
    match kind:
        case "octet":
            return raw[at], at + 1
        case "short":
            return _SHORT.unpack_from(raw, at)[0], at + 2
        case "long":
            return _LONG.unpack_from(raw, at)[0], at + 4
        case "longlong":
            return _LONGLONG.unpack_from(raw, at)[0], at + 8
        case "shortstr":
            end = at + 1 + raw[at]
            return str(_within(raw, at + 1, end), "utf-8", "surrogateescape"), end
        case "name":
            end = at + 1 + raw[at]
            return str(_within(raw, at + 1, end), "utf-8"), end
        case _:
            end = at + 4 + _LONG.unpack_from(raw, at)[0]
            part = _within(raw, at + 4, end)
            return (Table.of(part) if kind == "table" else str(part, "utf-8", "surrogateescape")), end


def _within(raw: bytes, start: int, end: int) -> bytes:
    if end > len(raw):
        raise IndexError
    return raw[start:end]


def _written(kind: str, value: Value) -> bytes:
    match value:
        case Table():
            return value.written()
        case str() if kind in ("shortstr", "name"):
            return short(value)
        case str():
            raw = value.encode("utf-8", "surrogateescape")
            return _LONG.pack(len(raw)) + raw
        case int():
            return _INTEGERS[kind].pack(value)
        case _:
            raise TypeError(f"A field of kind {kind} cannot hold {value!r}.")
