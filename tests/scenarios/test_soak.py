"""A long life with many reconnects leaves nothing behind: `make soak`, and seconds of the same in the suite.

A worker and two producers, each in a process of its own, work in a steady flow while their connections are
cut again and again. From time to time the flow stops, all that was confirmed ends, and everybody tells what
it has: the same as at the beginning, and no more memory than after the warm-up.
"""

import asyncio
import faulthandler
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, fields
from itertools import cycle
from pathlib import Path

import pytest

from tests.conftest import MakeNode, announce
from tests.scenarios.conftest import control
from tests.support.apps import NAMESPACE
from tests.support.broker import PATIENCE, Broker, eventually, plain_client
from tests.support.faults import FaultyProxy, Way
from tests.support.rabbitmq import Node
from tests.support.soak import COUNTS, Figures, Part

SEED = 4
MEGABYTE = 1_000_000
#: Seconds of flow between two cuts, and between two rows of figures: at full length, and in the suite.
LONG, SHORT = (20.0, 60.0), (1.0, 3.0)
#: Rows in the suite; at full length there is one for each minute.
ROWS = 2
#: The part of all rows that is the warm-up.
WARM_UP = 0.25
#: What opens a connection.
OPEN = "method 10.40"


@dataclass(frozen=True, slots=True)
class AtBroker:
    """What the broker has of everything that could pile up."""

    queues: int
    messages: int
    consumers: int
    connections: int
    channels: int


@dataclass(frozen=True, slots=True)
class Row:
    """What all of them had at one moment, in which nothing was under way."""

    parts: dict[str, Figures]
    broker: AtBroker

    def __str__(self) -> str:
        names = "".join(f"{name:>13}" for name in ("memory", *COUNTS, "closed"))
        lines = [f"{'':10}{names}"]
        for role, each in self.parts.items():
            counts = "".join(f"{count:13}" for count in (*each.counts, each.closed))
            lines.append(f"{role:10}{each.memory / MEGABYTE:10.1f} MB{counts}")
        said = ", ".join(f"{getattr(self.broker, each.name)} {each.name}" for each in fields(self.broker))
        return "\n".join([*lines, f"{'broker':10}   {said}"])


class Lines:
    """The lines of a file that grows, as far as they were read."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._at = 0
        self.seen = list[str]()

    def read(self) -> list[str]:
        if self._file.exists():
            with self._file.open() as source:
                source.seek(self._at)
                whole, end, _ = source.read().rpartition("\n")  # a line that is being written is none yet
                self.seen += whole.splitlines()
                self._at += len(whole + end)
        return self.seen


class Soak:
    """The processes, their broker behind a proxy, and the ledgers."""

    def __init__(self, node: Node, proxy: FaultyProxy, name: str, folder: Path) -> None:
        roles = ("worker", "producer", "blocking")
        self.parts = [Part(role, proxy.url, folder, SEED) for role in roles]
        self.cuts = 0
        self._proxy = proxy
        self._node = node
        self._dead_queue = f"{NAMESPACE}.dead.{name}"
        self._confirmed, self._ended, self._refused = (
            Lines(folder / file) for file in ("confirmed", "ended", "refused")
        )
        self._dead = set[str]()
        self._ways = cycle([self._reset, self._end_politely, self._tear, self._let_broker_close])

    @property
    def told(self) -> str:
        opened = self._proxy.to_broker[OPEN]
        confirmed, refused = len(self._confirmed.read()), len(self._refused.read())
        return (
            f"{self.cuts} cuts, {opened} connections opened; {confirmed} jobs confirmed, {refused} not, "
            f"{len(self._dead)} dead letters; every confirmed one has ended"
        )

    async def flow(self, seconds: float, cut_every: float) -> None:
        """Let jobs flow for so long, with a cut from time to time, and at least one."""
        await self._tell("go")
        ends = time.monotonic() + seconds
        while not self.cuts or time.monotonic() < ends:
            await asyncio.sleep(cut_every)
            await next(self._ways)()
            self.cuts += 1
        await self._tell("stop")

    async def row(self, begin: Row | None) -> Row:
        """When all jobs have ended: the figures, as soon as they are those of the beginning, or else in the end."""
        self._proxy.calm()
        await self._tell("each")  # opens again what is only opened when needed
        async with plain_client(self._node.url) as broker:
            await eventually(lambda: self._have_ended(broker), within=4 * PATIENCE)
        parts = await self._of_parts(None if begin is None else begin.parts)
        return Row(parts, await self._of_broker(None if begin is None else begin.broker))

    async def explanation(self) -> str:
        """What all processes are about, with what they have logged."""
        for part in self.parts:
            await part.ask("explain")
        return "\n".join(f"--- {part.role}:\n{part.log}" for part in self.parts)

    async def _tell(self, word: str) -> None:
        for part in self.parts[1:]:
            await part.ask(word)

    async def _have_ended(self, broker: Broker) -> bool:
        letters = await broker.take(self._dead_queue, await broker.count(self._dead_queue))
        self._dead |= {letter.text("amqpjobs-id") for letter in letters}
        return set(self._confirmed.read()) <= set(self._ended.read()) | self._dead

    async def _of_parts(self, begin: dict[str, Figures] | None) -> dict[str, Figures]:
        seen = [await self._asked()]

        async def is_steady() -> bool:
            seen.append(await self._asked())
            if begin is None:
                return all(each.counts == seen[-2][role].counts for role, each in seen[-1].items())
            return all(each.is_within(begin[role]) for role, each in seen[-1].items())

        with suppress(AssertionError):  # the caller looks, when the table is written
            await eventually(is_steady)
        return seen[-1]

    async def _of_broker(self, begin: AtBroker | None) -> AtBroker:
        seen = [await self._at_broker()]

        def is_as_begun() -> bool:
            now = seen[-1]
            is_steady = len(seen) > 1 and now == seen[-2]
            return now == begin or (begin is None and is_steady and now.consumers > 0 and not now.messages)

        async def is_soon() -> bool:
            if not is_as_begun():  # what it tells is old: at first, from before the worker was back
                seen.append(await self._at_broker())
            return is_as_begun()

        with suppress(AssertionError):
            await eventually(is_soon, within=4 * PATIENCE)  # each look takes seconds
        return seen[-1]

    async def _asked(self) -> dict[str, Figures]:
        return {part.role: await part.ask("measure") for part in self.parts}

    async def _at_broker(self) -> AtBroker:
        queues, connections = await asyncio.gather(
            control(self._node, "list_queues", "messages", "consumers", "--no-table-headers"),
            control(self._node, "list_connections", "channels", "--no-table-headers"),
        )
        rows = [[int(count) for count in line.split()] for line in queues.splitlines()]
        channels = [int(line) for line in connections.split()]
        return AtBroker(
            queues=len(rows),
            messages=sum(row[0] for row in rows),
            consumers=sum(row[1] for row in rows),
            connections=len(channels),
            channels=sum(channels),
        )

    # Ways to lose connections

    async def _reset(self) -> None:
        self._proxy.cut()

    async def _end_politely(self) -> None:
        self._proxy.cut(reset=False)

    async def _tear(self) -> None:
        for way in Way:
            self._proxy.cut_at(way, self._proxy.random.randint(1, 5_000))

    async def _let_broker_close(self) -> None:
        await control(self._node, "close_all_connections", "a soak")


@pytest.fixture
async def soak(
    make_node: MakeNode, unique: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Soak]:
    node, name = await asyncio.to_thread(make_node), unique()
    monkeypatch.setenv("SOAK_APP_OPTIONS", json.dumps({"folder": str(tmp_path), "name": name}))
    async with FaultyProxy(node.url, seed=SEED).running() as proxy, AsyncExitStack() as stack:
        soak = Soak(node, proxy, name, tmp_path)
        for part in soak.parts:
            await stack.enter_async_context(part)
        yield soak


async def test_a_long_life_with_many_reconnects_leaves_nothing_behind(soak: Soak, pytestconfig: pytest.Config) -> None:
    minutes: float | None = pytestconfig.getoption("--soak")
    if minutes is not None:
        faulthandler.cancel_dump_traceback_later()  # it takes what is long for what hangs; all waits here are bounded
    cut_every, row_every = SHORT if minutes is None else LONG
    count = ROWS if minutes is None else max(ROWS, round(minutes * 60 / row_every))
    began = time.monotonic()

    await soak.flow(0, cut_every)
    rows = [await soak.row(None)]
    announce(pytestconfig, f"at the beginning: {soak.told}\n{rows[0]}")
    for number in range(1, count + 1):
        await soak.flow(row_every, cut_every)
        rows.append(await soak.row(rows[0]))
        took = time.monotonic() - began
        announce(pytestconfig, f"row {number} of {count}, after {took:.0f} s: {soak.told}\n{rows[-1]}")

    begin, warm, end = rows[0], rows[max(1, round(count * WARM_UP))], rows[-1]
    growth = {role: end.parts[role].memory - each.memory for role, each in warm.parts.items()}
    words = {role: f"{each / MEGABYTE:.1f} MB" for role, each in growth.items()}
    announce(pytestconfig, f"growth since the warm-up: {words}")
    # Fewer is well: at the beginning, a process for suspects may still have waited for more of them.
    for role, each in end.parts.items():
        assert each.is_within(begin.parts[role]), f"{role}\n{await soak.explanation()}"
    assert end.broker == begin.broker
    # One each: the last that the connection's reader has served.
    assert all(each.closed <= each.connections for each in end.parts.values())
    assert max(growth.values()) < 10 * MEGABYTE
    assert soak.cuts > count
