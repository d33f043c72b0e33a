"""The properties of a message, between the wire and our own value, without the client library.

The library takes some 30 µs to read those of a job. What a job usually has is read here in a fraction
of that; of anything else, be it hostile or only rare, `read_usual` says None, and it is read the
library's way, behind the guard. Whatever is read here reads the same there.
"""

import struct
from datetime import UTC, datetime
from functools import lru_cache

from amqpjobs.amqp.table import encode_table
from amqpjobs.wire import HeaderValue, Properties, make_properties

#: Class, weight, size of the body, flags; the properties follow.
_START = struct.Struct(">HHQH")
_LONG, _SIGNED, _LONG_LONG, _TIME = struct.Struct(">I"), struct.Struct(">i"), struct.Struct(">q"), struct.Struct(">Q")
_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _DELIVERY_MODE = 1 << 15, 1 << 14, 1 << 13, 1 << 12
_PRIORITY, _CORRELATION_ID, _REPLY_TO, _MESSAGE_ID = 1 << 11, 1 << 10, 1 << 9, 1 << 7
_TIMESTAMP, _TYPE, _APP_ID = 1 << 6, 1 << 5, 1 << 3
#: Flags of properties that are read by the library only: expiration, user id, cluster id, and more flags.
_RARE = 1 << 8 | 1 << 4 | 0b111
#: From here on the library takes a timestamp for milliseconds.
_SECONDS_END = 2**32
_STRING, _INTEGER, _WIDE, _TRUTH = b"SIlt"
_PERSISTENT = b"\x02"


def read_usual(payload: bytes) -> Properties | None:
    """Those of a content header's frame. None: the library has to read it."""
    try:
        return _read_plain(payload) or _read(payload)
    except (IndexError, struct.error, UnicodeDecodeError, OverflowError, ValueError):
        return None


def _read_plain(payload: bytes) -> Properties | None:
    """Those of a job of ours without anything special, as nearly all are: one look, and no walk."""
    if len(payload) < _PLAIN.size:
        return None
    start, job_id, first, attempt, second, version, third, correlation_id, fourth, message_id, seconds = (
        _PLAIN.unpack_from(payload)
    )
    if (start, first, second, third, fourth) != _PLAIN_MARKS:
        return None
    kind, app_id = _two_texts(payload[_PLAIN.size :])
    return make_properties(
        headers={"amqpjobs-id": job_id.decode(), "amqpjobs-attempt": attempt, "amqpjobs-version": version},
        kind=kind,
        message_id=message_id.decode(),
        correlation_id=correlation_id.decode(),
        app_id=app_id,
        content_type="application/json",
        timestamp=_usual_time(seconds),
    )


#: As `amqpjobs.codec` writes it: ids of 36 letters, a first attempt or a later one.
_PLAIN = struct.Struct(">12x40s36s18si18si2s36sc36s8s")
_PLAIN_TO_WRITE = struct.Struct(">HHQ40s36s18si18si2s36sc36sQ")
_PLAIN_NAMES = ("amqpjobs-id", "amqpjobs-attempt", "amqpjobs-version")
_PLAIN_MARKS = _A, _B, _C, _D, _E = (
    b"\xb4\xe8\x10application/json\x00\x00\x00\x61\x0bamqpjobs-idS\x00\x00\x00\x24",
    b"\x10amqpjobs-attemptI",
    b"\x10amqpjobs-versionI",
    b"\x02\x24",
    b"\x24",
)


@lru_cache(256)
def _two_texts(raw: bytes) -> tuple[str, str]:
    """Two short strings, and nothing else. Raises ValueError."""
    middle = 1 + raw[0]
    if len(raw) != middle + 1 + raw[middle]:
        raise ValueError
    return raw[1:middle].decode(), raw[middle + 1 :].decode()


def _read(payload: bytes) -> Properties | None:
    flags: int = _START.unpack_from(payload)[3]
    if flags & _RARE:
        return None
    at = _START.size
    content_type = content_encoding = correlation_id = reply_to = message_id = kind = app_id = priority = None
    timestamp, headers = None, dict[str, HeaderValue]()
    if flags & _CONTENT_TYPE:
        end = at + 1 + payload[at]
        content_type, at = _usual_text(payload[at + 1 : end]), end
    if flags & _CONTENT_ENCODING:
        end = at + 1 + payload[at]
        content_encoding, at = payload[at + 1 : end].decode(), end
    if flags & _HEADERS:
        end = at + 4 + _LONG.unpack_from(payload, at)[0]
        if end > len(payload) or not _read_table(payload, at + 4, end, headers):
            return None
        at = end
    if flags & _DELIVERY_MODE:
        at += 1
    if flags & _PRIORITY:
        priority, at = payload[at], at + 1
    if flags & _CORRELATION_ID:
        end = at + 1 + payload[at]
        correlation_id, at = payload[at + 1 : end].decode(), end
    if flags & _REPLY_TO:
        end = at + 1 + payload[at]
        reply_to, at = payload[at + 1 : end].decode(), end
    if flags & _MESSAGE_ID:
        end = at + 1 + payload[at]
        message_id, at = payload[at + 1 : end].decode(), end
    if flags & _TIMESTAMP:
        timestamp, at = _usual_time(payload[at : at + 8]), at + 8
    if flags & _TYPE:
        end = at + 1 + payload[at]
        kind, at = _usual_text(payload[at + 1 : end]), end
    if flags & _APP_ID:
        end = at + 1 + payload[at]
        app_id, at = _usual_text(payload[at + 1 : end]), end
    if at != len(payload):  # cut short, or with more behind it
        return None
    return make_properties(
        headers=headers,
        kind=kind,
        message_id=message_id,
        correlation_id=correlation_id,
        reply_to=reply_to,
        app_id=app_id,
        content_type=content_type,
        content_encoding=content_encoding,
        priority=priority,
        timestamp=timestamp,
    )


def _read_table(payload: bytes, at: int, end: int, table: dict[str, HeaderValue]) -> bool:
    """Whether it holds nothing but what is usual, and ends where it should."""
    while at < end:
        start = at + 1 + payload[at]
        name = payload[at + 1 : start].decode()
        kind = payload[start]
        at = start + 1
        if kind == _STRING:
            after = at + 4 + _LONG.unpack_from(payload, at)[0]
            table[name], at = payload[at + 4 : after].decode(), after
        elif kind == _INTEGER:
            table[name], at = _SIGNED.unpack_from(payload, at)[0], at + 4
        elif kind == _WIDE:
            table[name], at = _LONG_LONG.unpack_from(payload, at)[0], at + 8
        elif kind == _TRUTH:
            table[name], at = payload[at] != 0, at + 1
        else:
            return False
    return at == end


def written_header(own: Properties, size: int) -> bytes:
    """A content header's frame for a persistent message with a body of so many bytes. Raises ValueError."""
    return _written_plain(own, size) or _written(own, size)


def _written_plain(own: Properties, size: int) -> bytes | None:
    """That of a job of ours without anything special, as `_read_plain` reads it."""
    if tuple(own.headers) != _PLAIN_NAMES or own.content_type != "application/json" or own.timestamp is None:
        return None
    if own.content_encoding or own.priority is not None or own.reply_to or not own.kind or not own.app_id:
        return None
    job_id, attempt, version = own.headers.values()
    if type(job_id) is not str or type(attempt) is not int or type(version) is not int:
        return None
    try:
        one, other, third = job_id.encode(), (own.correlation_id or "").encode(), (own.message_id or "").encode()
        if not len(one) == len(other) == len(third) == 36:
            return None
        at = int(own.timestamp.timestamp())
        start = _PLAIN_TO_WRITE.pack(60, 0, size, _A, one, _B, attempt, _C, version, _D, other, _E, third, at)
    except (struct.error, ValueError):
        return None
    return start + _usual_shorts(own.kind, own.app_id)


def _written(own: Properties, size: int) -> bytes:
    flags = _DELIVERY_MODE
    parts = [b""]
    if own.content_type:
        flags |= _CONTENT_TYPE
        parts.append(_usual_short(own.content_type))
    if own.content_encoding:
        flags |= _CONTENT_ENCODING
        parts.append(_usual_short(own.content_encoding))
    if own.headers:
        flags |= _HEADERS
        parts.append(encode_table(own.headers))
    parts.append(_PERSISTENT)
    if own.priority is not None:
        flags |= _PRIORITY
        parts.append(_LENGTHS[own.priority])
    if own.correlation_id:
        flags |= _CORRELATION_ID
        parts.append(short(own.correlation_id))
    if own.reply_to:
        flags |= _REPLY_TO
        parts.append(short(own.reply_to))
    if own.message_id:
        flags |= _MESSAGE_ID
        parts.append(short(own.message_id))
    if own.timestamp is not None:
        flags |= _TIMESTAMP
        parts.append(_TIME.pack(int(own.timestamp.timestamp())))
    if own.kind:
        flags |= _TYPE
        parts.append(_usual_short(own.kind))
    if own.app_id:
        flags |= _APP_ID
        parts.append(_usual_short(own.app_id))
    parts[0] = _START.pack(60, 0, size, flags)
    return b"".join(parts)


_LENGTHS = [bytes([length]) for length in range(256)]


def short(text: str) -> bytes:
    """A short string, with its length before it. Raises ValueError when it has more than 255 bytes."""
    raw = text.encode()
    if len(raw) > 255:
        raise ValueError(f"{text[:40]!r}… has {len(raw)} bytes, and AMQP has room for 255 there.")
    return _LENGTHS[len(raw)] + raw


#: For what is the same in many messages.
_usual_short = lru_cache(256)(short)


@lru_cache(256)
def _usual_shorts(one: str, other: str) -> bytes:
    return short(one) + short(other)


@lru_cache(256)
def _usual_text(raw: bytes) -> str:
    return raw.decode()


@lru_cache(64)
def _usual_time(raw: bytes) -> datetime:
    """A time in whole seconds. Raises ValueError for what the library takes for milliseconds."""
    seconds: int = _TIME.unpack(raw)[0]
    if seconds >= _SECONDS_END:
        raise ValueError
    return datetime.fromtimestamp(seconds, UTC)
