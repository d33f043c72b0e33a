"""Celery with a pool of threads, which is its way to have many jobs wait at once."""

from benchmarks.contenders.celery_prefork import command_of, enqueue, enqueue_each, prepare
from benchmarks.contenders.place import Kind

__all__ = ["command", "enqueue", "enqueue_each", "prepare"]


def command(kind: Kind, processes: int, concurrency: int) -> list[str]:
    return command_of("threads", min(concurrency, 100), 2)
