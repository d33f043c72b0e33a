"""A client's connection: the handshake, its channels, and what is done when one side is too slow.

A client that does not read is given no more deliveries; one that publishes while the broker holds too much is
not read from until that is less.
"""

import asyncio
import struct

from pamqp import commands
from pamqp.base import Frame

from amqpjobs.devbroker.channel import Channel
from amqpjobs.devbroker.directory import Directory
from amqpjobs.devbroker.errors import Code, RefusedError, forbidden, octets, unknown_frame
from amqpjobs.devbroker.handshake import FRAME_MAX, Handshake
from amqpjobs.devbroker.outlet import FAREWELL, Outlet
from amqpjobs.devbroker.users import Access
from amqpjobs.devbroker.vhost import VHost
from amqpjobs.devbroker.wire import (
    BODY,
    HEADER,
    HEARTBEAT,
    HEARTBEAT_FRAME,
    INDEX,
    METHOD,
    OVERHEAD,
    PREFIX,
    decode,
    frame,
    method,
)

_GREETING = b"AMQP\x00\x00\x09\x01"
#: Seconds for the handshake.
_HANDSHAKE = 10.0
_OPEN, _CLOSE, _CLOSE_OK = commands.Channel.Open.index, commands.Channel.Close.index, commands.Channel.CloseOk.index


class Connection(Outlet):
    """From the greeting to the end."""

    vhost: VHost
    access: Access

    def __init__(self, directory: Directory) -> None:
        super().__init__()
        self._directory = directory
        self._rest = b""
        #: What is expected next: a greeting, a login, a vhost; then it is running, closing, or closed.
        self._state = "greeting"
        self._handshake = Handshake(directory)
        self.channels: dict[int, Channel] = {}
        #: Refused ones whose end the client has not confirmed, and numbers that were in use before.
        self._closing_channels: set[int] = set()
        self._closed_channels: set[int] = set()
        #: Index of the method that came on no open channel, for error replies.
        self._latest = 0
        self._unconfirmed: list[Channel] = []
        self._has_published = False
        self.frame_max = FRAME_MAX
        self._heard = self.loop.time()

    # -- the socket ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._directory.enter(self)
        self.set_alarm(_HANDSHAKE, self.abort)

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        if self._is_deaf():
            return
        if self._rest:
            data = self._rest + data
        at = 0
        try:
            at = self._take_frames(data)
        except RefusedError as error:
            self._fail(error, 0)
        except Exception:
            self._directory.report_crash()
            self._fail(RefusedError(Code.INTERNAL_ERROR, "the broker failed; its log tells how"), 0)
        self._rest = b"" if self._is_deaf() else data[at:]
        self._send_confirms()
        self._check_memory()

    def _is_deaf(self) -> bool:
        return self._state in ("closed", "lost")

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._state = "lost"
        self._directory.forget(self)
        self._directory.memory.give_up(self._memory_is_free)
        self._end_channels()

    def resume_writing(self) -> None:
        super().resume_writing()
        for queue in dict.fromkeys(
            queue for channel in self.channels.values() for queue in channel.deliveries.queues()
        ):
            queue.dispatch()

    def resumed(self) -> None:
        self._heard = self.loop.time()

    def confirm_soon(self, channel: Channel) -> None:
        self._unconfirmed.append(channel)

    def write_confirms(self, data: bytes) -> None:
        if self._directory.lost_confirms:
            self._directory.lost_confirms -= 1
            self.abort()
        else:
            self.write(data)

    def _send_confirms(self) -> None:
        if self._unconfirmed:
            unconfirmed, self._unconfirmed = self._unconfirmed, []
            for channel in unconfirmed:
                channel.send_confirms()

    # -- memory --------------------------------------------------------------------------------------------

    def _check_memory(self) -> None:
        if self._has_published and self._directory.memory.is_short and self._state == "running":
            self.hold("memory", True)
            self._directory.memory.wait(self._memory_is_free)
            if self._handshake.can("connection.blocked"):
                self.write(frame(0, method(commands.Connection.Blocked, reason="low on memory")))
        self._has_published = False

    def _memory_is_free(self) -> None:
        if self._handshake.can("connection.blocked"):
            self.write(frame(0, method(commands.Connection.Unblocked)))
        self.hold("memory", False)

    # -- in ------------------------------------------------------------------------------------------------

    def _take_frames(self, data: bytes) -> int:
        """How far they were whole."""
        at, end = 0, len(data)
        if self._state == "greeting":
            if end < len(_GREETING):
                return 0
            at = len(_GREETING)
            self._greet(data[:at])
        while end - at >= PREFIX.size and not self._is_deaf():
            kind, number, size = PREFIX.unpack_from(data, at)
            if size > self.frame_max and self.frame_max:
                raise RefusedError(
                    Code.FRAME_ERROR,
                    f"type {kind}, {octets(b'')}: {{frame_too_large,{size},{self.frame_max - OVERHEAD}}}",
                )
            last = at + 7 + size
            if last >= end:
                break
            if data[last] != 0xCE:
                raise RefusedError(
                    Code.FRAME_ERROR,
                    f"type {kind}, {octets(data[at + 7 : last])}: {{invalid_frame_end_marker,{data[last]}}}",
                )
            payload = data[at + 7 : last]
            at = last + 1
            self._take(kind, number, payload)
        return at

    def _take(self, kind: int, number: int, payload: bytes) -> None:
        if number == 0:
            self._take_own(kind, payload)
            return
        if self._state == "closing":
            return
        if self._state != "running":
            raise RefusedError(Code.UNEXPECTED_FRAME, f"type {kind}, {octets(payload)}")
        channel = self.channels.get(number)
        try:
            if channel is None:
                self._take_unopened(kind, number, payload)
            elif kind == METHOD:
                self._take_method(channel, payload)
            elif kind == HEADER:
                self._has_published = True
                channel.receive_header(payload)
            elif kind == BODY:
                self._has_published = True
                channel.receive_body(payload)
            elif kind == HEARTBEAT:
                raise RefusedError(Code.UNEXPECTED_FRAME, f"type {kind}, {octets(payload)}")
            else:
                raise unknown_frame(kind, payload)
        except RefusedError as error:
            self._refuse(error, number, channel)

    def _take_method(self, channel: Channel, payload: bytes) -> None:
        index = INDEX.unpack_from(payload)[0] if len(payload) >= INDEX.size else 0
        if index == _CLOSE:
            channel.close()
            self.write(frame(channel.number, method(commands.Channel.CloseOk)))
            if channel.number not in self._closing_channels:
                self._forget(channel)
        elif index == _CLOSE_OK and not channel.is_open:
            self._closing_channels.discard(channel.number)
            self._forget(channel)
        else:
            channel.receive_method(payload)

    def _forget(self, channel: Channel) -> None:
        del self.channels[channel.number]
        self._closed_channels.add(channel.number)

    def _take_unopened(self, kind: int, number: int, payload: bytes) -> None:
        self._latest = 0
        if kind != METHOD:
            raise RefusedError(Code.UNEXPECTED_FRAME, "expected method frame, got non method frame instead")
        self._latest = index = INDEX.unpack_from(payload)[0] if len(payload) >= INDEX.size else 0
        if index == _CLOSE and number in self._closed_channels:
            # A client that gave up waiting closes again; RabbitMQ is slow enough to hear both.
            self.write(frame(number, method(commands.Channel.CloseOk)))
            return
        if index != _OPEN:
            raise RefusedError(Code.CHANNEL_ERROR, "expected 'channel.open'")
        most = self._handshake.channel_max
        if len(self.channels) >= most:
            count = len(self.channels)
            raise forbidden(f"number of channels opened ({count}) has reached the negotiated channel_max ({most})")
        self._closed_channels.discard(number)
        self.channels[number] = Channel(number, self)
        self.write(frame(number, method(commands.Channel.OpenOk)))

    def refuse(self, channel: Channel, error: RefusedError) -> None:
        channel.current = 0
        self._refuse(error, channel.number, channel)

    def _refuse(self, error: RefusedError, number: int, channel: Channel | None) -> None:
        current = 0 if error.is_nameless else self._latest if channel is None else channel.current
        if error.code.is_hard or channel is None:
            self._fail(error, current)
            return
        channel.close()
        self._closing_channels.add(number)
        self.write(frame(number, _closing(commands.Channel.Close, error, current)))

    # -- the handshake -------------------------------------------------------------------------------------

    def _greet(self, greeting: bytes) -> None:
        if greeting != _GREETING:
            self.write(_GREETING)
            self._end()
            return
        self._state = "login"
        self.write(frame(0, self._handshake.greeted()))

    def _take_own(self, kind: int, payload: bytes) -> None:
        if kind == HEARTBEAT:
            return
        if kind not in (METHOD, HEADER, BODY):
            raise unknown_frame(kind, payload)
        if kind != METHOD:
            raise RefusedError(Code.UNEXPECTED_FRAME, f"type {kind}, {octets(payload)}")
        asked = decode(payload)
        try:
            self._do(asked)
        except RefusedError as error:
            self._fail(error, 0 if self._state == "login" else asked.index)

    def _do(self, asked: Frame) -> None:
        match asked, self._state:
            case commands.Connection.Close(), _:
                self._end_channels()
                self.write(frame(0, method(commands.Connection.CloseOk)))
                self._end()
            case commands.Connection.CloseOk(), "closing":
                self._end()
            case _, "closing":
                pass
            case commands.Connection.StartOk(), "login":
                self._start(asked)
            case commands.Connection.TuneOk(), "tune":
                self._tune(asked)
            case commands.Connection.Open(), "open":
                self._open(asked.virtual_host)
            case commands.Connection.UpdateSecret(), "running":
                self.write(frame(0, method(commands.Connection.UpdateSecretOk)))
            case _:
                raise RefusedError(Code.CHANNEL_ERROR, f"unexpected method in connection state {self._state}")

    def _start(self, asked: commands.Connection.StartOk) -> None:
        try:
            self.write(frame(0, self._handshake.started(asked)))
        except RefusedError as error:
            if error.code is not Code.ACCESS_REFUSED or self._handshake.can("authentication_failure_close"):
                raise
            self._end()
        else:
            self._state = "tune"

    def _tune(self, asked: commands.Connection.TuneOk) -> None:
        self._handshake.tuned(asked)
        self.frame_max = self._handshake.frame_max
        self._state = "open"

    def _open(self, name: str) -> None:
        self.vhost, self.access = self._handshake.opened(name)
        self._state = "running"
        self.write(frame(0, method(commands.Connection.OpenOk)))
        self.clear_alarm()
        if self._handshake.heartbeat:
            self._beat()

    @property
    def has_cancel_notices(self) -> bool:
        return self._handshake.can("consumer_cancel_notify")

    # -- time and the end ----------------------------------------------------------------------------------

    def _beat(self) -> None:
        now = self.loop.time()
        # One that is not read from cannot be heard.
        if now - self._heard > 2 * self._handshake.heartbeat and not self.is_held:
            self.abort()
            return
        if now - self.told >= self._handshake.heartbeat / 2:
            self.write(HEARTBEAT_FRAME)
        self.set_alarm(self._handshake.heartbeat / 2, self._beat)

    def _fail(self, error: RefusedError, current: int) -> None:
        """Tell the client and end, as soon as it answers or has had time to."""
        if self._is_deaf() or self._state == "closing":
            return
        self._end_channels()
        self.write(frame(0, _closing(commands.Connection.Close, error, current)))
        self.flush()
        # Without a frame's end there is no telling where the next begins.
        self._state = "closed" if error.code is Code.FRAME_ERROR else "closing"
        self.set_alarm(FAREWELL, self._end)

    def close(self, error: RefusedError) -> None:
        """The broker wants it to end, whatever the client says."""
        if self._state == "running":
            self._fail(error, 0)
        self._end()

    def _end(self) -> None:
        self._state = "closed"
        self.finish()

    def _end_channels(self) -> None:
        self._send_confirms()
        channels, self.channels = list(self.channels.values()), {}
        for channel in channels:  # what one gives back is not for another that ends, too
            channel.deliveries.stop()
        for channel in channels:
            channel.close()
        self._directory.remove_exclusive(self)


def _closing(command: type[Frame], error: RefusedError, current: int) -> bytes:
    class_id, method_id = struct.unpack(">HH", INDEX.pack(current))
    return method(command, reply_code=error.code.number, reply_text=error.text, class_id=class_id, method_id=method_id)
