"""`make bench` measures what it says, in a form so short that its figures mean nothing."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from benchmarks.flame import counted
from benchmarks.measures import MEASURES, Track
from benchmarks.page import page_of, ratios
from benchmarks.tally import FOLDER, Tally, ran
from tests.support.broker import PATIENCE

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("measure", ["bulk", "single", "drain", "waiting", "computing", "latency"])
def test_each_measure_counts_the_jobs_that_ran(url: str, measure: str) -> None:
    # Enough for a worker to be seen at work: the system counts CPU time in steps of 10 ms.
    figures = MEASURES[measure](Track(url, jobs=5000), "ours")

    assert all(value > 0 for value in figures.values())


def test_threads_that_run_their_first_jobs_at_once_lose_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    tally, threads = Tally(tmp_path), 50
    all_there, switched_after = Barrier(threads), sys.getswitchinterval()

    def work() -> None:
        all_there.wait()
        for _ in range(100):
            ran()

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(work) for _ in range(threads)]:
                done.result()
    finally:
        sys.setswitchinterval(switched_after)

    assert tally.jobs == 100 * threads


def test_the_table_and_the_page_set_contenders_side_by_side(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    short = ["--rounds", "2", "--jobs", "100", "--measure", "bulk", "--only", "ours", "--only", "raw_aiormq"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *short, "--page", str(page)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
    )

    assert done.returncode == 0, done.stderr
    assert "RabbitMQ 3.10" in done.stdout or "RabbitMQ 4" in done.stdout
    rows = [line for line in done.stdout.splitlines() if "ours" in line or "raw_aiormq" in line]
    assert len(rows) == 2
    assert all(row.count("[") == 2 for row in rows)
    assert "beside the best raw client" in done.stdout
    assert "| jobs/s | us a job |" in page.read_text()


def test_ours_is_set_beside_the_best_of_the_others_whether_more_or_less_is_better() -> None:
    found = {
        "ours": {"jobs/s": [900.0, 800.0, 100.0], "us a job": [20.0]},
        "taskiq_async": {"jobs/s": [100.0], "us a job": [60.0]},
        "celery_threads": {"jobs/s": [400.0], "us a job": [80.0]},
        "raw_aiormq": {"jobs/s": [1600.0], "us a job": [10.0]},
    }

    assert ratios(found) == {"beside the best peer": ["2.0×", "3.0×"], "beside the best raw client": ["0.5×", "0.5×"]}
    assert "| ours | 800 [100-900] | 20 |" in page_of({"drain": found}, "Here", ["amqpjobs 1"])
    assert "bar [800.0, 100.0, 400.0, 1600.0]" in page_of({"drain": found}, "Here", ["amqpjobs 1"])


def test_how_the_cost_grows_is_told_for_many_jobs_and_kinds() -> None:
    command = [sys.executable, "-m", "benchmarks.growth", "--jobs", "2000", "--part", "backlog", "--part", "kinds"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=8 * PATIENCE)

    assert done.returncode == 0, done.stderr
    rows = [line.strip(" │").split("│")[0].strip() for line in done.stdout.splitlines() if line.startswith("│")]
    assert rows == ["1,000 jobs", "2,000 jobs", "1", "10", "100"]


def test_what_libraries_do_is_on_the_account_of_who_called_them() -> None:
    stacks = """\
main (amqpjobs/cli/run.py:12);run (asyncio/runners.py:118);data_received (amqpjobs/amqp/lane.py:80) 3
run (asyncio/runners.py:118);begin (amqpjobs/worker/running.py:50);validate_json (pydantic/type_adapter.py:9) 5
run (asyncio/runners.py:118);begin (amqpjobs/worker/running.py:51);loads (json.py) 2
<module> (__main__.py:7);main (amqpjobs/cli/run.py:12);run (asyncio/runners.py:118) 4
"""

    assert counted(stacks) == {
        "amqp/lane.py: data_received": 3,
        "worker/running.py: begin": 7,
        "the event loop: reading, writing, calling": 4,
    }
