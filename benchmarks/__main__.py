"""amqpjobs beside its peers, and beside the clients that all of them build on.

    .venv/bin/python -m benchmarks

All measures are taken of one contender after the other, in several rounds, so that a slow minute of the machine is
everybody's. The table has medians, in brackets the lowest and the highest, and how many times better ours is than the
best of the peers and than the best raw client, which retries, validates and traces nothing. The broker is the RabbitMQ
that comes first on PATH, a private node. CPU time (us a job) is of the worker's processes, or of the one that enqueues;
other programs on the machine change it much less than the jobs a second.
"""

import argparse
import os
import platform
import sys
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.contender import NAMES
from benchmarks.measures import MEASURES, Track
from benchmarks.page import Found, Results, page_of, rows_of
from tests.support.rabbitmq import Node

PACKAGES = ("amqpjobs", "celery", "dramatiq", "taskiq", "faststream", "aio-pika", "aiormq")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--only", action="append", choices=NAMES, help="this contender, or these (default: all)")
    words.add_argument("--measure", action="append", choices=[*MEASURES], help="this, or these (default: all)")
    words.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    words.add_argument("--jobs", type=int, default=20_000, help="in the longest measures (default: %(default)s)")
    words.add_argument("--page", type=Path, help="write the tables, and a chart of each, to this Markdown file as well")
    given = words.parse_args()
    with Node() as node:
        results = measured(
            Track(node.url, given.jobs), given.only or NAMES, given.measure or list(MEASURES), given.rounds
        )
    console = Console(width=None if sys.stdout.isatty() else 140)
    packages = [f"{each} {version(each)}" for each in PACKAGES]
    where = f"RabbitMQ {node.version}, Python {platform.python_version()}, {machine()}"
    console.print(where)
    console.print(", ".join(packages))
    for measure, found in results.items():
        console.print(table_of(measure, found))
    if given.page is not None:
        given.page.write_text(page_of(results, where, packages))


def measured(track: Track, names: tuple[str, ...] | list[str], measures: list[str], rounds: int) -> Results:
    results: dict[str, dict[str, dict[str, list[float]]]] = {
        measure: {name: defaultdict(list) for name in names} for measure in measures
    }
    for number in range(rounds):
        for measure in measures:
            for name in names:
                sys.stderr.write(f"round {number + 1} of {rounds}, {measure}: {name}\n")
                for figure, value in MEASURES[measure](track, name).items():
                    results[measure][name][figure].append(value)
    return results


def table_of(measure: str, found: Found) -> Table:
    head, *rows = rows_of(found)
    table = Table(title=measure, title_justify="left")
    for position, title in enumerate(head):
        table.add_column(title, justify="right" if position else "left")
    for row in rows:
        table.add_row(*row)
    return table


def machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
