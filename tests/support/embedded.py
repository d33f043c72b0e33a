"""The project's own broker in a process of its own, as `Node` is RabbitMQ's.

It ends with the tests: it listens to a pipe that breaks when they do.
"""

import asyncio
import json
import subprocess
import sys
from types import TracebackType
from typing import Self, TypedDict

import psutil
from typing_extensions import Unpack

from amqpjobs.devbroker import Broker

#: Not imported: it imports this.
PLANTED = "tests.support.planted"


class Options(TypedDict, total=False):
    """Of `Broker`."""

    memory_limit: int


class Embedded:
    """A broker that behaves like one RabbitMQ version, such as `4.0`. A context manager.

    `fault` is a mistake that it makes; see `tests.support.planted`.
    """

    def __init__(self, version: str, *, fault: str | None = None, **options: Unpack[Options]) -> None:
        self.version = version
        self._fault = fault
        self._options = options
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def memory(self) -> int:
        """Its resident bytes."""
        assert self._process is not None
        return int(psutil.Process(self._process.pid).memory_info().rss)

    @property
    def cpu(self) -> float:
        """The seconds that it has computed."""
        assert self._process is not None
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def __enter__(self) -> Self:
        module, fault = (__name__, []) if self._fault is None else (PLANTED, [self._fault])
        command = [sys.executable, "-m", module, self.version, json.dumps(self._options), *fault]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().decode().strip()
        assert self.url, f"The embedded broker {self.version!r} did not start; what it printed tells why."
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.communicate()
            assert self._process.returncode == 0, "The embedded broker failed; what it printed tells how."
            self._process = None


async def serve(version: str, options: Options) -> None:
    """Until whoever started this process closes the pipe."""
    async with Broker(profile=version, **options) as broker:
        sys.stdout.write(f"{broker.url}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], json.loads(sys.argv[2])))
