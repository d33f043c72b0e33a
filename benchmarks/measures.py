"""What is measured of a contender, each in processes of its own, on an empty queue."""

import compileall
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import count as numbers
from pathlib import Path
from typing import Any

import psutil

from benchmarks.page import BUSY
from benchmarks.tally import FOLDER, Tally

ROOT = Path(__file__).parents[1]
#: Seconds for one step, at most.
PATIENCE = 600.0
#: Seconds that a worker has to stop.
STOP = 20.0
#: Part of the jobs that is not counted: who drains is still starting.
WARM_UP = 0.1
#: Seconds between two looks.
LOOK = 0.005
_MIB = 1024 * 1024
_queues = numbers()

Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Track:
    """A broker, and how long the measures are: `jobs` for the fastest of them."""

    url: str
    jobs: int


class Run:
    """A contender on a queue of its own."""

    def __init__(self, track: Track, name: str, folder: Path, given: Mapping[str, str]) -> None:
        compile_ours()
        own = {"BENCHMARK_URL": track.url, "BENCHMARK_QUEUE": f"benchmark-{next(_queues)}", FOLDER: str(folder)}
        self._environment = {**os.environ, **own, **given}
        self._name = name
        self.tally = Tally(folder)
        #: When its worker was started.
        self.began = 0.0
        self.call("prepare")

    def call(self, verb: str, **options: object) -> Any:
        """What it printed, if it did."""
        done = subprocess.run(
            self._command(verb, options),
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            timeout=PATIENCE,
            check=True,
        )
        return json.loads(done.stdout) if done.stdout else {}

    @contextmanager
    def working(self, **options: object) -> Generator[psutil.Process]:
        """While it has a worker, in a session of its own."""
        command: list[str] = self.call("command", **options)
        self.began = time.perf_counter()
        with subprocess.Popen(command, cwd=ROOT, env=self._environment, start_new_session=True) as worker:
            try:
                yield psutil.Process(worker.pid)
            finally:
                os.killpg(worker.pid, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    worker.wait(STOP)
                with suppress(ProcessLookupError):
                    os.killpg(worker.pid, signal.SIGKILL)

    def until(self, jobs: int) -> None:
        """Until so many have run. Raises TimeoutError."""
        deadline = time.monotonic() + PATIENCE
        while self.tally.jobs < jobs:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._name} ran {self.tally.jobs} of {jobs} jobs in {PATIENCE:g} s.")
            time.sleep(LOOK)

    def _command(self, verb: str, options: Mapping[str, object]) -> list[str]:
        given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [sys.executable, "-m", "benchmarks.contender", self._name, verb, *given]


@cache
def compile_ours() -> None:
    """As pip did when it installed the others: with PYTHONDONTWRITEBYTECODE a checkout is compiled at each start."""
    for folder in ("amqpjobs", "benchmarks"):
        compileall.compile_dir(ROOT / folder, quiet=1)


@contextmanager
def running(track: Track, name: str, **given: str) -> Generator[Run]:
    """With these variables in the environment."""
    with tempfile.TemporaryDirectory() as folder:
        yield Run(track, name, Path(folder), given)


def bulk(track: Track, name: str) -> Figures:
    with running(track, name) as run:
        return _each(run.call("enqueue", count=track.jobs // 2))


def single(track: Track, name: str) -> Figures:
    with running(track, name) as run:
        return _each(run.call("each", count=track.jobs // 10))


def drain(track: Track, name: str, processes: int = 1) -> Figures:
    with running(track, name) as run:
        run.call("enqueue", count=track.jobs)
        with run.working(processes=processes, concurrency=200) as worker:
            run.until(int(track.jobs * WARM_UP))
            jobs, began, cpu, busy = run.tally.jobs, time.perf_counter(), cpu_of(worker), busy_time()
            run.until(track.jobs)
            seconds, jobs, cpu = time.perf_counter() - began, track.jobs - jobs, cpu_of(worker) - cpu
            busy = (busy_time() - busy) / seconds
            return {"jobs/s": jobs / seconds, "us a job": cpu / jobs * 1e6, BUSY: busy, "MiB": memory_of(worker)}


def drain_by_two(track: Track, name: str) -> Figures:
    return drain(track, name, processes=2)


def waiting(track: Track, name: str, concurrency: int = 100) -> Figures:
    """Jobs of 50 ms, 100 at once: 2,000 a second is the ceiling."""
    count = max(2, track.jobs // 5000) * concurrency * 10
    with running(track, name) as run:
        run.call("enqueue", kind="waiting", count=count)
        with run.working(kind="waiting", concurrency=concurrency):
            run.until(int(count * WARM_UP))
            jobs, began = run.tally.jobs, time.perf_counter()
            run.until(count)
            return {"jobs/s": (count - jobs) / (time.perf_counter() - began)}


def waiting_at_large(track: Track, name: str) -> Figures:
    """1,000 at once: 20,000 a second is the ceiling."""
    return waiting(track, name, concurrency=1000)


def computing(track: Track, name: str) -> Figures:
    """Jobs that compute for about a millisecond, in two processes."""
    count = max(100, track.jobs // 4)
    with running(track, name) as run:
        run.call("enqueue", kind="computing", count=count)
        with run.working(kind="computing", processes=2, concurrency=10):
            run.until(int(count * WARM_UP))
            jobs, began = run.tally.jobs, time.perf_counter()
            run.until(count)
            return {"jobs/s": (count - jobs) / (time.perf_counter() - began)}


def latency(track: Track, name: str, rate: int = 100) -> Figures:
    """From before an enqueue until the job begins, at 100 a second."""
    count = max(1, track.jobs // 2000) * rate
    with running(track, name) as run, run.working(concurrency=10):
        run.call("each", count=50)
        run.until(51)
        took = run.call("each", kind="timed", count=count, rate=rate)
        run.until(51 + count + 1)
        late = sorted(run.tally.late())[: count + 1]
        p50, p99 = statistics.median(late), statistics.quantiles(late, n=100)[98]
        return {"p50 ms": 1000 * p50, "p99 ms": 1000 * p99, "jobs/s": count / took["seconds"]}


def latency_under_load(track: Track, name: str) -> Figures:
    """At 1,000 a second, or as many as its client sends."""
    return latency(track, name, rate=1000)


def idle(track: Track, name: str) -> Figures:
    """Until the first job has run, and what it takes to wait for the next."""
    with running(track, name) as run:
        run.call("enqueue", count=1)
        with run.working(concurrency=10) as worker:
            run.until(1)
            seconds = time.perf_counter() - run.began
            time.sleep(1)
            cpu, pause = cpu_of(worker), 3.0
            time.sleep(pause)
            return {"first job s": seconds, "MiB": memory_of(worker), "cores": (cpu_of(worker) - cpu) / pause}


MEASURES: Mapping[str, Callable[[Track, str], Figures]] = {
    "bulk": bulk,
    "single": single,
    "drain": drain,
    "drain-2": drain_by_two,
    "waiting": waiting,
    "waiting-1000": waiting_at_large,
    "computing": computing,
    "latency": latency,
    "latency-1000": latency_under_load,
    "idle": idle,
}


def _each(took: Mapping[str, float]) -> Figures:
    return {"jobs/s": took["jobs"] / took["seconds"], "us a job": took["cpu"] / took["jobs"] * 1e6}


def _family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def cpu_of(process: psutil.Process) -> float:
    times = [each.cpu_times() for each in _family(process)]
    return sum(each.user + each.system for each in times)


def busy_time() -> float:
    """Seconds that the machine's cores have worked, for whomever: those of the broker, too."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0)


def memory_of(process: psutil.Process) -> float:
    """What it does not share with others counts whole, the rest by its part."""
    return sum(each.memory_full_info().pss for each in _family(process)) / _MIB
