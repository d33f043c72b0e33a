"""Celery with a pool of threads, which is its way to have many jobs wait at once."""

from benchmarks.contenders.celery_prefork import enqueue, enqueue_each, prepare, run_worker
from benchmarks.contenders.place import Kind

__all__ = ["enqueue", "enqueue_each", "prepare", "work"]


def work(kind: Kind, processes: int, concurrency: int) -> None:
    run_worker("threads", min(concurrency, 100), 2)
