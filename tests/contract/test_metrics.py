"""What is counted and measured, with the SDK's in-memory reader."""

import asyncio
from collections.abc import Generator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import HistogramDataPoint

from amqpjobs import EnqueueManyError, JobContext, Snooze, Worker
from amqpjobs.envelope import new_id
from amqpjobs.errors import UnroutableError
from amqpjobs.events import JobEnded, MessageDied
from amqpjobs.job import options_of
from amqpjobs.telemetry.measures import DURATIONS, WAITS, enqueued_at
from tests.support.apps import Bench, Note, record, watch, work_queue
from tests.support.broker import PATIENCE, Broker, eventually
from tests.support.metrics import Read, measured
from tests.unit.making import envelope


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Generator[Read]:
    with measured(monkeypatch) as read:
        yield read


def kind_of(kind: type[Note]) -> str:
    return options_of(kind).kind


async def test_enqueues_are_counted_and_timed_by_destination_and_error(bench: Bench, read: Read) -> None:
    app, kind, unbound = bench.app(), bench.kind(), bench.kind()
    record(app, kind)

    async with Worker(app):
        await app.enqueue(kind())
        await app.enqueue_many([kind() for _ in range(5)])
        with pytest.raises(UnroutableError):
            await app.enqueue(unbound())
        with pytest.raises(EnqueueManyError):
            await app.enqueue_many([kind(), unbound()])

    good, bad = f"tests:{kind_of(kind)}", f"tests:{kind_of(unbound)}"
    told = ("messaging.operation.name", "messaging.destination.name", "error.type")
    assert read.values("messaging.client.sent.messages", *told) == {
        ("send", good, None): 6,
        ("send", bad, "UnroutableError"): 1,
        ("send", "_OTHER", None): 1,
        ("send", "_OTHER", "EnqueueManyError"): 1,
    }
    durations = read.values("messaging.client.operation.duration", *told)
    assert durations["send", good, None] == 2
    assert durations["send", bad, "UnroutableError"] == 1


async def test_runs_are_counted_by_outcome_and_timed(bench: Bench, broker: Broker, read: Read) -> None:
    app, kind = bench.app(), bench.kind()
    ended, died = watch(app.events, JobEnded), watch(app.events, MessageDied)

    async def behave(job: Note, context: JobContext[Any]) -> None:
        if job.text == "fail":
            raise ValueError("as asked")
        if job.text == "snooze" and context.envelope.first_at is None:
            raise Snooze(0.1)

    record(app, kind, behave, max_attempts=2)
    async with Worker(app):
        for text in ("", "fail", "snooze"):
            await app.enqueue(kind(text=text))
        await broker.publish("tests.queues", work_queue(app), kind=f"nobody-knows-{kind_of(kind)}")
        await broker.publish("tests.queues", work_queue(app))
        await ended.until(6)
        await died.until(1)

    outcomes = read.values(
        "amqpjobs.job.outcomes", "amqpjobs.job.kind", "amqpjobs.job.outcome", "amqpjobs.job.dead_reason"
    )
    own = kind_of(kind)
    assert outcomes == {
        (own, "completed", None): 2,
        (own, "retrying", None): 1,
        (own, "dead", "attempts_exhausted"): 1,
        (own, "snoozed", None): 1,
        ("_OTHER", "snoozed", None): 1,
        ("_OTHER", "dead", "unreadable"): 1,
    }
    to = f"tests:{own}:{work_queue(app)}"
    assert read.values("messaging.process.duration", "messaging.destination.name", "error.type") == {
        (to, None): 3,
        (to, "ValueError"): 2,
    }
    assert read.values("messaging.client.consumed.messages", "messaging.destination.name") == {(to,): 5}
    assert read.values("amqpjobs.job.wait.duration", "amqpjobs.job.kind") == {(own,): 3}
    [attempts] = read.points("amqpjobs.job.attempts")
    assert isinstance(attempts, HistogramDataPoint)
    assert (attempts.count, attempts.sum) == (3, 4)


async def test_what_runs_now_is_known(bench: Bench, read: Read) -> None:
    app, kind, may_end = bench.app(), bench.kind(), asyncio.Event()
    ended = watch(app.events, JobEnded)

    async def wait(job: Note, context: JobContext[Any]) -> None:
        await may_end.wait()

    ran = record(app, kind, wait)
    async with Worker(app):
        await app.enqueue_many([kind() for _ in range(3)])
        await ran.until(3)
        running = read.values("amqpjobs.job.active", "amqpjobs.job.kind")
        may_end.set()
        await ended.until(3)

    assert running == {(kind_of(kind),): 3}
    assert read.values("amqpjobs.job.active", "amqpjobs.job.kind") == {(kind_of(kind),): 0}


async def test_the_advised_boundaries_fit_jobs(bench: Bench, read: Read) -> None:
    app, kind = bench.app(), bench.kind()
    record(app, kind)

    async with Worker(app):
        await app.enqueue(kind(), delay=0.1)

        async def has_run() -> bool:
            return bool(read.points("messaging.process.duration"))

        await eventually(has_run)

    [run], [wait] = read.points("messaging.process.duration"), read.points("amqpjobs.job.wait.duration")
    assert isinstance(run, HistogramDataPoint)
    assert isinstance(wait, HistogramDataPoint)
    assert tuple(run.explicit_bounds) == DURATIONS
    assert tuple(wait.explicit_bounds) == WAITS
    assert wait.sum < PATIENCE


async def test_hostile_kinds_make_no_series_of_their_own(bench: Bench, broker: Broker, read: Read) -> None:
    app = bench.app(settings=bench.settings(unknown_window=0))
    ended = watch(app.events, JobEnded)

    async with Worker(app):
        for n in range(20):
            await broker.publish("tests.queues", work_queue(app), kind=f"hostile-{n}")
        await ended.until(20)

    assert len(read.points("amqpjobs.job.outcomes")) == 1
    assert len(read.points("messaging.client.operation.duration")) == 1


NOW = datetime.now(UTC)


@pytest.mark.parametrize(
    "changes",
    [
        {"enqueued_at": NOW.replace(microsecond=0), "job_id": "mine"},
        {"enqueued_at": NOW - timedelta(hours=1)},
        {"enqueued_at": None},
    ],
)
def test_any_other_id_tells_nothing_of_its_enqueue(changes: Mapping[str, Any]) -> None:
    made = envelope(job_id=new_id()).evolve(**changes)

    assert enqueued_at(made) == made.enqueued_at


def test_an_id_of_ours_tells_the_millisecond_of_its_enqueue() -> None:
    job_id = new_id()
    made = datetime.fromtimestamp(int(job_id.replace("-", "")[:12], 16) / 1000, UTC)

    assert enqueued_at(envelope(job_id=job_id, enqueued_at=made.replace(microsecond=0))) == made
