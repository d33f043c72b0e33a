"""The project's own broker in a process of its own, as `Node` is RabbitMQ's.

It ends with the tests: it listens to a pipe that breaks when they do.
"""

import asyncio
import subprocess
import sys
from types import TracebackType
from typing import Self

from amqpjobs.devbroker import Broker


class Embedded:
    """A broker that behaves like one RabbitMQ version, such as `4.0`. A context manager."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", __name__, self.version]
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


async def serve(version: str) -> None:
    """Until whoever started this process closes the pipe."""
    async with Broker(profile=version) as broker:
        sys.stdout.write(f"{broker.url}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
