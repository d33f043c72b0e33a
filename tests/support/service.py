"""A service in a folder, run by `amqpjobs run` in processes of its own, and its ledger, a file outside the broker.

What a job does is one of its words: "wait" until the test lets it go, "cling" so that no cancellation ends it
before, "hold" up the event loop until then, "sleep" some seconds, "die", "eat" memory, "fail", or "block" the whole
interpreter, as C code does that keeps Python's lock.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.support.apps import NAMESPACE
from tests.support.broker import PATIENCE, Broker, eventually
from tests.support.lines import whole_lines
from tests.support.terminal import Terminal

SOURCE = """
import asyncio, os, signal, time
from contextlib import suppress
from pathlib import Path
from amqpjobs import App, Job, Queue, fixed

class Task(Job[None], kind="{name}.task"):
    n: int
    do: str = "end"
    seconds: float = 0

app = App("{name}", queues=[Queue("{name}", prefetch=10)])
eaten = []

def note(word, n):
    with open("ledger.txt", "a") as file:
        file.write(f"{word} {n} {os.getpid()}\\n")

@app.handler(Task, retry=fixed(3600))
async def task(job: Task) -> None:
    note("start", job.n)
    match job.do:
        case "wait":
            while not Path("go").exists():
                await asyncio.sleep(0.02)
        case "cling":
            while not Path("go").exists():
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.02)
        case "hold":
            while not Path("go").exists():
                time.sleep(0.02)
        case "sleep":
            await asyncio.sleep(job.seconds)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "eat":
            eaten.append(b"x" * 300_000_000)
        case "fail":
            raise ValueError("as asked")
        case "block":
            sum(range(10**12))
    note("end", job.n)
"""


class Service:
    """The service `name` as the module `shop`, with a shell in its folder."""

    def __init__(self, name: str, folder: Path, url: str, broker: Broker) -> None:
        self.folder = folder
        self.queue = f"{NAMESPACE}.queue.{name}"
        self.broker = broker
        self._kind = f"{name}.task"
        clean = {key: value for key, value in os.environ.items() if not key.startswith("AMQPJOBS_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
        self.environment = clean | {"PATH": path, "AMQPJOBS_URL": url, "AMQPJOBS_NAMESPACE": NAMESPACE}
        self.environment |= {"AMQPJOBS_LOG_FORMAT": "json", "COLUMNS": "160"}
        (folder / "shop.py").write_text(SOURCE.replace("{name}", name))

    def type(self, command: str, **environment: str) -> Terminal:
        return Terminal(command, self.folder, self.environment | environment)

    async def send(self, *numbers: int, do: str = "end", seconds: float = 0) -> None:
        """Jobs, confirmed in the queue."""
        for n in numbers:
            body = json.dumps({"n": n, "do": do, "seconds": seconds}).encode()
            await self.broker.publish(NAMESPACE, self._kind, body, kind=self._kind)

    def let_go(self) -> None:
        """Jobs that wait may end."""
        (self.folder / "go").touch()

    def noted(self, word: str, *, by: int | None = None) -> list[int]:
        """The numbers of the jobs that started or ended, each time one did, in the process `by` or in any."""
        return [int(line[1]) for line in self._lines() if line[0] == word and by in (None, int(line[2]))]

    def pids(self) -> set[int]:
        """The processes that ran jobs."""
        return {int(line[2]) for line in self._lines()}

    def _lines(self) -> list[list[str]]:
        return [line.split() for line in whole_lines(self.folder / "ledger.txt")]

    async def until_noted(self, word: str, *numbers: int, by: int | None = None, within: float = PATIENCE) -> None:
        """Until each of these jobs has started, or ended."""
        await until(lambda: set(numbers) <= set(self.noted(word, by=by)), within=within)

    async def consumers(self) -> int:
        return await self.broker.consumers(self.queue)

    async def until_consumed_by(self, count: int) -> None:
        async def is_so() -> bool:
            return await self.consumers() == count

        await eventually(is_so)


async def until(condition: Callable[[], bool], *, within: float = PATIENCE) -> None:
    async def holds() -> bool:
        return condition()

    await eventually(holds, within=within)


def lines_of(terminal: Terminal, message: str) -> list[dict[str, Any]]:
    """The log lines so far with this message, as their fields."""
    lines = [json.loads(line) for line in re.findall(r"^\{.*\}$", terminal.text, re.MULTILINE)]
    return [line for line in lines if line["message"] == message]


def is_alive(pid: int) -> bool:
    """Whether it runs; one that nobody has reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
