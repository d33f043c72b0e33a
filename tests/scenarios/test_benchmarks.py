"""`make bench` measures what it says, in a form so short that its figures mean nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measures import MEASURES, Track
from tests.support.broker import PATIENCE

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("measure", ["bulk", "single", "drain", "waiting", "latency"])
def test_each_measure_counts_the_jobs_that_ran(url: str, measure: str) -> None:
    # Enough for a worker to be seen at work: the system counts CPU time in steps of 10 ms.
    figures = MEASURES[measure](Track(url, jobs=5000), "ours")

    assert all(value > 0 for value in figures.values())


def test_the_table_sets_contenders_side_by_side() -> None:
    short = ["--rounds", "2", "--jobs", "100", "--measure", "bulk", "--only", "ours", "--only", "raw_aiormq"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *short], cwd=ROOT, capture_output=True, text=True, timeout=4 * PATIENCE
    )

    assert done.returncode == 0, done.stderr
    assert "RabbitMQ 3.10" in done.stdout or "RabbitMQ 4" in done.stdout
    rows = [line for line in done.stdout.splitlines() if "ours" in line or "raw_aiormq" in line]
    assert len(rows) == 2
    assert all(row.count("[") == 2 for row in rows)
