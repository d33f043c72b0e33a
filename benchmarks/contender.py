"""One contender as a process of its own: `python -m benchmarks.contender NAME VERB`. Prints what it took, as JSON."""

import argparse
import json
import sys
from dataclasses import asdict
from importlib import import_module
from typing import cast

from benchmarks.contenders.place import KINDS, Contender, Kind, Working

NAMES = (
    "ours",
    "celery_prefork",
    "celery_threads",
    "dramatiq_threads",
    "taskiq_async",
    "faststream_async",
    "raw_aio_pika",
    "raw_aiormq",
)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("name", choices=NAMES)
    words.add_argument("verb", choices=["prepare", "enqueue", "each", "command", "work"])
    words.add_argument("--kind", choices=KINDS, default="nothing")
    words.add_argument("--count", type=int, default=1)
    words.add_argument("--rate", type=float, default=0.0, help="jobs a second; 0: as fast as it goes")
    words.add_argument("--processes", type=int, default=1)
    words.add_argument("--concurrency", type=int, default=100)
    given = words.parse_args()
    kind = cast("Kind", given.kind)
    contender = cast("Contender", import_module(f"benchmarks.contenders.{given.name}"))
    match given.verb:
        case "prepare":
            contender.prepare()
        case "enqueue":
            sys.stdout.write(json.dumps(asdict(contender.enqueue(kind, given.count))))
        case "each":
            sys.stdout.write(json.dumps(asdict(contender.enqueue_each(kind, given.count, given.rate))))
        case "command":
            sys.stdout.write(json.dumps(contender.command(kind, given.processes, given.concurrency)))
        case _:
            cast("Working", contender).work(given.processes, given.concurrency)


if __name__ == "__main__":
    main()
