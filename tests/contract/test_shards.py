"""Sharded queues: what brokers do that they rest on, and what they do."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, cast

import aiormq
import pytest
from aiormq.abc import AbstractConnection, DeliveredMessage

from amqpjobs import App, JobContext, Queue, Retry, TopologyMismatchError, Worker
from amqpjobs.amqp.connection import Link
from amqpjobs.amqp.declare import Declarer
from amqpjobs.deadletters import DeadLetters, dead_of
from amqpjobs.sharding import key_of, slot_word
from amqpjobs.topology import SINGLE, QueueType
from tests.support.apps import Bench, Note, Ran, record
from tests.support.broker import Broker, eventually

QUORUM: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": 1000, SINGLE: True}
CLASSIC: dict[str, Any] = {"x-queue-type": "classic", SINGLE: True}
#: Four shards, and texts whose keys fall into each of them.
SHARDS = 4
TEXTS = {key_of(str(n)) % SHARDS: str(n) for n in range(50)}


def sharded(bench: Bench, *, shards: int = SHARDS, name: str | None = None, **options: Any) -> App[None]:
    name = name or bench.unique()
    return bench.app(name, queues=[Queue(name, shards=shards)], **options)


def shard_of(app: App[Any], text: str, *, shards: int = SHARDS) -> str:
    return app.topology.shard(app.name, key_of(text) % shards)


async def declare(app: App[Any]) -> None:
    async with Link("test", app.settings, app.events, _nothing) as link:
        session, declarer = await link.first_session(), Declarer(app.topology, app.events)
        await declarer.infrastructure(session)
        await declarer.plan(session, app.plan())


async def _nothing(session: object) -> None:
    """The connection needs no more than to be open."""


# What brokers do


class Taker:
    """One consumer on a channel of its own."""

    def __init__(self) -> None:
        self.came: list[DeliveredMessage] = []

    @property
    def numbers(self) -> list[int]:
        return [int(each.body) for each in self.came]

    async def open(self, connection: AbstractConnection, queue: str, prefetch: int) -> None:
        self.channel = await connection.channel()
        await self.channel.basic_qos(prefetch_count=prefetch)

        async def received(message: DeliveredMessage) -> None:
            self.came.append(message)

        self.tag = (await self.channel.basic_consume(queue, received)).consumer_tag or ""

    async def until(self, count: int) -> None:
        async def has_come() -> bool:
            return len(self.came) >= count

        await eventually(has_come)

    async def ack(self, positions: Iterable[int]) -> None:
        for position in positions:
            await self.channel.basic_ack(cast("Any", self.came[position].delivery).delivery_tag)


@asynccontextmanager
async def two_in_line(
    bench: Bench, url: str, arguments: dict[str, Any], *, messages: int, prefetch: int
) -> AsyncGenerator[tuple[Taker, Taker]]:
    """Two on connections of their own; the first, with this prefetch, has the queue."""
    queue = await bench.queue(**arguments)
    async with bench.broker.channel() as channel:
        for n in range(messages):
            await channel.basic_publish(str(n).encode(), routing_key=queue)
    connections = [await aiormq.connect(url) for _ in range(2)]
    one, other = Taker(), Taker()
    await one.open(connections[0], queue, prefetch)
    await other.open(connections[1], queue, 100)
    yield one, other
    for connection in connections:
        await connection.close()


@pytest.mark.parametrize("arguments", [QUORUM, CLASSIC], ids=["quorum", "classic"])
async def test_a_closed_channel_hands_a_single_active_consumers_queue_on_in_its_order(
    bench: Bench, url: str, arguments: dict[str, Any]
) -> None:
    async with two_in_line(bench, url, arguments, messages=30, prefetch=10) as (one, other):
        await one.until(10)
        await one.ack([0, 1, 3])
        await one.until(13)
        assert other.came == []  # it stands in line
        await one.channel.close()
        await other.until(27)

        assert other.numbers == [2, *range(4, 30)]


async def test_a_cancelled_consumers_quorum_queue_is_handed_on_in_another_order(bench: Bench, url: str) -> None:
    async with two_in_line(bench, url, QUORUM, messages=6, prefetch=3) as (one, other):
        await one.until(3)
        await one.channel.basic_cancel(one.tag)
        await other.until(3)
        await one.channel.close()
        await other.until(6)

        assert other.numbers == [3, 4, 5, 0, 1, 2]  # so a shard is never given up in this way


@pytest.mark.parametrize(("arguments", "told"), [(QUORUM, 1), (CLASSIC, 3)], ids=["quorum", "classic"])
async def test_a_single_active_consumers_quorum_queue_says_that_it_has_one(
    bench: Bench, url: str, arguments: dict[str, Any], told: int
) -> None:
    queue = await bench.queue(**arguments)
    connection = await aiormq.connect(url)
    for _ in range(3):
        await Taker().open(connection, queue, 1)

    assert await bench.broker.consumers(queue) == told
    await connection.close()


async def test_a_slot_is_not_among_the_headers_that_come_and_survives_the_brokers_own_dead_lettering(
    bench: Bench, broker: Broker
) -> None:
    last = await bench.queue()
    exchange = bench.unique()
    await broker.declare_exchange(exchange, "direct")
    await broker.bind(last, exchange, slot_word(7))
    first = await bench.queue(x_message_ttl=1, x_dead_letter_exchange=exchange)

    await broker.publish("", first, headers={"BCC": [slot_word(7)], "mine": "yes"})
    (letter,) = await broker.take(last, 1)

    assert letter.headers["mine"] == "yes"
    assert not {"CC", "BCC"} & letter.headers.keys()
    await broker.delete_exchange(exchange)


# Where jobs go


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
@pytest.mark.parametrize("way", ["by kind", "by queue", "delayed", "delayed by queue"])
async def test_a_job_goes_to_the_shard_of_its_key(
    bench: Bench, broker: Broker, way: str, queue_type: QueueType
) -> None:
    name, kind = bench.unique(), bench.kind(shard_by="text")
    app = bench.app(name, queues=[Queue(name, shards=SHARDS, type=queue_type)])
    record(app, kind)
    await declare(app)
    queue: Any = {"queue": name} if "queue" in way else {}
    delay: Any = {"delay": 0.1} if "delayed" in way else {}

    for text in TEXTS.values():
        await app.enqueue(kind(text=text), **queue, **delay)

    for text in TEXTS.values():
        (letter,) = await broker.take(shard_of(app, text), 1)
        assert letter.number("amqpjobs-shard-key") == key_of(text)
        assert await broker.count(shard_of(app, text)) == 0  # one copy


async def test_jobs_that_are_sharded_by_their_id_are_spread(bench: Bench, broker: Broker) -> None:
    app, kind = sharded(bench), bench.kind(shard_by="job_id")
    record(app, kind)
    await declare(app)

    await app.enqueue_many(kind(n=n) for n in range(80))

    counts = [await broker.count(part) for part in app.topology.parts(app.queues[0])]
    assert sum(counts) == 80
    assert min(counts) > 5


@pytest.mark.parametrize("is_late", [False, True])
async def test_what_says_no_slot_goes_to_the_first_shard(bench: Bench, broker: Broker, is_late: bool) -> None:
    app, kind = sharded(bench), bench.kind(shard_by="text")
    record(app, kind)
    await declare(app)
    name = kind.__amqpjobs__.kind
    route = app.topology.delayed(0.1, kind=name) if is_late else app.topology.by_kind(name)

    await broker.publish(route.exchange, route.key, kind=name)

    assert len(await broker.take(app.topology.work_queue(app.name), 1)) == 1


async def test_a_job_is_kept_though_somebody_has_deleted_all_shards(bench: Bench, broker: Broker) -> None:
    app, kind = sharded(bench), bench.kind(shard_by="text")
    record(app, kind)
    await declare(app)
    for part in app.topology.parts(app.queues[0]):
        await broker.delete_queue(part)

    handle = await app.enqueue(kind())

    # Routed nowhere, delayed ones would hold up all others: see `amqpjobs.topology`.
    ids = list[object]()  # other tests may have left theirs there
    while handle.job_id not in ids:
        ids += [letter.headers.get("amqpjobs-id") for letter in await broker.take(app.topology.unroutable, 1)]


async def test_a_service_in_one_piece_and_a_sharded_one_get_a_copy_each(bench: Bench, broker: Broker) -> None:
    kind = bench.kind(shard_by="text")
    whole, split = bench.app(), sharded(bench)
    for app in (whole, split):
        record(app, kind)
        await declare(app)

    await whole.enqueue(kind(text=TEXTS[3]))

    await broker.await_count(whole.topology.work_queue(whole.name), 1)
    await broker.await_count(shard_of(split, TEXTS[3]), 1)


# What workers do


async def test_jobs_of_a_key_run_one_after_another_and_others_beside_them(bench: Bench) -> None:
    kind, app = bench.kind(shard_by="text"), sharded(bench)
    busy, most, together = dict[str, int](), dict[str, int](), 0

    async def behave(job: Note, context: JobContext[Any]) -> None:
        nonlocal together
        busy[job.text] = busy.get(job.text, 0) + 1
        most[job.text] = max(most.get(job.text, 0), busy[job.text])
        together = max(together, sum(busy.values()))
        await asyncio.sleep(0.002)
        busy[job.text] -= 1

    ran = record(app, kind, behave)
    async with Worker(app, concurrency=10):
        await app.enqueue_many(kind(text=str(n % 7), n=n) for n in range(140))
        await ran.until(140)

    assert set(most.values()) == {1}
    assert together > 1
    assert_in_order(ran)


async def test_a_retry_comes_to_its_shard_again_and_is_overtaken_by_then(bench: Bench) -> None:
    kind, app = bench.kind(shard_by="text"), sharded(bench)

    async def behave(job: Note, context: JobContext[Any]) -> None:
        if job.n == 0 and context.attempt == 1:
            raise Retry(delay=0.1)

    ran = record(app, kind, behave)
    async with Worker(app):
        for n in range(2):
            await app.enqueue(kind(text=TEXTS[2], n=n))
        await ran.until(3)

    assert [(run.n, run.attempt) for run in ran] == [(0, 1), (1, 1), (0, 2)]
    assert [run.envelope.shard_key for run in ran] == 3 * [key_of(TEXTS[2])]


async def test_a_dead_letter_that_is_requeued_comes_to_its_shard(bench: Bench, broker: Broker) -> None:
    kind, app = bench.kind(shard_by="text"), sharded(bench)

    async def behave(job: Note, context: JobContext[Any]) -> None:
        raise ValueError("as asked")

    record(app, kind, behave, max_attempts=1)
    async with Worker(app):
        await app.enqueue_many(kind(text=text) for text in TEXTS.values())
        await broker.await_count(app.topology.dead_queue(app.name), SHARDS)

    async with DeadLetters(app) as letters:
        await letters.requeue(dead_of(app.name))

    for text in TEXTS.values():
        (letter,) = await broker.take(shard_of(app, text), 1)
        assert key_of(text) == letter.number("amqpjobs-shard-key")


async def test_a_worker_gets_all_shards_and_gives_up_what_is_too_much_when_another_comes(bench: Bench) -> None:
    kind, name = bench.kind(shard_by="text"), bench.unique()
    apps = [sharded(bench, name=name) for _ in range(2)]
    ran = [record(app, kind) for app in apps]
    numbers = count()

    async def where() -> list[set[int]]:
        """From which shards new jobs came to each worker."""
        before = [len(each) for each in ran]
        await apps[0].enqueue_many(kind(text=text, n=next(numbers)) for text in TEXTS.values() for _ in range(10))

        async def have_run() -> bool:
            return sum(map(len, ran)) == sum(before) + 10 * SHARDS

        await eventually(have_run)
        return [
            {key_of(each[n].text) % SHARDS for n in range(start, len(each))}
            for each, start in zip(ran, before, strict=True)
        ]

    async def are_spread() -> bool:
        one, other = await where()
        return len(one) == len(other) == 2 and not one & other

    async with Worker(apps[0]):
        assert await where() == [{0, 1, 2, 3}, set()]
        async with Worker(apps[1]):
            await eventually(are_spread)
        assert await where() == [{0, 1, 2, 3}, set()]

    assert_in_order(sorted([*ran[0], *ran[1]], key=lambda run: run.at))


async def test_a_worker_that_stops_hands_its_jobs_on_in_their_order(bench: Bench) -> None:
    kind, name = bench.kind(shard_by="text"), bench.unique()
    apps = [sharded(bench, name=name, shards=1) for _ in range(2)]
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def behave(job: Note, context: JobContext[Any]) -> None:
        begun.set()
        await go_on.wait()

    ran = [record(apps[0], kind, behave), record(apps[1], kind)]
    async with Worker(apps[0], concurrency=5) as leaving, Worker(apps[1], concurrency=1):
        await apps[1].enqueue_many(kind(text="a", n=n) for n in range(30))
        await begun.wait()
        stopping = asyncio.create_task(leaving.drain())
        await eventually(lambda: _is(leaving.troubles() == ["draining"]))
        assert len(ran[1]) == 0  # while the first one runs, no other begins
        go_on.set()
        await ran[1].until(29)
        await stopping

    assert [run.n for run in ran[0]] == [0]
    assert [run.n for run in ran[1]] == list(range(1, 30))


async def test_fewer_shards_leave_nothing_behind_and_more_take_their_part(bench: Bench) -> None:
    kind, name = bench.kind(shard_by="text"), bench.unique()
    large, small = sharded(bench, name=name, shards=8), sharded(bench, name=name, shards=2)
    record(large, kind)
    ran = record(small, kind)
    await declare(large)
    texts = [str(n) for n in range(40)]
    await large.enqueue_many(kind(text=text) for text in texts)

    async with Worker(small):
        await ran.until(40)
        await small.enqueue_many(kind(text=text) for text in texts)
        await ran.until(80)
    await declare(large)
    await large.enqueue_many(kind(text=text) for text in texts)

    assert {run.text for run in ran} == set(texts)
    last = large.topology.shard(name, 7)
    await bench.broker.await_count(last, sum(key_of(text) % 8 == 7 for text in texts))


async def test_a_queue_in_one_piece_cannot_become_a_sharded_one_or_the_other_way(bench: Bench) -> None:
    name = bench.unique()
    whole, split = bench.app(name), sharded(bench, name=name)

    await declare(whole)
    with pytest.raises(TopologyMismatchError, match="exists in one piece, and we declare it sharded"):
        await declare(split)
    await bench.broker.delete_queue(whole.topology.work_queue(name))
    await declare(split)
    with pytest.raises(TopologyMismatchError, match="exists sharded, and we declare it in one piece"):
        await declare(whole)


async def _is(condition: bool) -> bool:
    return condition


def assert_in_order(ran: Iterable[Ran]) -> None:
    """Of each key the numbers go up."""
    by_key = dict[str, list[int]]()
    for run in ran:
        by_key.setdefault(run.text, []).append(run.n)
    for text, numbers in by_key.items():
        assert numbers == sorted(numbers), f"{text}: {numbers}"
