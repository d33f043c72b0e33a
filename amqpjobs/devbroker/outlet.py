"""A connection's socket: what goes out, when it is not read from, and how it ends.

What goes out in one turn of the event loop is written at once.
"""

import asyncio
from collections.abc import Callable
from typing import cast

#: Bytes that wait for the socket: from the first on nothing more is delivered, from the second on nothing read.
_FULL, _OVERFULL = 512 * 1024, 16 * 1024 * 1024
#: Written without waiting for the turn of the loop to end.
_CHUNK = 128 * 1024
#: Seconds for a client to hear of its end.
FAREWELL = 1.0


class Outlet(asyncio.Protocol):
    """A protocol that can be written to at any time, also after its end."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        #: When something last went out.
        self.told = self.loop.time()
        #: Whether the client keeps up with what it is sent.
        self.is_writable = True
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._out_size = 0
        self._is_flushing = False
        self._holds: set[str] = set()
        self._alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by their class
        self._transport.set_write_buffer_limits(high=_FULL)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._alarm is not None:
            self._alarm.cancel()

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        self.hold("socket", False)

    @property
    def is_overflowing(self) -> bool:
        """Whether so much waits for the socket that even replies are too much."""
        return self._transport is not None and self._transport.get_write_buffer_size() > _OVERFULL

    @property
    def is_held(self) -> bool:
        """Whether it is not read from now."""
        return bool(self._holds)

    def write(self, data: bytes) -> None:
        """Send this with what else is sent in this turn."""
        if self._transport is None:
            return
        self._out.append(data)
        self._out_size += len(data)
        if self._out_size >= _CHUNK:
            self.flush()
        elif not self._is_flushing:
            self._is_flushing = True
            self.loop.call_soon(self._flush_turn)

    def flush(self) -> None:
        """Do not wait for the turn to end."""
        if self._out and self._transport is not None:
            self.told = self.loop.time()
            out, self._out, self._out_size = self._out, [], 0
            self._transport.write(b"".join(out))
            if self.is_overflowing:
                self.hold("socket", True)

    def hold(self, why: str, is_on: bool) -> None:
        """Do not read while there is a reason not to."""
        (self._holds.add if is_on else self._holds.discard)(why)
        if self._transport is None or self._transport.is_closing():
            return
        if self._holds and self._transport.is_reading():
            self._transport.pause_reading()
        elif not self._holds and not self._transport.is_reading():
            self.resumed()
            self._transport.resume_reading()

    def resumed(self) -> None:
        """It is read from again."""

    def set_alarm(self, seconds: float, act: Callable[[], None]) -> None:
        """Have something done, instead of what was to be done before."""
        self.clear_alarm()
        self._alarm = self.loop.call_later(seconds, act)

    def clear_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def finish(self) -> None:
        """Close it once everything is written; one that does not read is not waited for long."""
        self.flush()
        if self._transport is not None:
            self._transport.close()
            self.set_alarm(FAREWELL, self.abort)

    def abort(self) -> None:
        """End without a word."""
        if self._transport is not None:
            self._transport.abort()

    def _flush_turn(self) -> None:
        self._is_flushing = False
        self.flush()
