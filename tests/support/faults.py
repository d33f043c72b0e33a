"""A proxy that does to connections what networks and brokers do to them on bad days.

It passes whole frames. So it can cut between two of them or within one, stall or delay a direction, lose or
hold back a frame, and say what the broker did not say. Chance comes from a seed, which a failing test shows.

A stalled direction is accepted as far as the kernel's buffers reach; nothing of it goes on.
"""

import asyncio
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import cast
from urllib.parse import urlsplit, urlunsplit

from tests.support.broker import PATIENCE
from tests.support.frames import GREETING, Frame, FrameReader, method, short_text
from tests.support.rabbitmq import HOST, free_ports

#: Frames that a body may follow: nothing else of their channel comes between.
_WITH_CONTENT = ("basic.deliver", "basic.return", "basic.get-ok")


class Way(Enum):
    """A direction."""

    TO_BROKER = "to the broker"
    FROM_BROKER = "from the broker"


class Fate(Enum):
    """What becomes of a frame."""

    PASS = "pass"
    SWALLOW = "swallow"
    HOLD = "hold"
    #: Half of it passes, and then the connection ends.
    TEAR = "tear"


@dataclass
class Rule:
    """From the `nth` frame of this name on, so many meet this fate."""

    way: Way
    name: str
    fate: Fate
    nth: int
    count: int
    #: Set when it has met the first.
    struck: asyncio.Event = field(default_factory=asyncio.Event)
    _seen: int = 0

    async def met(self) -> None:
        """Wait until it has met the first."""
        async with asyncio.timeout(PATIENCE):
            await self.struck.wait()

    def fate_of(self, way: Way, frame: Frame) -> Fate:
        if way is not self.way or frame.name != self.name:
            return Fate.PASS
        self._seen += 1
        if not self.nth <= self._seen < self.nth + self.count:
            return Fate.PASS
        self.struck.set()
        return self.fate


class FaultyProxy:
    """`url` leads through it. What it is told holds for all its connections, those to come too."""

    def __init__(self, url: str, *, seed: int | None = None) -> None:
        self._broker = urlsplit(url)
        (self.port,) = free_ports(1)
        self._server: asyncio.Server | None = None
        self.seed = random.randrange(2**32) if seed is None else seed
        self.random = random.Random(self.seed)
        self.to_broker: Counter[str] = Counter()
        self.from_broker: Counter[str] = Counter()
        self._connections: set[_Connection] = set()
        self._serving = set[asyncio.Task[None]]()
        self._is_over = False
        self._rules: list[Rule] = []
        self._cuts: dict[Way, int] = {}
        self._passed: Counter[Way] = Counter()
        self._gates = {way: asyncio.Event() for way in Way}
        self._delay = (0.0, 0.0)
        self.resume()

    @property
    def url(self) -> str:
        login = f"{self._broker.username}:{self._broker.password}"
        return urlunsplit(self._broker._replace(netloc=f"{login}@{HOST}:{self.port}"))

    @property
    def open(self) -> int:
        """Connections that are up."""
        return len(self._connections)

    @property
    def consumers(self) -> int:
        """Consumers that the broker has confirmed and nobody has cancelled."""
        return sum(len(each.consumers) for each in self._connections)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["FaultyProxy"]:
        await self.accept()
        try:
            yield self
        finally:
            await self.refuse()
            self.resume()
            self._is_over = True
            self.cut()
            if self._serving:
                await asyncio.wait(self._serving)

    def calm(self) -> None:
        """Do nothing more of what was told; what is held back goes on."""
        self.resume()
        self.delay(0.0)
        self.release()
        self._cuts.clear()

    # Whole connections

    async def accept(self) -> None:
        """Take new connections (again)."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, HOST, self.port)

    async def refuse(self) -> None:
        """Refuse new connections; those that are up stay."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def cut(self, *, reset: bool = True) -> None:
        """End all connections now, by a reset or in the polite way of TCP. AMQP says no goodbye."""
        for each in list(self._connections):
            each.cut(reset=reset)

    def cut_at(self, way: Way, byte: int) -> None:
        """Cut the connection that carries the n-th byte from now on in this direction, just behind it."""
        self._cuts[way] = self._passed[way] + byte

    def tear(self, way: Way, name: str, *, nth: int = 1) -> Rule:
        """Let half of the n-th frame of this name pass, and cut its connection."""
        return self._add(way, name, Fate.TEAR, nth, 1)

    # A direction

    def stall(self, way: Way) -> None:
        """Accept what comes and pass nothing on, as half-open connections do."""
        self._gates[way].clear()

    def resume(self, way: Way | None = None) -> None:
        """Pass on what was stalled, in this direction or in both."""
        for each in Way if way is None else (way,):
            self._gates[each].set()

    def delay(self, seconds: float, jitter: float = 0.0) -> None:
        """Let each piece wait so long, and by chance up to `jitter` longer."""
        self._delay = (seconds, jitter)

    # Frames

    def swallow(self, way: Way, name: str, *, nth: int = 1, count: int = 1) -> Rule:
        """Lose frames of this name: `basic.ack` to the broker settles, from the broker it confirms."""
        return self._add(way, name, Fate.SWALLOW, nth, count)

    def hold(self, way: Way, name: str, *, nth: int = 1, count: int = 1) -> Rule:
        """Keep frames of this name back until `release`."""
        return self._add(way, name, Fate.HOLD, nth, count)

    def release(self) -> None:
        """Pass on what was held back, in the order it came, and forget all rules."""
        self._rules.clear()
        for each in self._connections:
            each.release()

    def forge_cancel(self) -> int:
        """Cancel all consumers in the broker's name; how many."""
        cancelled = 0
        for each in self._connections:
            for tag, channel in each.consumers.items():
                each.say(channel, method("basic.cancel", channel, short_text(tag) + b"\x01"))
                cancelled += 1
        return cancelled

    def forge_blocked(self, reason: str = "low on memory") -> None:
        """Tell all clients in the broker's name that it takes no publications."""
        for each in self._connections:
            each.say(0, method("connection.blocked", 0, short_text(reason.encode())))

    def forge_unblocked(self) -> None:
        for each in self._connections:
            each.say(0, method("connection.unblocked", 0, b""))

    # What connections ask

    def fate_of(self, way: Way, frame: Frame) -> Fate:
        fates = [rule.fate_of(way, frame) for rule in self._rules]
        return next((fate for fate in fates if fate is not Fate.PASS), Fate.PASS)

    def until_cut(self, way: Way, size: int) -> int | None:
        """How many of the next bytes may pass before the cut; None means all."""
        start, end = self._passed[way], self._cuts.get(way)
        self._passed[way] += size
        if end is None or start + size < end:
            return None
        del self._cuts[way]
        return end - start

    async def held_up(self, way: Way) -> None:
        seconds, jitter = self._delay
        if seconds or jitter:
            await asyncio.sleep(seconds + self.random.uniform(0, jitter))
        await self._gates[way].wait()

    def count(self, way: Way, frame: Frame) -> None:
        if frame.name != GREETING:
            (self.to_broker if way is Way.TO_BROKER else self.from_broker)[frame.name] += 1

    def _add(self, way: Way, name: str, fate: Fate, nth: int, count: int) -> Rule:
        rule = Rule(way, name, fate, nth, count)
        self._rules.append(rule)
        return rule

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._serving.add(task)
        try:
            await self._serve_one(reader, writer)
        finally:
            self._serving.discard(task)

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, onward = await asyncio.open_connection(
                self._broker.hostname or "localhost", self._broker.port or 5672
            )
        except OSError:  # the broker itself is away
            writer.transport.abort()
            return
        connection = _Connection(self, reader, writer, there, onward)
        self._connections.add(connection)
        if self._is_over:
            connection.cut(reset=True)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)


class _Connection:
    """Both directions of one connection."""

    def __init__(
        self,
        proxy: FaultyProxy,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        broker: asyncio.StreamReader,
        to_broker: asyncio.StreamWriter,
    ) -> None:
        #: Channel by tag.
        self.consumers: dict[bytes, int] = {}
        self._proxy = proxy
        self._sources = {Way.TO_BROKER: client, Way.FROM_BROKER: broker}
        self._targets = {Way.TO_BROKER: to_broker, Way.FROM_BROKER: to_client}
        self._held: list[tuple[Way, Frame]] = []
        #: Bytes of content that must still come on a channel; None: its header first.
        self._awaited: dict[int, int | None] = {}
        #: Forged frames that wait for the end of a content.
        self._unsaid: dict[int, list[bytes]] = {}

    async def run(self) -> None:
        await asyncio.gather(*(self._pump(way) for way in Way))

    def cut(self, *, reset: bool) -> None:
        for writer in self._targets.values():
            if reset:
                _reset(writer)
            else:
                writer.close()

    def release(self) -> None:
        held, self._held = self._held, []
        for way, frame in held:
            self._targets[way].write(frame.raw)

    def say(self, channel: int, raw: bytes) -> None:
        """Say it to the client, behind the content that is under way on that channel."""
        if channel in self._awaited:
            self._unsaid.setdefault(channel, []).append(raw)
        else:
            self._targets[Way.FROM_BROKER].write(raw)

    async def _pump(self, way: Way) -> None:
        source, target = self._sources[way], self._targets[way]
        frames = FrameReader(has_greeting=way is Way.TO_BROKER)
        with suppress(OSError):
            while data := await source.read(65_536):
                await self._proxy.held_up(way)
                for frame in frames.feed(data):
                    if not self._pass(way, frame):
                        return
                await target.drain()
        with suppress(OSError):
            target.close()

    def _pass(self, way: Way, frame: Frame) -> bool:
        """Whether the connection goes on."""
        self._proxy.count(way, frame)
        match self._proxy.fate_of(way, frame):
            case Fate.SWALLOW:
                return True
            case Fate.HOLD:
                self._held.append((way, frame))
                return True
            case Fate.TEAR:
                return self._write(way, frame.raw[: len(frame.raw) // 2]) and self._end()
            case Fate.PASS:
                going = self._write(way, frame.raw)
        if way is Way.FROM_BROKER:
            self._note(frame)
        return going

    def _write(self, way: Way, raw: bytes) -> bool:
        most = self._proxy.until_cut(way, len(raw))
        self._targets[way].write(raw[:most])
        return most is None or self._end()

    def _end(self) -> bool:
        # In the polite way, so that what was written before arrives.
        self.cut(reset=False)
        return False

    def _note(self, frame: Frame) -> None:
        """Keep in mind who consumes, and where a content is under way."""
        if frame.name == "basic.consume-ok":
            self.consumers[frame.arguments[1:]] = frame.channel
        elif frame.name == "basic.cancel":
            self.consumers.pop(frame.arguments[1 : 1 + frame.arguments[0]], None)
        elif frame.name in _WITH_CONTENT:
            self._awaited[frame.channel] = None
        elif frame.name == "header":
            self._awaited[frame.channel] = struct.unpack(">Q", frame.payload[4:12])[0]
        elif frame.name == "body":
            self._awaited[frame.channel] = (self._awaited.get(frame.channel) or 0) - len(frame.payload)
        if self._awaited.get(frame.channel) == 0:
            del self._awaited[frame.channel]
            for raw in self._unsaid.pop(frame.channel, []):
                self._targets[Way.FROM_BROKER].write(raw)


def _reset(writer: asyncio.StreamWriter) -> None:
    """End it with RST: nothing that waits in the kernel is sent any more."""
    raw: socket.socket | None = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
