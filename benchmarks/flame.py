"""Where the time of one job goes in a worker that drains a backlog: a flame graph, and a budget that adds up.

    .venv/bin/python -m benchmarks.flame docs/drain.svg

py-spy looks at the worker 500 times a second. Each look counts for the innermost function of amqpjobs on the stack, and
so for what that has called in libraries and in C; the budget is the CPU time of a job, shared out by these counts. The
broker is the RabbitMQ that comes first on PATH, a private node.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.measures import WARM_UP, Track, cpu_of, running
from tests.support.rabbitmq import Node

#: Looks a second.
RATE = 500
#: Part of the jobs after which the looking begins.
MEASURED = 0.4
#: Part of a job's time that a function has to take to be named.
LEAST = 0.01
#: `function (file:line)` or `function (file)`, as py-spy writes a frame.
_FRAME = re.compile(r"^(?P<function>.+) \((?P<file>[^():]+)(?::\d+)?\)$")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("picture", type=Path, help="where the flame graph goes (.svg)")
    words.add_argument("--jobs", type=int, default=400_000, help="(default: %(default)s)")
    words.add_argument("--seconds", type=int, default=8, help="of looking, twice (default: %(default)s)")
    given = words.parse_args()
    with Node() as node, running(Track(node.url, given.jobs), "ours") as run, tempfile.TemporaryDirectory() as folder:
        sys.stderr.write(f"enqueuing {given.jobs:,} jobs\n")
        run.call("enqueue", count=given.jobs)
        with run.working(concurrency=200) as worker:
            run.until(int(given.jobs * WARM_UP))
            jobs, cpu, began = run.tally.jobs, cpu_of(worker), time.perf_counter()
            run.until(int(given.jobs * MEASURED))  # nobody looks meanwhile: that takes time
            jobs, cpu, seconds = run.tally.jobs - jobs, cpu_of(worker) - cpu, time.perf_counter() - began
            stacks = look(worker, given.seconds, "raw", Path(folder) / "stacks").read_text()
            look(worker, given.seconds, "flamegraph", given.picture)
            if run.tally.jobs >= given.jobs:
                sys.exit("The backlog was drained before the looking was over: more --jobs, or fewer --seconds.")
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(f"RabbitMQ {node.version}; {jobs / seconds:,.0f} jobs a second")
    console.print(table_of(stacks, cpu / jobs * 1e6))


def look(worker: psutil.Process, seconds: int, form: str, file: Path) -> Path:
    at = ["--pid", str(worker.pid), "--duration", str(seconds), "--rate", str(RATE), "--nonblocking"]
    command = ["py-spy", "record", *at, "--format", form, "--output", str(file)]  # which the picture quotes
    # The one of this environment, which nobody has to have activated.
    subprocess.run(command, executable=Path(sys.executable).with_name("py-spy"), check=True, capture_output=True)
    return file


def table_of(stacks: str, microseconds: float) -> Table:
    counts = counted(stacks)
    total = sum(counts.values())
    table = Table("what a job costs", "us", title_justify="left")
    table.columns[1].justify = "right"
    rest = total
    for name, count in counts.most_common():
        if count < LEAST * total:
            break
        rest -= count
        table.add_row(name, f"{microseconds * count / total:.1f}")
    table.add_row("functions of less than a hundredth each", f"{microseconds * rest / total:.1f}")
    table.add_section()
    table.add_row("in all", f"{microseconds:.1f}")
    return table


def counted(stacks: str) -> Counter[str]:
    """How often each was seen: `function (file)`, of amqpjobs where one is on the stack."""
    counts = Counter[str]()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        counts[_blamed(stack.split(";"))] += int(count)
    return counts


def _blamed(frames: list[str]) -> str:
    """The innermost function of ours; of the event loop's own work the loop."""
    for frame in reversed(frames):
        found = _FRAME.match(frame)
        if found and "amqpjobs/" in found["file"] and "/cli/" not in found["file"]:
            file = found["file"].rpartition("amqpjobs/")[2]
            if file not in ("worker/run.py", "engine.py", "__main__.py"):
                return f"{file}: {found['function']}"
    return "the event loop: reading, writing, calling"


if __name__ == "__main__":
    main()
