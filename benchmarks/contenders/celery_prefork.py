"""Celery with its default pool, of processes: one job at a time in each."""

import os
import sys
import time
from importlib import import_module
from typing import Any

from benchmarks.contenders.pace import Took, blocking, sent_at
from benchmarks.contenders.place import QUEUE, TEXT, URL, WAIT, Kind, compute
from benchmarks.tally import ran

#: Without types of its own.
celery: Any = import_module("celery")
kombu: Any = import_module("kombu")
app: Any = celery.Celery("benchmark", broker=URL)
app.conf.update(
    task_default_queue=QUEUE,
    task_acks_late=True,
    task_ignore_result=True,
    # Without this one a job is not confirmed.
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
    # What it prefetches, times its pool: 100 for one process, as many as others have.
    worker_prefetch_multiplier=int(os.environ.get("BENCHMARK_PREFETCH", "100")),
    worker_hijack_root_logger=False,
)


def nothing(number: int, text: str = TEXT, at: float = 0.0) -> None:
    ran()


def waiting(number: int, text: str = TEXT, at: float = 0.0) -> None:
    time.sleep(WAIT)
    ran()


def computing(number: int, text: str = TEXT, at: float = 0.0) -> None:
    compute()
    ran()


def tell(number: int, text: str = TEXT, at: float = 0.0) -> None:
    ran(at)


for name, function in {"nothing": nothing, "waiting": waiting, "computing": computing, "timed": tell}.items():
    app.task(name=name)(function)


def prepare() -> None:
    with app.connection_for_write() as connection:
        app.amqp.queues[QUEUE].bind(connection.default_channel).declare()


def enqueue(kind: Kind, count: int) -> Took:
    """It has no batches."""
    return enqueue_each(kind, count, 0.0)


def enqueue_each(kind: Kind, count: int, rate: float) -> Took:
    task = app.tasks[kind]
    return blocking(lambda each: task.delay(each, TEXT, sent_at(kind)), count, rate)


def command(kind: Kind, processes: int, concurrency: int) -> list[str]:
    return command_of("prefork", processes, 100)


def command_of(pool: str, size: int, multiplier: int) -> list[str]:
    lean = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"]
    this = f"{__package__}.celery_prefork"
    run = [sys.executable, "-m", "celery", "-A", this, "worker", f"-P{pool}", f"-c{size}", *lean]
    return ["env", f"BENCHMARK_PREFETCH={multiplier}", *run]
