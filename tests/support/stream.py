"""A producer in a process of its own: `Stream`. It enqueues innocent jobs of the killer app as it is told.

Run as a program it is that process: for each number on its input, with the deadline behind it, so many jobs, a line
for each that was confirmed, and a last one. What was not confirmed is not repeated: nobody promised anything for it.
"""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.broker import PATIENCE

ROOT = Path(__file__).parents[2]
OVER = "over"


class Stream:
    """Its jobs are called `innocent-0`, `innocent-1`, …"""

    def __init__(self, url: str) -> None:
        self._environment = os.environ | {"AMQPJOBS_URL": url}
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, cwd=ROOT, env=self._environment, stdin=PIPE, stdout=PIPE
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        if error is not None:
            self._process.kill()
        await self._process.communicate(b"")  # closes its input, which ends it

    async def enqueue(self, count: int, *, deadline: float = 5) -> set[str]:
        """Those of so many more jobs whose enqueue returned; each may take so many seconds."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{count} {deadline}\n".encode())
        confirmed = set[str]()
        async with asyncio.timeout(20 * PATIENCE):
            while (line := (await self._process.stdout.readline()).decode().strip()) != OVER:
                assert line, "the producer's process ended"
                confirmed.add(line)
        return confirmed


def main() -> None:
    from amqpjobs import BlockingClient, EnqueueError
    from tests.support.killer_app import Innocent, app

    client, number = BlockingClient(app), 0
    for line in sys.stdin:
        jobs, deadline = line.split()
        for _ in range(int(jobs)):
            name, number = f"innocent-{number}", number + 1
            try:
                client.enqueue(Innocent(name=name, seconds=0.002), deadline=float(deadline))
            except EnqueueError:
                continue
            sys.stdout.write(f"{name}\n")
        sys.stdout.write(f"{OVER}\n")
        sys.stdout.flush()
    client.close()


if __name__ == "__main__":
    main()
