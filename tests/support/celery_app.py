"""Celery, as somebody who comes from there runs it: an app with tasks, and a worker with a pool of processes.

`CeleryWorker` is that worker. Run as a program, this is the worker's process.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from importlib import import_module
from types import TracebackType
from typing import Any, Self

from tests.support.broker import PATIENCE

#: Without types of its own.
celery: Any = import_module("celery")


def make_app(url: str) -> Any:
    """Results come back over the broker too; everything else is as Celery has it."""
    app = celery.Celery("tests", broker=url, backend="rpc://", set_as_current=False)
    app.conf.broker_connection_retry_on_startup = True
    for task in (add, fail, hang):
        app.task(name=task.__name__)(task)
    app.task(name="try_twice", bind=True)(try_twice)
    return app


def add(one: int, other: int) -> int:
    return one + other


def fail() -> None:
    raise ValueError("not today")


def hang() -> None:
    """Until it is killed."""
    threading.Event().wait()


def try_twice(task: Any) -> int:
    """It fails at first; how often it was tried again."""
    retries = int(task.request.retries)
    if not retries:
        raise task.retry(countdown=0.1)
    return retries


class CeleryWorker:
    """A worker that runs the tasks of `make_app`, as a context manager; it stops as Celery stops."""

    def __init__(self, url: str) -> None:
        self._command = [sys.executable, "-m", __name__, url]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, start_new_session=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            assert self._process.wait(PATIENCE) == 0, "Celery's worker failed; what it printed tells how."
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # its pool's processes too


if __name__ == "__main__":
    make_app(sys.argv[1]).worker_main(["worker", "--concurrency", "2", "--loglevel", "warning"])
