"""Keep a message that the client library cannot decode from costing the connection.

A foreign client may send a timestamp beyond the year 9999, names that are no UTF-8, or
tables nested 26,000 deep. The library's reader fails on such a frame and the connection is
lost; the broker redelivers the message, and so on for ever. So each frame is looked at
before the library sees it, and one that cannot be decoded is replaced by one that can: the
headers then say what is wrong, beside the raw bytes, and the worker dead-letters it.

The library keeps to itself that the broker blocks publishers; here it is heard in passing.

Reading is buffered here as well, which saves the library two waits a frame.
"""

import asyncio
import struct
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, cast

import aiormq
from pamqp.header import ContentHeader

from amqpjobs.amqp.properties import read_usual
from amqpjobs.wire import Properties

#: Headers of a replaced frame: what is wrong with the original, and its raw bytes.
DEFECT_HEADER = "amqpjobs-defect"
RAW_HEADER = "amqpjobs-raw-properties"
_RAW_BUDGET = 60_000
#: Tables and arrays within each other. One that can just be decoded cannot be written again: some 200 are the most.
DEEPEST = 50

_PREFIX = struct.Struct(">BHI")
_METHOD, _CONTENT_HEADER = 1, 2
_DELIVER, _GET_OK = b"\x00\x3c\x00\x3c", b"\x00\x3c\x00\x47"
_BLOCKED, _UNBLOCKED = b"\x00\x0a\x00\x3c", b"\x00\x0a\x00\x3d"
_CHUNK = 256 * 1024

#: Called with the reason when the broker takes no publications, with None when it takes them again.
OnBlocked = Callable[[str | None], None]


def ignore(reason: str | None) -> None:
    """Nobody wants to hear it."""


class GuardedReader:
    """The part of StreamReader that the library uses, one checked frame at a time."""

    def __init__(self, source: asyncio.StreamReader, on_blocked: OnBlocked = ignore) -> None:
        self._source = source
        self._on_blocked = on_blocked
        self._buffer = bytearray()
        self._at = 0
        #: How far the buffer has been checked.
        self._checked = 0

    def at_eof(self) -> bool:
        return self._at >= len(self._buffer) and self._source.at_eof()

    async def read(self, n: int = -1) -> bytes:
        rest = bytes(self._buffer[self._at :])
        self._at = self._checked = len(self._buffer)
        return rest + await self._source.read(n)

    async def readexactly(self, n: int) -> bytes:
        end = self._at + n
        if end > self._checked:
            await self._check_frame()
            end = self._at + n
        if end > len(self._buffer):
            await self._fill(end)
        part = bytes(self._buffer[self._at : end])
        self._at = end
        return part

    async def _fill(self, end: int) -> None:
        if self._at:
            del self._buffer[: self._at]
            end -= self._at
            self._checked -= self._at
            self._at = 0
        while len(self._buffer) < end:
            chunk = await self._source.read(_CHUNK)
            if not chunk:
                raise asyncio.IncompleteReadError(bytes(self._buffer), end)
            self._buffer += chunk

    async def _check_frame(self) -> None:
        """Have one whole frame in the buffer, decodable. Callers read frame by frame."""
        await self._have(7)
        kind, channel, size = _PREFIX.unpack_from(self._buffer, self._at)
        if self._buffer.startswith(b"AMQP", self._at):  # a protocol header: no frame follows
            self._checked = self._at + 7
            return
        await self._have(size + 8)
        start = self._at + 7
        if kind in (_METHOD, _CONTENT_HEADER):
            payload = bytes(self._buffer[start : start + size])
            if channel == 0:
                self._listen(payload)
            mended = mended_header(payload) if kind == _CONTENT_HEADER else mended_deliver(payload)
            if mended is not payload:
                frame = _PREFIX.pack(kind, channel, len(mended)) + mended
                self._buffer[self._at : start + size] = frame
                size = len(mended)
        self._checked = start + size + 1

    def _listen(self, payload: bytes) -> None:
        if payload.startswith(_BLOCKED):
            self._on_blocked(payload[5 : 5 + payload[4]].decode("utf-8", "replace"))
        elif payload.startswith(_UNBLOCKED):
            self._on_blocked(None)

    async def _have(self, n: int) -> None:
        if len(self._buffer) - self._at < n:
            await self._fill(self._at + n)


def mended_header(payload: bytes) -> bytes:
    """A content header that can be decoded: this one, or one that tells what was wrong with it."""
    if read_usual(payload) is not None:
        return payload
    header = ContentHeader()
    try:
        header.unmarshal(payload)
        if _is_deeper(header.properties.headers, DEEPEST):
            raise RecursionError
    except Exception as error:  # whatever hostile bytes make the library raise, RecursionError too
        return _told_header(payload, error)
    return payload


def read_header(payload: bytes) -> Properties:
    """The properties of a content header, or what was wrong with them, as the library's decoding has them."""
    usual = read_usual(payload)
    if usual is not None:
        return usual
    header = ContentHeader()
    header.unmarshal(mended_header(payload))
    return properties_of(header.properties)


def properties_of(given: aiormq.spec.Basic.Properties) -> Properties:
    """The library's properties as a value of ours."""
    headers: Any = given.headers
    return Properties(
        headers=headers or {},
        kind=given.message_type,
        message_id=given.message_id,
        correlation_id=given.correlation_id,
        reply_to=given.reply_to,
        app_id=given.app_id,
        content_type=given.content_type,
        content_encoding=given.content_encoding,
        priority=given.priority,
        timestamp=given.timestamp,
    )


@lru_cache(256)
def read_names(raw: bytes) -> tuple[str, str]:
    """Exchange and routing key at the end of a basic.deliver, whatever bytes they are."""
    key = 1 + raw[0]
    end = key + 1 + raw[key]
    return _text(raw[1:key])[1:].decode(), _text(raw[key + 1 : end])[1:].decode()


def mended_deliver(payload: bytes) -> bytes:
    """A basic.deliver or basic.get-ok whose exchange and routing key are text; other methods pass."""
    if payload.startswith(_DELIVER):
        names = 4 + 1 + payload[4] + 9  # consumer tag, delivery tag, redelivered
    elif payload.startswith(_GET_OK):
        names = 4 + 9  # delivery tag, redelivered
    else:
        return payload
    if payload[names:].isascii():
        return payload
    key = names + 1 + payload[names]
    end = key + 1 + payload[key]
    mended = payload[:names] + _text(payload[names + 1 : key]) + _text(payload[key + 1 : end]) + payload[end:]
    return payload if mended == payload else mended


def _is_deeper(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = cast("Iterable[object]", value.values() if isinstance(value, dict) else value)
    return levels < 0 or any(_is_deeper(each, levels - 1) for each in inner)


def _text(raw: bytes) -> bytes:
    text = raw.decode("utf-8", "replace").encode()
    while len(text) > 255:
        text = text[:255].decode("utf-8", "ignore").encode()
    return bytes([len(text)]) + text


def _told_header(payload: bytes, error: Exception) -> bytes:
    words = (
        "they are nested too deep" if isinstance(error, RecursionError) else f"{type(error).__name__}: {error}"[:200]
    )
    size = int.from_bytes(payload[4:12], "big")
    properties = aiormq.spec.Basic.Properties(
        headers={
            DEFECT_HEADER: f"The AMQP properties or headers cannot be decoded ({words}).",
            RAW_HEADER: bytearray(payload[12 : 12 + _RAW_BUDGET]),
        }
    )
    return ContentHeader(body_size=size, properties=properties).marshal()
