"""Dramatiq: processes of threads."""

import sys
import time

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchmarks.contenders.pace import Took, blocking, sent_at
from benchmarks.contenders.place import QUEUE, TEXT, URL, WAIT, Kind, compute
from benchmarks.tally import ran

broker = RabbitmqBroker(url=URL or "amqp://localhost", confirm_delivery=True)
dramatiq.set_broker(broker)


@dramatiq.actor(actor_name="nothing", queue_name=QUEUE)
def nothing(number: int, text: str = TEXT, at: float = 0.0) -> None:
    ran()


@dramatiq.actor(actor_name="waiting", queue_name=QUEUE)
def waiting(number: int, text: str = TEXT, at: float = 0.0) -> None:
    time.sleep(WAIT)
    ran()


@dramatiq.actor(actor_name="computing", queue_name=QUEUE)
def computing(number: int, text: str = TEXT, at: float = 0.0) -> None:
    compute()
    ran()


@dramatiq.actor(actor_name="timed", queue_name=QUEUE)
def tell(number: int, text: str = TEXT, at: float = 0.0) -> None:
    ran(at)


ACTORS = {"nothing": nothing, "waiting": waiting, "computing": computing, "timed": tell}


def prepare() -> None:
    broker.declare_queue(QUEUE, ensure=True)


def enqueue(kind: Kind, count: int) -> Took:
    """It has no batches."""
    return enqueue_each(kind, count, 0.0)


def enqueue_each(kind: Kind, count: int, rate: float) -> Took:
    actor = ACTORS[kind]
    return blocking(lambda each: actor.send(each, TEXT, sent_at(kind)), count, rate)


def command(kind: Kind, processes: int, concurrency: int) -> list[str]:
    # More threads make jobs that do nothing slower: the eight of its default are fastest.
    threads = concurrency if kind == "waiting" else 8
    return [sys.executable, "-m", "dramatiq", __name__, "--processes", str(processes), "--threads", str(threads)]
