"""What a job of amqpjobs costs when there are many of them, when they are large, of many kinds, or not due yet.

    .venv/bin/python -m benchmarks.growth

One process enqueues in bulk, another one works off, on a RabbitMQ of the machine's own: the one that comes first on
PATH. `us` is the CPU time of that process for each job, MiB the most memory of the worker, seen ten times a second.
"""

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.measures import WARM_UP, Run, Track, cpu_of, memory_of, running
from benchmarks.page import shown
from tests.support.rabbitmq import Node

#: Bytes of all bodies of one row, at most: the broker's disk is the limit otherwise.
MOST_BYTES = 400_000_000
NAME = "ours"
PARTS = ("backlog", "bodies", "kinds", "delays")
#: Seconds between two looks at a worker's memory.
LOOK = 0.1


@dataclass(frozen=True, slots=True)
class Case:
    """So many jobs, so large, of so many kinds, so many seconds before they are due."""

    jobs: int
    text: int = 70
    kinds: int = 1
    delay: float = 0.0

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "BENCHMARK_TEXT": str(self.text),
            "BENCHMARK_KINDS": str(self.kinds),
            "BENCHMARK_DELAY": str(self.delay),
        }


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--jobs", type=int, default=1_000_000, help="in the longest backlog (default: %(default)s)")
    words.add_argument("--part", action="append", choices=PARTS, help="this, or these (default: all)")
    given = words.parse_args()
    with Node() as node:
        console = Console(width=None if sys.stdout.isatty() else 120)
        console.print(f"RabbitMQ {node.version}")
        for part in given.part or PARTS:
            console.print(table_of(node.url, part, cases_of(part, given.jobs)))


def cases_of(part: str, most: int) -> list[tuple[str, Case]]:
    some = max(20, most // 50)
    match part:
        case "backlog":
            backlogs = [jobs for jobs in (1_000, 10_000, 100_000, 1_000_000) if jobs < most] + [most]
            return [(f"{jobs:,} jobs", Case(jobs)) for jobs in backlogs]
        case "bodies":
            sizes = {"100 B": 70, "1 kB": 1_000, "10 kB": 10_000, "100 kB": 100_000, "1 MB": 999_000}
            return [(name, Case(min(some, MOST_BYTES // text), text=text)) for name, text in sizes.items()]
        case "kinds":
            return [(str(kinds), Case(some, kinds=kinds)) for kinds in (1, 10, 100)]
        case _:
            return [(f"{delay:g} s", Case(some, delay=delay)) for delay in (0.5, 5.0, 20.0)]


def table_of(url: str, title: str, cases: Iterable[tuple[str, Case]]) -> Table:
    table: Table | None = None
    for name, case in cases:
        sys.stderr.write(f"{title}: {name}\n")
        figures = measure(url, case)
        if table is None:
            table = Table("", *figures, title=title, title_justify="left")
        table.add_row(name, *(shown(value) for value in figures.values()))
    assert table is not None
    return table


def measure(url: str, case: Case) -> Mapping[str, float]:
    with running(Track(url, case.jobs), NAME, **case.environment) as run:
        if case.delay:
            return _lateness(run, case)
        sent = run.call("enqueue", count=case.jobs)
        with run.working(concurrency=100) as worker, _watched(worker) as memory:
            run.until(max(1, int(case.jobs * WARM_UP)))
            before, began, cpu = run.tally.jobs, time.perf_counter(), cpu_of(worker)
            run.until(case.jobs)
            jobs = max(1, case.jobs - before)
            seconds, cpu = time.perf_counter() - began, cpu_of(worker) - cpu
        return {
            "enqueued/s": case.jobs / sent["seconds"],
            "us to enqueue": sent["cpu"] / case.jobs * 1e6,
            "run/s": jobs / seconds,
            "us to run": cpu / jobs * 1e6,
            "MiB": max(memory),
        }


def _lateness(run: Run, case: Case) -> Mapping[str, float]:
    """How late jobs begin that a delay has sent through its levels."""
    with run.working(kind="timed", concurrency=100):
        run.call("enqueue", count=1)
        run.until(2)
        sent = run.call("enqueue", kind="timed", count=case.jobs)
        run.until(2 + case.jobs + 1)
        late = [seconds - case.delay for seconds in run.tally.late()]
        return {
            "enqueued/s": case.jobs / sent["seconds"],
            "us to enqueue": sent["cpu"] / case.jobs * 1e6,
            "late p50 ms": 1000 * statistics.median(late),
            "late p99 ms": 1000 * statistics.quantiles(late, n=100)[98],
        }


@contextmanager
def _watched(worker: psutil.Process) -> Generator[list[float]]:
    """The memory of a worker, from time to time."""
    seen, is_over = [0.0], threading.Event()

    def watch() -> None:
        while not is_over.wait(LOOK):
            seen.append(memory_of(worker))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield seen
    finally:
        is_over.set()
        watching.join()


if __name__ == "__main__":
    main()
