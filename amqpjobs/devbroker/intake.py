"""A published message on its way in: its method, its header, its body in pieces."""

import struct
from dataclasses import dataclass

from amqpjobs.devbroker.errors import Code, RefusedError, unknown_frame
from amqpjobs.devbroker.wire import HEADER, read_publish

_HEADER = struct.Struct(">HHQ")
_BASIC = 60
_LARGEST_EVER = 512 * 1024 * 1024


@dataclass(slots=True, eq=False)
class Publication:
    """All of it; a body that is too large is left out."""

    exchange: str
    key: str
    is_mandatory: bool
    is_immediate: bool
    properties: bytes = b""
    size: int = 0
    body: bytes = b""


class Intake:
    """Puts the frames of one channel together. Raises `RefusedError` for frames out of order."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._publication: Publication | None = None
        self._has_header = False
        self._remaining = 0
        self._parts: list[bytes] = []

    @property
    def is_waiting(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._publication is not None

    def begin(self, payload: bytes) -> None:
        """basic.publish."""
        self._publication = Publication(*read_publish(payload))
        self._has_header = False

    def header(self, payload: bytes) -> Publication | None:
        """The content header; the message, if it has no body."""
        if self._publication is None:
            raise RefusedError(Code.UNEXPECTED_FRAME, "expected method frame, got non method frame instead")
        if self._has_header:
            raise self.interrupted()
        if len(payload) < _HEADER.size:
            raise unknown_frame(HEADER, payload)
        kind, _, size = _HEADER.unpack_from(payload)
        if kind != _BASIC:
            raise self._not_basic(f"got one for class {kind} instead")
        if size > _LARGEST_EVER:
            words = f"content body size {size} exceeds maximum allowed size {_LARGEST_EVER}"
            raise RefusedError(Code.FRAME_ERROR, words)
        self._publication.properties, self._publication.size = payload[_HEADER.size :], size
        self._has_header, self._remaining = True, size
        return self._ended(b"") if size == 0 else None

    def body(self, payload: bytes) -> Publication | None:
        """A piece of the body; the message, if it was the last."""
        if self._publication is None:
            raise RefusedError(Code.UNEXPECTED_FRAME, "expected method frame, got non method frame instead")
        if not self._has_header:
            raise self.interrupted()
        self._remaining -= len(payload)
        if self._remaining < 0:
            raise RefusedError(Code.FRAME_ERROR, "content body frame exceeds remaining content size")
        if self._publication.size <= self._largest:
            self._parts.append(payload)
        if self._remaining:
            return None
        parts, self._parts = self._parts, []
        return self._ended(parts[0] if len(parts) == 1 else b"".join(parts))

    def interrupted(self) -> RefusedError:
        """What to say of a frame that does not belong to the message."""
        if self._has_header:
            return RefusedError(Code.UNEXPECTED_FRAME, "expected content body, got non content body frame instead")
        return self._not_basic("got non content header frame instead")

    def _not_basic(self, instead: str) -> RefusedError:
        return RefusedError(Code.UNEXPECTED_FRAME, f"expected content header for class {_BASIC}, {instead}")

    def _ended(self, body: bytes) -> Publication | None:
        publication, self._publication = self._publication, None
        if publication is not None:
            publication.body = body
        return publication
