"""One child process and what is said between it and its worker, also as it dies."""

import asyncio
import gc
import json
import sys
import time
from collections.abc import AsyncGenerator
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest

from amqpjobs.clock import SystemClock
from amqpjobs.errors import ProcessDiedError
from amqpjobs.outcome import Completed
from amqpjobs.worker.crossing import Frame, job_frame
from amqpjobs.worker.introduction import quarantine_introduction
from amqpjobs.worker.process import Child, NotTakenError
from tests.support.broker import PATIENCE, eventually
from tests.unit.making import envelope

HOME = "tests.support.killer_app"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    options = {"folder": str(tmp_path), "name": "child", "prefetch": "1"}
    monkeypatch.setenv("KILLER_APP_OPTIONS", json.dumps(options))
    sys.modules.pop(HOME, None)
    return import_module(HOME)


@pytest.fixture
async def child(home: Any) -> AsyncGenerator[Child]:
    child = Child(SystemClock())
    await child.start(quarantine_introduction(home.app, home.app.registry))
    yield child
    await child.stop()


def frame_of(kind: str, **fields: object) -> Frame:
    return job_frame(envelope(kind, json.dumps(fields).encode(), max_attempts=1, timeout=60.0))


def until_gone(pid: int) -> None:
    """Holds up the event loop."""
    soon = time.monotonic() + PATIENCE
    while psutil.pid_exists(pid):
        assert time.monotonic() < soon
        time.sleep(0.01)


async def test_a_child_dies_having_taken_a_job_while_it_is_sent_another(
    child: Child, home: Any, tmp_path: Path
) -> None:
    """Its last words were lost with the socket that could not be written to, and who killed it was not blamed."""
    [process] = [each for each in psutil.Process().children() if "amqpjobs.worker.child" in "".join(each.cmdline())]
    killer = asyncio.create_task(child.share(frame_of("child.killer", name="killer"), home.Killer))
    await asyncio.sleep(0)  # it is sent

    until_gone(process.pid)  # and nothing is read meanwhile
    late = asyncio.create_task(child.share(frame_of("child.innocent", name="late"), home.Innocent))
    await asyncio.wait([killer, late])

    assert (tmp_path / "ledger").read_text().startswith("around killer")
    assert type(late.exception()) is NotTakenError
    assert type(killer.exception()) is ProcessDiedError


async def test_a_child_runs_many_jobs_at_once_and_others_after_them(child: Child, home: Any) -> None:
    frames = [frame_of("child.innocent", name=f"innocent-{number}") for number in range(50)]

    outcomes = await asyncio.gather(*(child.share(frame, home.Innocent) for frame in frames))
    last = await child.share(frames[0], home.Innocent)

    assert [type(each) for each in [*outcomes, last]] == [Completed] * 51


async def test_a_child_that_is_stopped_is_gone_with_its_sockets(child: Child) -> None:
    gc.collect()  # what others left would be closed meanwhile
    process = psutil.Process()
    children, open_files = len(process.children()), process.num_fds()

    await child.stop()

    await eventually(lambda: asyncio.to_thread(lambda: len(process.children()) < children))
    assert process.num_fds() == open_files - 2  # one for each direction
    assert child.is_over
