"""Where jobs go, and what they are: the same for all."""

import os
import sys
from collections.abc import Sequence
from typing import Literal, Protocol

from benchmarks.contenders.pace import Took

URL = os.environ.get("BENCHMARK_URL", "")
QUEUE = os.environ.get("BENCHMARK_QUEUE", "benchmark")

#: One that does nothing; one that waits for something else; one that computes; one that tells how late it began.
Kind = Literal["nothing", "waiting", "computing", "timed"]
KINDS: Sequence[Kind] = ("nothing", "waiting", "computing", "timed")
#: Seconds that a `waiting` job waits.
WAIT = 0.05
#: About as large as the arguments of a job usually are.
TEXT = "x" * int(os.environ.get("BENCHMARK_TEXT", "70"))


def compute() -> None:
    """What a `computing` job does: about a millisecond of Python, which lets no other thread in."""
    sum(range(50_000))


def own_command(module: str, processes: int, concurrency: int) -> list[str]:
    """Where a client has no command: its `work`, as a process."""
    name = module.rpartition(".")[2]
    size = ["--processes", str(processes), "--concurrency", str(concurrency)]
    return [sys.executable, "-m", "benchmarks.contender", name, "work", *size]


class Contender(Protocol):
    """What each of the modules offers."""

    def prepare(self) -> None:
        """Make the queue, so that jobs can be enqueued before a worker runs."""
        ...

    def enqueue(self, kind: Kind, count: int) -> Took:
        """In bulk, in the fastest way there is in which each job is confirmed; one more, to connect."""
        ...

    def enqueue_each(self, kind: Kind, count: int, rate: float) -> Took:
        """Each confirmed before the next, or so many a second. One more, to connect."""
        ...

    def command(self, kind: Kind, processes: int, concurrency: int) -> list[str]:
        """What starts a worker, which runs until SIGTERM and is fit for jobs of this kind."""
        ...


class Working(Protocol):
    """What those offer whose worker has no command of its own."""

    def work(self, processes: int, concurrency: int) -> None:
        """Run a worker until SIGTERM."""
        ...
