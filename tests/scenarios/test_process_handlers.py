"""Handlers in processes: what goes wrong in one costs the job that it runs, and nobody else."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest

from amqpjobs import Worker
from amqpjobs.events import JobEnded
from amqpjobs.outcome import Cancelled, Completed, Dead, DeadReason, Outcome, Retrying, Snoozed
from tests.support.apps import NAMESPACE, Seen, dead_queue, watch, work_queue
from tests.support.broker import PATIENCE, Broker, eventually, plain_client
from tests.support.terminal import Terminal

ROOT = Path(__file__).parents[2]
HOME = "tests.support.process_app"
#: Several processes start one after the other, each in seconds where the machine is busy.
STARTS = 4 * PATIENCE


class Scene:
    """The app in this process and in its children, and what was noted."""

    def __init__(self, url: str, name: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._patch = patch
        self._options = {"folder": str(folder), "name": name, "worker": str(os.getpid())}
        self._settings: dict[str, object] = {"url": url, "namespace": NAMESPACE, "processes": 3}
        self.home: Any = None

    def load(self, **settings: object) -> None:
        """Import the app as a fresh process would."""
        options = {**self._options, "settings": json.dumps(self._settings | settings)}
        self._patch.setenv("PROCESS_APP_OPTIONS", json.dumps(options))
        sys.modules.pop(HOME, None)
        self.home = import_module(HOME)

    @asynccontextmanager
    async def working(self, **settings: object) -> AsyncGenerator[Seen[JobEnded]]:
        self.load(**settings)
        ended = watch(self.home.app.events, JobEnded)
        async with Worker(self.home.app):
            yield ended

    async def do(self, what: str, **fields: Any) -> str:
        given = {name: fields.pop(name) for name in ("mark", "text") if name in fields}
        handle = await self.home.app.enqueue(self.home.Do(what=what, **given), **fields)
        return str(handle.job_id)

    def touch(self, name: str) -> None:
        (self.folder / name).touch()

    def noted(self, start: str) -> list[str]:
        """Lines of the ledger, the pid at their end left out."""
        lines: list[str] = self.home.noted()
        return [line.rpartition(" ")[0] for line in lines if line.startswith(start)]

    def pids(self, start: str) -> list[int]:
        lines: list[str] = self.home.noted()
        return [int(line.rpartition(" ")[2]) for line in lines if line.startswith(start)]

    async def until_noted(self, start: str, count: int = 1) -> None:
        async def is_there() -> bool:
            return len(self.noted(start)) >= count

        await eventually(is_there, within=STARTS)


@pytest.fixture
async def broker(url: str) -> AsyncGenerator[Broker]:
    async with plain_client(url) as client:
        yield client


@pytest.fixture
async def scene(
    url: str, unique: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broker: Broker
) -> AsyncGenerator[Scene]:
    scene = Scene(url, unique(), tmp_path, monkeypatch)
    scene.load()
    yield scene
    await scene.home.app.close()
    await broker.delete_queue(work_queue(scene.home.app))
    await broker.delete_queue(dead_queue(scene.home.app))


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No child and no zombie stays behind."""
    me = psutil.Process()
    children = set(me.children(recursive=True))
    yield
    # What the broker, there before, forks for a moment is its own.
    left = [each for each in set(me.children(recursive=True)) - children if not _is_below(each, children)]
    assert left == []


def _is_below(process: psutil.Process, others: set[psutil.Process]) -> bool:
    try:
        return any(parent in others for parent in process.parents())
    except psutil.NoSuchProcess:  # a zombie of ours still has its parents
        return True


def of(ended: Seen[JobEnded], job_id: str) -> list[Outcome]:
    return [event.outcome for event in ended if event.envelope.job_id == job_id]


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie of another process's only waits to be counted."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def all_of(ended: Seen[JobEnded], job_id: str, count: int) -> list[Outcome]:
    """The first outcomes of one job, awaited."""

    async def are_there() -> bool:
        return len(of(ended, job_id)) >= count

    await eventually(are_there, within=STARTS)
    return of(ended, job_id)


# What goes wrong


@pytest.mark.parametrize(
    ("what", "timeout", "words"),
    [
        ("segfault", 60, "ProcessDiedError: The process of this job was killed by SIGSEGV."),
        (
            "kill",
            60,
            "ProcessDiedError: The process of this job was killed by SIGKILL (out of memory, or by somebody).",
        ),
        ("_exit", 60, "ProcessDiedError: The process of this job ended with exit code 7."),
        ("exit", 60, "SystemExit: 3"),
        ("eat memory", 60, "MemoryError: "),
        ("spin", 1, "TimeoutError: It ran longer than its timeout of 1 s."),
        ("hold the lock", 1, "TimeoutError: It ran longer than its timeout of 1 s."),
        ("fail", 60, "ValueError: as asked"),
    ],
)
async def test_what_goes_wrong_in_a_process_costs_its_own_job_an_attempt_and_no_other(
    scene: Scene, broker: Broker, what: str, timeout: float, words: str
) -> None:
    async with scene.working() as ended:
        bystander = await scene.do("wait", mark="go", timeout=10 * STARTS)
        await scene.until_noted("wait")
        victim = await scene.do(what, timeout=timeout)
        outcomes = await all_of(ended, victim, 2)
        scene.touch("go")
        others = await all_of(ended, bystander, 1)
        next_one = await scene.do("nothing")
        after = await all_of(ended, next_one, 1)
        [letter] = await broker.take(dead_queue(scene.home.app), 1)

    assert [type(outcome) for outcome in outcomes] == [Retrying, Dead]
    assert letter.text("amqpjobs-dead-error") == words
    assert letter.text("amqpjobs-dead-traceback")
    assert "execution.py" not in letter.text("amqpjobs-dead-traceback")
    runs = [f"{what}, attempt 1 of 2", f"{what}, attempt 2 of 2"]
    if timeout < 60:  # a process that stands still for so long notes nothing
        runs = [each for each in runs if each in scene.noted(what)]
    assert scene.noted(what) == runs
    assert scene.noted("wait") == ["wait, attempt 1 of 2"]
    assert [type(outcome) for outcome in others + after] == [Completed, Completed]


async def test_the_traceback_of_a_dead_letter_is_the_handlers_own(scene: Scene, broker: Broker) -> None:
    async with scene.working():
        await scene.do("fail")
        [letter] = await broker.take(dead_queue(scene.home.app), 1)

    trace = letter.text("amqpjobs-dead-traceback")
    assert "process_app.py" in trace
    assert "raise make()" in trace
    assert trace.endswith("ValueError: as asked")


async def test_a_process_that_dies_idle_costs_no_attempt(scene: Scene) -> None:
    async with scene.working() as ended:
        first = await all_of(ended, await scene.do("nothing"), 1)
        os.kill(scene.pids("nothing")[0], signal.SIGKILL)
        second = await all_of(ended, await scene.do("nothing"), 1)

    assert [type(outcome) for outcome in first + second] == [Completed, Completed]
    assert scene.noted("nothing") == ["nothing, attempt 1 of 2"] * 2


async def test_a_process_that_cannot_start_fails_the_attempt_with_its_reason(scene: Scene) -> None:
    scene.touch("broken")
    async with scene.working() as ended:
        outcomes = await all_of(ended, await scene.do("nothing"), 2)

    assert isinstance(outcomes[0], Retrying)
    assert isinstance(outcomes[1], Dead)
    assert str(outcomes[1].error) == "A process for handlers could not start. RuntimeError: the pool is empty"
    assert len(scene.noted("enter")) == 3  # the worker's own, and one for each attempt
    assert scene.noted("nothing") == []


@pytest.mark.parametrize("what", ["fork", "fork and return"])
async def test_what_a_handler_has_forked_ends_with_its_process(scene: Scene, what: str) -> None:
    async with scene.working() as ended:
        outcomes = await all_of(ended, await scene.do(what), 1)
        again = await all_of(ended, await scene.do("nothing"), 1)

    assert [type(outcome) for outcome in outcomes + again] == [Completed, Completed]
    assert len(of(ended, ended[0].envelope.job_id)) == 1

    async def are_gone() -> bool:  # killed at once, but a busy machine may take its time
        return not any(is_alive(pid) for pid in scene.pids("forked"))

    await eventually(are_gone)


# What works


async def test_results_come_back_typed_and_with_their_secrets(scene: Scene) -> None:
    async with scene.working() as ended:
        [outcome] = await all_of(ended, await scene.do("nothing", text="ü" * 10), 1)

    assert isinstance(outcome, Completed)
    result: Any = outcome.result
    assert type(result) is scene.home.Done
    assert result.pid != os.getpid()
    assert (result.text, result.secret.get_secret_value()) == ("ü" * 10, "hidden")


async def test_large_jobs_and_results_cross(scene: Scene) -> None:
    text = "x" * 8_000_000

    async with scene.working() as ended:
        ids = [await scene.do("nothing", text=text, deadline=STARTS) for _ in range(3)]
        outcomes = [(await all_of(ended, job_id, 1))[0] for job_id in ids]

    results: list[Any] = [outcome.result for outcome in outcomes if isinstance(outcome, Completed)]
    assert [result.text == text for result in results] == [True] * 3


async def test_the_lifespan_is_entered_once_in_each_process_and_left_at_the_end(scene: Scene) -> None:
    async with scene.working(processes=1) as ended:
        ids = [await scene.do("nothing") for _ in range(5)]
        runs = [(await all_of(ended, job_id, 1))[0] for job_id in ids]

    counted: list[Any] = [outcome.result for outcome in runs if isinstance(outcome, Completed)]
    assert sorted(result.runs_of_this_process for result in counted) == [1, 2, 3, 4, 5]
    assert len({result.pid for result in counted}) == 1
    assert len(scene.noted("enter")) == len(scene.noted("leave")) == 2  # the worker's and the child's


async def test_wishes_and_policies_are_decided_where_the_error_is(scene: Scene) -> None:
    async with scene.working() as ended:
        retry = await all_of(ended, await scene.do("retry"), 2)
        [snooze, *_] = await all_of(ended, await scene.do("snooze"), 1)
        [cancel] = await all_of(ended, await scene.do("cancel"), 1)
        [hopeless] = await all_of(ended, await scene.do("hopeless"), 1)

    assert isinstance(retry[0], Retrying)
    assert retry[0].delay == 0.2
    assert isinstance(retry[1], Dead)
    assert snooze == Snoozed(0.2, "later")
    assert cancel == Cancelled("no need")
    assert isinstance(hopeless, Dead)
    assert hopeless.reason is DeadReason.NOT_RETRYABLE


async def test_processes_compute_side_by_side(scene: Scene) -> None:
    async with scene.working() as ended:
        one, two = await scene.do("meet", text="one two"), await scene.do("meet", text="two one")
        outcomes = await all_of(ended, one, 1) + await all_of(ended, two, 1)

    assert [type(outcome) for outcome in outcomes] == [Completed, Completed]


async def test_a_job_that_waits_for_a_process_has_not_started_its_timeout(scene: Scene) -> None:
    async with scene.working(processes=1) as ended:
        first = await scene.do("wait", mark="go")
        await scene.until_noted("wait")
        second = await scene.do("nothing", timeout=3)
        tick = await scene.home.app.enqueue(scene.home.Tick(), delay=4)
        await all_of(ended, tick.job_id, 1)
        before = of(ended, second)
        scene.touch("go")
        outcomes = await all_of(ended, first, 1) + await all_of(ended, second, 1)

    assert before == []
    assert [type(outcome) for outcome in outcomes] == [Completed, Completed]


async def test_a_handler_in_a_process_enqueues_with_its_job_as_the_parent(scene: Scene) -> None:
    async with scene.working() as ended:
        handle = await scene.home.app.enqueue(scene.home.Follow())
        events = await ended.until(3)

    ticks = [event.envelope for event in events if event.envelope.kind.endswith("tick")]
    assert [tick.parent for tick in ticks] == [handle.job_id] * 2


async def test_a_stopping_worker_kills_what_runs_and_hands_it_back(scene: Scene, broker: Broker) -> None:
    scene.load(grace=0)
    async with Worker(scene.home.app) as worker:
        await scene.do("spin")
        await scene.until_noted("spin")
        [pid] = scene.pids("spin")

    assert worker.cancelled == 1
    assert not psutil.pid_exists(pid)
    await broker.await_count(work_queue(scene.home.app), 1)


async def test_workers_leave_no_descriptor_behind(scene: Scene) -> None:
    async with scene.working() as ended:
        await all_of(ended, await scene.do("nothing"), 1)
        before = psutil.Process().num_fds()
        for what in ("kill", "_exit", "segfault"):
            await all_of(ended, await scene.do(what, max_attempts=1), 1)
        await all_of(ended, await scene.do("nothing"), 1)

        async def is_as_before() -> bool:
            return psutil.Process().num_fds() <= before

        await eventually(is_as_before)


# By the command line


@pytest.fixture
def environment(url: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("AMQPJOBS_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    return clean | {"PATH": path, "AMQPJOBS_URL": url, "AMQPJOBS_NAMESPACE": NAMESPACE, "AMQPJOBS_LOG_FORMAT": "json"}


@pytest.mark.parametrize("what", ["spin", "hold the lock"])
async def test_a_killed_worker_leaves_no_process_behind(scene: Scene, environment: dict[str, str], what: str) -> None:
    options = {"PROCESS_APP_OPTIONS": os.environ["PROCESS_APP_OPTIONS"]}
    with Terminal(f"amqpjobs run {HOME}", ROOT, environment | options) as worker:
        assert await asyncio.to_thread(worker.shows, '"working"'), worker.text
        await scene.do(what)
        await scene.do("nothing")
        await scene.until_noted(what)
        await scene.until_noted("nothing")
        children = [psutil.Process(pid) for pid in scene.pids(what) + scene.pids("nothing")]
        worker.signal(signal.SIGKILL)
        _, alive = await asyncio.to_thread(psutil.wait_procs, children, PATIENCE)

    assert len(children) == 2
    assert alive == []


async def test_a_signal_for_all_leaves_the_decision_to_the_worker(scene: Scene, environment: dict[str, str]) -> None:
    options = {"PROCESS_APP_OPTIONS": os.environ["PROCESS_APP_OPTIONS"]}
    with Terminal(f"amqpjobs run {HOME}", ROOT, environment | options) as worker:
        assert await asyncio.to_thread(worker.shows, '"working"'), worker.text
        await scene.do("wait", mark="go")
        await scene.until_noted("wait")
        for pid in scene.pids("wait"):
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
        worker.signal(signal.SIGINT)
        scene.touch("go")
        code = await asyncio.to_thread(worker.end)

    assert code == 0
    assert '"completed"' in worker.text


async def test_what_a_handler_logs_and_prints_comes_out_at_the_worker(
    scene: Scene, environment: dict[str, str]
) -> None:
    options = {"PROCESS_APP_OPTIONS": os.environ["PROCESS_APP_OPTIONS"]}
    with Terminal(f"amqpjobs run {HOME}", ROOT, environment | options) as worker:
        assert await asyncio.to_thread(worker.shows, '"working"'), worker.text
        job_id = await scene.do("say")
        assert await asyncio.to_thread(worker.shows, '"completed"'), worker.text
        worker.signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.end) == 0

    lines = worker.text.splitlines()
    [said] = [json.loads(line) for line in lines if "said in the log" in line]
    assert {"said to stdout", "said to stderr"} <= set(lines)
    assert (said["job_id"], said["colour"], said["level"]) == (job_id, "teal", "info")
    assert said["kind"].endswith(".do")


SCRIPT = """
import asyncio
from amqpjobs import App, Job, Worker
from amqpjobs.events import JobEnded

class Square(Job[int], kind="{name}.square", max_attempts=1):
    number: int

class Holder:
    app = App("{name}")

@Holder.app.handler(Square, run_in="process")
def square(job: Square) -> int:
    return job.number**2

async def main() -> None:
    ended = asyncio.Queue()
    Holder.app.on(JobEnded)(ended.put_nowait)
    async with Worker(Holder.app):
        await Holder.app.enqueue(Square(number=12))
        print("ended", (await ended.get()).outcome)

{guard}asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("guard", "words"),
    [("if __name__ == '__main__': ", "ended Completed(result=144)"), ("", "Put what starts it below `if __name__ ==")],
    ids=["guarded", "unguarded"],
)
async def test_an_app_may_live_in_a_script(
    scene: Scene, environment: dict[str, str], tmp_path: Path, guard: str, words: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("{name}", scene.home.name).replace("{guard}", guard))

    ran = await asyncio.to_thread(
        subprocess.run, [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=STARTS
    )

    assert words in ran.stdout, ran.stderr
