"""The blocking client through forks, the end of the interpreter, and brokers that do not answer."""

import asyncio
import http.client
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import cast

import pytest

from amqpjobs import BlockingClient, EnqueueTimeoutError, Worker
from tests.conftest import MakeNode
from tests.scenarios.conftest import BenchOn
from tests.support import enqueuers
from tests.support.apps import Bench, record, work_queue
from tests.support.broker import PATIENCE, Broker, plain_client
from tests.support.ledger import open_ledger
from tests.support.process import state_of_process
from tests.support.rabbitmq import HOST, free_ports

ROOT = Path(__file__).parents[2]
WORKERS, DRIVERS = 4, 8
#: Seconds by which an error may be late: most of the time, and on a machine that stands still meanwhile.
LATE, LATEST = 1.5, 15.0
#: uWSGI forks in C, and without these two tells Python nothing of it.
UWSGI: dict[str, list[str]] = {
    "uwsgi": [],
    "uwsgi-afterfork": ["--py-call-osafterfork"],
    "uwsgi-hooks": ["--py-call-uwsgi-fork-hooks"],
}


@pytest.mark.parametrize(
    ("server", "count"),
    [
        pytest.param("gunicorn", 1_000, id="gunicorn"),
        pytest.param("gunicorn", 10_000, id="gunicorn-full", marks=pytest.mark.slow),
        *[pytest.param(name, 100, id=name) for name in UWSGI],
    ],
)
async def test_what_forked_web_workers_enqueue_arrives_exactly_as_confirmed(
    url: str, unique: Callable[[], str], server: str, count: int
) -> None:
    async with open_ledger(url, unique) as ledger:
        pids, answered, master = await asyncio.to_thread(drive, server, url, ledger.kind, count)
        arrived = await ledger.arrived(len(answered) + 1)

    assert len(answered) >= count
    assert Counter(arrived) == Counter([*answered, master])
    assert len(pids) == WORKERS


async def test_what_celerys_forked_tasks_enqueue_arrives_exactly_as_confirmed(
    url: str, unique: Callable[[], str]
) -> None:
    async with open_ledger(url, unique) as ledger:
        said = await asyncio.to_thread(run_celery, url, ledger.kind)
        arrived = await ledger.arrived(enqueuers.TASKS + 1)

    assert Counter(arrived) == Counter(rest for word, rest in said if word == "id")
    assert len({rest for word, rest in said if word == "pid"}) > 4  # they are forked anew


async def test_children_forked_from_a_busy_parent_enqueue_and_leave_its_connection_alone(
    url: str, unique: Callable[[], str]
) -> None:
    async with open_ledger(url, unique) as ledger:
        said = await asyncio.to_thread(run_program, "fork_under_load", url, ledger.kind)
        ids = [rest for word, rest in said if word == "id"]
        arrived = await ledger.arrived(len(ids))

    assert Counter(arrived) == Counter(ids)
    assert len(ids) > enqueuers.CHILDREN * enqueuers.EACH
    assert [rest for word, rest in said if word == "child"] == ["0"] * enqueuers.CHILDREN
    assert {rest for word, rest in said if word == "inherited"} == {"0"}
    assert [rest for word, rest in said if word == "lost"] == []
    assert ("threads", "1") in said


async def test_a_fork_waits_until_the_clients_thread_holds_no_lock(url: str, unique: Callable[[], str]) -> None:
    async with open_ledger(url, unique) as ledger:
        said = await asyncio.to_thread(run_program, "fork_between", url, ledger.kind)
        arrived = await ledger.arrived(2)

    assert ("locked", "False") in said
    assert sorted(arrived) == sorted(rest for word, rest in said if word == "id")


async def test_a_fork_in_the_moment_in_which_a_client_begins_leaves_the_child_no_sockets(
    url: str, unique: Callable[[], str]
) -> None:
    async with open_ledger(url, unique) as ledger:
        said = await asyncio.to_thread(run_program, "fork_at_birth", url, ledger.kind)
        arrived = await ledger.arrived(2)

    assert ("inherited", "0") in said
    assert sorted(arrived) == sorted(rest for word, rest in said if word == "id")


@pytest.mark.parametrize("program", ["at_exit", "first_at_exit", "abandon"])
async def test_what_is_enqueued_while_the_interpreter_ends_arrives(
    url: str, unique: Callable[[], str], program: str
) -> None:
    async with open_ledger(url, unique) as ledger:
        said = await asyncio.to_thread(run_program, program, url, ledger.kind)
        ids = [rest for word, rest in said if word == "id"]
        arrived = await ledger.broker.take(work_queue(ledger.app), len(ids))

    assert ids
    assert ids == [rest for _, rest in said]
    assert ids == [letter.text("amqpjobs-id") for letter in arrived]


def test_the_end_of_the_interpreter_does_not_wait_for_a_broker_that_is_away() -> None:
    (port,) = free_ports(1)

    started = time.monotonic()
    said = run_program("first_at_exit", f"amqp://guest:guest@{HOST}:{port}/", "nobody", complains=True)

    assert said == [("failed", "EnqueueTimeoutError")]
    assert time.monotonic() - started < 2 * PATIENCE  # 3 s of them are the deadline's, and many may be Python's start


def test_two_hundred_calls_without_a_broker_raise_in_time_and_leave_nothing_behind() -> None:
    (port,) = free_ports(1)
    bench = Bench(f"amqp://guest:guest@{HOST}:{port}/", lambda: "nobody", Broker.__new__(Broker))
    app, kind = bench.app(), bench.kind("nobody")
    client = BlockingClient(app)

    def call(n: int) -> float:
        started = time.monotonic()
        with pytest.raises(EnqueueTimeoutError, match=str(port)):
            client.enqueue(kind(n=n), deadline=0.3)
        return time.monotonic() - started

    with unchanged_process(), ThreadPoolExecutor(20) as pool:
        took = list(pool.map(call, range(200)))
        client.close()

    assert len(took) == 200
    assert min(took) > 0.2
    assert median(took) < 0.3 + LATE
    assert max(took) < 0.3 + LATEST


async def test_a_frozen_broker_holds_up_nobody_beyond_the_deadline(make_node: MakeNode, bench_on: BenchOn) -> None:
    node = await asyncio.to_thread(make_node)
    async with bench_on(node) as bench:
        app, kind = bench.app(settings=bench.settings(heartbeat=2, reconnect_cap=1)), bench.kind()
        record(app, kind)
        async with Worker(app):
            pass
    client = BlockingClient(app)

    def call(n: int) -> float:
        started = time.monotonic()
        with pytest.raises(EnqueueTimeoutError):
            client.enqueue(kind(n=n), deadline=0.5)
        return time.monotonic() - started

    def script() -> tuple[list[float], float, str]:
        confirmed = client.enqueue(kind()).job_id
        node.freeze()
        with ThreadPoolExecutor(8) as pool:
            took = list(pool.map(call, range(40)))
        started = time.monotonic()
        client.close(timeout=1)
        closing = time.monotonic() - started
        took.append(call(0))
        node.thaw()
        assert client.enqueue(kind(), deadline=PATIENCE).job_id != confirmed
        client.close()
        return took, closing, confirmed

    with unchanged_process():
        took, closing, confirmed = await asyncio.to_thread(script)
    async with plain_client(node.url) as broker:
        (letter,) = await broker.take(work_queue(app), 1)

    assert median(took) < 0.5 + LATE
    assert max(took) < 0.5 + LATEST
    assert closing < 1 + LATEST
    assert letter.text("amqpjobs-id") == confirmed


# The stories' parts


def run_program(name: str, url: str, kind: str, *, complains: bool = False) -> list[tuple[str, str]]:
    """What one of the programs said, line by line. It must end well, and complain only where it may."""
    ran = subprocess.run(
        [sys.executable, "-W", "always", "-m", enqueuers.__name__, name],
        cwd=ROOT,
        env=patient(enqueuers.environment(url, kind)),
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert complains or ran.stderr == ""
    return words(ran.stdout.splitlines())


def patient(environment: dict[str, str]) -> dict[str, str]:
    """With time for a broker that stands still: where no deadline is said, these stories are not about any."""
    return environment | {f"AMQPJOBS_{each}_TIMEOUT": str(PATIENCE) for each in ("CONNECT", "ENQUEUE")}


def run_celery(url: str, kind: str) -> list[tuple[str, str]]:
    """What Celery's worker said until its tasks were done."""
    command = [sys.executable, "-m", enqueuers.__name__, "celery_worker"]
    said = list[tuple[str, str]]()
    with serving(command, url, kind) as worker:
        assert worker.stdout is not None
        overdue = threading.Timer(4 * PATIENCE, worker.kill)
        overdue.start()
        for line in worker.stdout:
            said += words([line])
            if sum(word == "pid" for word, _ in said) == enqueuers.TASKS:
                break
        overdue.cancel()
    return said


def words(lines: Iterable[str]) -> list[tuple[str, str]]:
    parts = (line.partition(" ") for line in lines)
    return [(word, rest.strip()) for word, _, rest in parts]


def drive(server: str, url: str, kind: str, count: int) -> tuple[set[str], list[str], str]:
    """Who answered, the ids that were answered, and the one that the master enqueued itself."""
    (port,) = free_ports(1)
    command = gunicorn(port) if server == "gunicorn" else uwsgi(port, UWSGI[server])
    with serving(command, url, kind) as process:
        assert process.stdout is not None
        ((_, master),) = words([process.stdout.readline()])
        with ThreadPoolExecutor(DRIVERS) as pool:
            parts = [range(first, count, DRIVERS) for first in range(DRIVERS)]
            answers = [each for part in pool.map(requests, repeat(port), parts) for each in part]
            deadline = time.monotonic() + PATIENCE
            while len({pid for pid, _ in answers}) < WORKERS and time.monotonic() < deadline:
                # One stood still meanwhile, and the others took all.
                answers += pool.map(request, repeat(port), range(DRIVERS))
    return {pid for pid, _ in answers}, [job_id for _, job_id in answers], master


def gunicorn(port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "gunicorn", "--preload", "--workers", str(WORKERS), "--threads", "2"),
        *("--bind", f"{HOST}:{port}", "--log-level", "warning", "--no-control-socket"),
        f"{enqueuers.__name__}:wsgi()",
    ]


def uwsgi(port: int, options: Sequence[str]) -> list[str]:
    return [
        *(sys.executable, "-c", "import pyuwsgi; pyuwsgi.run()", "--module", f"{enqueuers.__name__}:wsgi()"),
        *("--master", "--processes", str(WORKERS), "--enable-threads", "--http-socket", f"{HOST}:{port}"),
        *("--need-app", "--die-on-term", "--disable-logging", *options),
    ]


@contextmanager
def serving(command: Sequence[str], url: str, kind: str) -> Generator[subprocess.Popen[str]]:
    """A server whose children are forked after its client has connected."""
    server = subprocess.Popen(
        command, cwd=ROOT, env=patient(enqueuers.environment(url, kind)), stdout=subprocess.PIPE, text=True
    )
    with server:
        try:
            yield server
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                assert server.wait(PATIENCE) == 0
            finally:
                server.kill()


def requests(port: int, numbers: Sequence[int]) -> list[tuple[str, str]]:
    """Of each request, the pid that answered and the job's id."""
    return [request(port, n) for n in numbers]


def request(port: int, n: int) -> tuple[str, str]:
    deadline = time.monotonic() + PATIENCE
    while True:
        connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE)
        try:
            connection.request("POST", f"/?{n}")
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            return cast("str", answer.headers["X-Pid"]), answer.read().decode()
        except ConnectionRefusedError:  # its workers are not there yet
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)
        finally:
            connection.close()


@contextmanager
def unchanged_process() -> Generator[None]:
    """As many threads and descriptors afterwards as before, in a moment at most."""
    before = state_of_process()
    yield
    deadline = time.monotonic() + PATIENCE
    while any(now > then for now, then in zip(state_of_process(), before, strict=True)):
        assert time.monotonic() < deadline, f"{state_of_process()} and not {before}: {threading.enumerate()}"
        threading.Event().wait(0.02)
