"""What is declared, what may differ from it, and what may not."""

from collections.abc import Sequence

import pytest

from amqpjobs import App, JobContext, Queue, TopologyMismatchError, Worker
from amqpjobs.envelope import Envelope
from amqpjobs.events import JobEnded, TopologyDrifted
from amqpjobs.outcome import Outcome
from amqpjobs.topology import DELIVERY_LIMIT
from amqpjobs.wire import Publication
from tests.support.apps import Bench, Note, dead_queue, record, watch, work_queue
from tests.support.broker import Broker


async def test_declaring_twice_is_harmless(bench: Bench) -> None:
    app, kind = bench.app(), bench.kind()
    ran, drifted = record(app, kind), watch(app.events, TopologyDrifted)

    async with Worker(app):
        await app.enqueue(kind(n=1))
        await ran.until(1)
    async with Worker(app):
        await app.enqueue(kind(n=2))
        await ran.until(2)

    assert [run.n for run in ran] == [1, 2]
    assert not list(drifted)


async def test_a_queue_with_another_delivery_limit_is_told_and_used(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    ran, drifted = record(app, kind), watch(app.events, TopologyDrifted)
    (work,) = [spec for spec in app.plan().queues if spec.name == work_queue(app)]
    await broker.declare_queue(work.name, {**work.arguments, "x-delivery-limit": 50})

    async with Worker(app):
        await app.enqueue(kind())
        await ran.until(1)

    assert [(each.queue, each.argument, each.ours, each.theirs) for each in drifted] == [
        (work.name, "x-delivery-limit", str(DELIVERY_LIMIT), "50")
    ]


async def test_a_queue_that_lacks_a_safe_argument_is_told_and_used(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    ran, drifted = record(app, kind), watch(app.events, TopologyDrifted)
    (work,) = [spec for spec in app.plan().queues if spec.name == work_queue(app)]
    kept = {name: value for name, value in work.arguments.items() if name != "x-queue-leader-locator"}
    await broker.declare_queue(work.name, kept)

    async with Worker(app):
        await app.enqueue(kind())
        await ran.until(1)

    assert [(each.argument, each.ours) for each in drifted] == [("x-queue-leader-locator", "balanced")]


async def test_a_queue_of_another_type_is_an_error_that_says_all(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    record(app, kind)
    # Declared as classic before, with all else as it would be now.
    (work,) = [spec for spec in app.plan().queues if spec.name == work_queue(app)]
    quorums_own = ("x-queue-leader-locator", "x-delivery-limit", "x-dead-letter-strategy")
    kept = {name: value for name, value in work.arguments.items() if name not in quorums_own}
    await broker.declare_queue(work.name, {**kept, "x-queue-type": "classic"})

    with pytest.raises(TopologyMismatchError) as caught:
        async with Worker(app):
            pass

    text = str(caught.value)
    for part in (work_queue(app), "x-queue-type", "'classic'", "'quorum'", "delete"):
        assert part in text


async def test_a_queue_that_rejects_when_full_is_an_error_that_says_all(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    record(app, kind)
    (work,) = [spec for spec in app.plan().queues if spec.name == work_queue(app)]
    await broker.declare_queue(work.name, {**work.arguments, "x-max-length": 5})

    with pytest.raises(TopologyMismatchError) as caught:
        async with Worker(app):
            pass

    text = str(caught.value)
    for part in (work.name, "x-max-length", "5", "None"):
        assert part in text


async def test_every_queue_says_its_type_and_a_delivery_limit(bench: Bench) -> None:
    app = bench.app(queues=[Queue("fast", type="classic", max_priority=5)])

    plans = [app.topology.infrastructure(), app.plan()]

    for spec in (queue for plan in plans for queue in plan.queues):
        assert "x-queue-type" in spec.arguments
        if spec.arguments["x-queue-type"] == "quorum":
            assert spec.arguments["x-delivery-limit"] == DELIVERY_LIMIT


async def test_all_that_is_planned_exists_as_planned(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    record(app, kind)

    async with Worker(app):
        pass

    for plan in (app.topology.infrastructure(), app.plan()):
        for spec in plan.queues:  # a declare with other arguments would be refused
            await broker.declare_queue(spec.name, spec.arguments)


async def test_a_classic_queue_honours_priorities(bench: Bench) -> None:
    name = bench.unique()
    app = bench.app(queues=[Queue(name, type="classic", max_priority=5)])
    kind = bench.kind()
    ran = record(app, kind, queue=name)
    async with Worker(app):
        pass

    for n, priority in enumerate([0, 1, 5, 3, 5]):
        await app.enqueue(kind(n=n), priority=priority)
    async with Worker(app, concurrency=1):
        await ran.until(5)

    assert [run.n for run in ran] == [2, 4, 3, 1, 0]


async def test_a_classic_queue_takes_delays_and_retries(bench: Bench, broker: Broker) -> None:
    name = bench.unique()
    app = bench.app(queues=[Queue(name, type="classic")])
    kind = bench.kind()

    async def always_fail(job: Note, context: JobContext[None]) -> None:
        raise ValueError("no")

    ran = record(app, kind, always_fail, queue=name, max_attempts=2)
    async with Worker(app):
        await app.enqueue(kind(), delay=0.2)
        (letter,) = await broker.take(dead_queue(app, name), 1)

    assert [run.attempt for run in ran] == [1, 2]
    assert letter.text("amqpjobs-dead-queue") == name


@pytest.mark.parametrize("type_", ["quorum", "classic"])
async def test_what_another_client_rejects_reaches_the_dead_letters(bench: Bench, broker: Broker, type_: str) -> None:
    name = bench.unique()
    app: App[None] = bench.app(queues=[Queue(name, type="classic" if type_ == "classic" else "quorum")])
    kind = bench.kind()
    record(app, kind, queue=name)
    async with Worker(app):
        pass

    handle = await app.enqueue(kind(n=4))
    await broker.reject(work_queue(app, name))

    (letter,) = await broker.take(dead_queue(app, name), 1)
    assert letter.text("amqpjobs-id") == handle.job_id


async def test_a_dead_letter_that_cannot_be_published_is_left_to_the_broker(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    ended = watch(app.events, JobEnded)

    def broken(envelope: Envelope, outcome: Outcome) -> Sequence[Publication]:
        raise ZeroDivisionError("a bug in an effect")

    async def fail(job: Note, context: JobContext[None]) -> None:
        raise ValueError("no")

    app.effect(broken)
    record(app, kind, fail, max_attempts=1)
    async with Worker(app):
        handle = await app.enqueue(kind(n=4))
        (letter,) = await broker.take(dead_queue(app), 1)
        await ended.until(1)

    assert letter.text("amqpjobs-id") == handle.job_id
    assert letter.body == b'{"n":4,"text":""}'
