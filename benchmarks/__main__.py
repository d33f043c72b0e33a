"""amqpjobs beside its peers, and beside the clients that all of them build on.

    .venv/bin/python -m benchmarks

All measures are taken of one contender after the other, in several rounds, so that a slow minute of the machine is
everybody's. The table has medians, and in brackets the lowest and the highest. The broker is the RabbitMQ that comes
first on PATH, a private node. CPU time (us a job) is of the worker's processes, or of the one that enqueues; other
programs on the machine change it much less than the jobs a second.
"""

import argparse
import os
import platform
import statistics
import sys
from collections import defaultdict
from importlib.metadata import version

from rich.console import Console
from rich.table import Table

from benchmarks.contender import NAMES
from benchmarks.measures import MEASURES, Track
from tests.support.rabbitmq import Node

PACKAGES = ("amqpjobs", "celery", "dramatiq", "taskiq", "faststream", "aio-pika", "aiormq")
Results = dict[str, dict[str, dict[str, list[float]]]]


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--only", action="append", choices=NAMES, help="this contender, or these (default: all)")
    words.add_argument("--measure", action="append", choices=[*MEASURES], help="this, or these (default: all)")
    words.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    words.add_argument("--jobs", type=int, default=20_000, help="in the longest measures (default: %(default)s)")
    given = words.parse_args()
    with Node() as node:
        results = measured(
            Track(node.url, given.jobs), given.only or NAMES, given.measure or list(MEASURES), given.rounds
        )
        console = Console(width=None if sys.stdout.isatty() else 140)
        console.print(f"RabbitMQ {node.version}, Python {platform.python_version()}, {machine()}")
        console.print(", ".join(f"{each} {version(each)}" for each in PACKAGES))
        for measure, found in results.items():
            console.print(table_of(measure, found))


def measured(track: Track, names: tuple[str, ...] | list[str], measures: list[str], rounds: int) -> Results:
    results: Results = {measure: {name: defaultdict(list) for name in names} for measure in measures}
    for number in range(rounds):
        for measure in measures:
            for name in names:
                sys.stderr.write(f"round {number + 1} of {rounds}, {measure}: {name}\n")
                for figure, value in MEASURES[measure](track, name).items():
                    results[measure][name][figure].append(value)
    return results


def table_of(measure: str, found: dict[str, dict[str, list[float]]]) -> Table:
    figures = list(next(iter(found.values())))
    table = Table(title=measure, title_justify="left")
    table.add_column("")
    for figure in figures:
        table.add_column(figure, justify="right")
    for name, values in found.items():
        table.add_row(name, *(_spread(values[figure]) for figure in figures))
    return table


def machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def _spread(values: list[float]) -> str:
    lowest, highest = min(values), max(values)
    return f"{_shown(statistics.median(values))} [{_shown(lowest)}-{_shown(highest)}]"


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
