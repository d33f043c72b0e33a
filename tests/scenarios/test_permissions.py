"""The permissions that are printed for a role suffice, and with one less something fails in time and in words."""

import asyncio
import base64
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest

from amqpjobs import AccessRefusedError, App, Beat, EnqueueError, JobContext, UnroutableError, Worker
from amqpjobs.amqp.connection import open_session
from amqpjobs.amqp.declare import Declarer
from amqpjobs.codec import dumps, milliseconds
from amqpjobs.deadletters import PARKED, UNROUTABLE, DeadLetters, Filter, Place, dead_of
from amqpjobs.events import (
    BeatDeposed,
    BeatLeading,
    ConnectionLost,
    JobEnded,
    RunNotTold,
    SettleFailed,
    TickDropped,
    TickFailed,
    TickPublished,
)
from amqpjobs.handle import EnqueueOptions
from amqpjobs.outcome import Dead
from amqpjobs.permissions import (
    Permissions,
    beat_permissions,
    deployer_permissions,
    observer_permissions,
    operator_permissions,
    pattern,
    producer_permissions,
    scheduler_permissions,
    worker_permissions,
)
from amqpjobs.topology import Queue, Topology
from tests.conftest import MakeNode
from tests.scenarios.conftest import BenchOn, control
from tests.support.apps import NAMESPACE, Bench, Note, Ran, Seen, record, watch
from tests.support.broker import PATIENCE, Broker, eventually
from tests.support.rabbitmq import Node
from tests.support.terminal import Shell
from tests.support.ticks import Each

#: A refusal waits for nothing but the machine.
IN_TIME = PATIENCE
#: Seconds for which one of an operator's jobs has to wait yet, longer than the test takes.
LATER = 3_600.0

#: The service as an operator and a deployer have it.
SERVICE = """
from amqpjobs import App, Job

class Order(Job[None], kind="{name}.kind"):
    n: int = 0

class Foreign(Job[None], kind="{name}.foreign", exchange="{name}-exchange"):
    n: int = 0

app = App("{name}")

@app.handler(Order)
async def order(job: Order) -> None: ...

@app.handler(Foreign)
async def foreign(job: Foreign) -> None: ...
"""

Failing = Callable[[DeadLetters], Awaitable[str]]


@dataclass
class Service:
    """An app as one user sees it, its kinds, and what ran."""

    app: App[None]
    kind_name: str
    kind: type[Note]
    foreign: type[Note]
    ran: Seen[Ran]


def service(bench: Bench, node: Node, user: str, name: str, *, declare: bool, namespace: str) -> Service:
    """The same service for each user; its name says which."""
    url = url_of(node, user) if user else node.url
    app = bench.app(name, settings=bench.settings(url=url, declare=declare, namespace=namespace))
    kind, foreign = bench.kind(f"{name}.kind"), bench.kind(f"{name}.foreign", exchange=f"{name}-exchange")

    async def behave(job: Note, context: JobContext[None]) -> None:
        if job.text == "fail" or (job.text == "retry" and context.attempt == 1):
            raise ValueError("as asked")
        if job.text == "enqueue":
            await context.enqueue(kind(n=job.n + 1))

    ran = record(app, kind, behave, max_attempts=2)
    record(app, foreign, behave)
    return Service(app, f"{name}.kind", kind, foreign, ran)


async def works(worker: Service, producer: Service, client: Broker) -> None:
    """All that producers and workers do: each way to enqueue, a retry, a dead letter, a parked job."""
    ended, kind, foreign = watch(worker.app.events, JobEnded), producer.kind, producer.foreign
    topology = worker.app.topology
    async with Worker(worker.app):
        await producer.app.enqueue(kind(n=1))
        await producer.app.enqueue(kind(n=2, text="retry"), delay=0.1)
        await producer.app.enqueue(kind(n=3), queue=worker.app.name)
        await producer.app.enqueue(kind(n=4, text="enqueue"))
        await producer.app.enqueue(foreign(n=6), delay=0.1)
        await producer.app.enqueue(foreign(n=7))
        await producer.app.enqueue(kind(n=8, text="fail"))
        await ended.until(10)  # two runs of 2 and of 8, and what 4 enqueued
    await client.publish(topology.queues, topology.parked, b'{"n":9}', kind=worker.kind_name)
    async with Worker(worker.app):
        await ended.until(11)
    await producer.app.close()

    assert sum(isinstance(each.outcome, Dead) for each in ended) == 1
    assert worker.ran[-1].n == 9


async def make_users(node: Node, users: Mapping[str, Permissions]) -> None:
    """All at once: each call of rabbitmqctl takes a second."""
    salt = b"salt"
    digest = base64.b64encode(salt + hashlib.sha256(salt + b"secret").digest()).decode()
    made = {
        "users": [
            {
                "name": user,
                "password_hash": digest,
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": "",
            }
            for user in users
        ],
        "permissions": [
            {
                "user": user,
                "vhost": "/",
                "configure": pattern(each.configure),
                "write": pattern(each.write),
                "read": pattern(each.read),
            }
            for user, each in users.items()
        ],
    }
    file = node.folder / "users.json"
    file.write_bytes(dumps(made))
    await control(node, "import_definitions", str(file))


def without(whole: Permissions, what: str, name: str) -> Permissions:
    """One name less in one of the three."""
    names: frozenset[str] = getattr(whole, what)
    assert name in names
    return replace(whole, **{what: names - {name}})


async def declare_all(app: App[None]) -> None:
    session = await open_session(app.settings.urls[0], app.settings, "test")
    try:
        await Declarer(app.topology, app.events).prepare(session, app.plan(), declares=True)
    finally:
        await session.close()


async def test_with_declaring_off_what_is_printed_suffices_and_one_less_does_not(
    make_node: MakeNode, bench_on: BenchOn, unique: Callable[[], str]
) -> None:
    node, name = await asyncio.to_thread(make_node), unique()
    async with bench_on(node) as bench:

        def as_user(user: str) -> Service:
            return service(bench, node, user, name, declare=False, namespace=NAMESPACE)

        whole = as_user("")
        await declare_all(whole.app)
        topology, exchange = whole.app.topology, f"{name}-exchange"
        work, dead, marker = topology.work_queue(name), topology.dead_queue(name), topology.marker.name
        producer = producer_permissions(topology, ["", exchange], declares=False)
        worker = worker_permissions(topology, whole.app.queues, whole.app.plan(), declares=False)
        enqueues: dict[str, EnqueueOptions] = {
            topology.jobs: {},
            topology.queues: {"queue": name},
            topology.level(0): {"delay": 0.1},
        }
        starts = [("read", work), ("write", marker), ("write", dead)]
        users = {"producer": producer, "worker": worker}
        users |= {f"producer without {place}": without(producer, "write", place) for place in [*enqueues, marker]}
        users |= {f"worker without {place}": without(worker, "write", place) for place in enqueues}
        users |= {f"worker without {what} on {place}": without(worker, what, place) for what, place in starts}
        await make_users(node, users)

        await works(as_user("worker"), as_user("producer"), bench.broker)
        for place, options in enqueues.items():
            await refuses(as_user(f"producer without {place}"), place, options)
            one = as_user(f"worker without {place}")
            async with Worker(one.app):
                await refuses(one, place, options)
        if is_at_least(node, 4, 2, 6):
            await refuses(as_user(f"producer without {marker}"), marker, {}, "some permission on a name")
        for what, place in starts:
            # Before 4.2.6 anybody may see what there is.
            if what == "read" or is_at_least(node, 4, 2, 6):
                await refuses_to_start(as_user(f"worker without {what} on {place}"), place)


async def test_a_worker_of_a_sharded_queue_needs_what_is_printed_and_one_less_is_told(
    make_node: MakeNode, bench_on: BenchOn, unique: Callable[[], str]
) -> None:
    node, name = await asyncio.to_thread(make_node), unique()
    async with bench_on(node) as bench:
        kind = bench.kind(shard_by="n")

        def as_user(user: str, *, declare: bool) -> tuple[App[None], Seen[Ran]]:
            settings = bench.settings(url=url_of(node, user), declare=declare, namespace=NAMESPACE)
            app = bench.app(name, queues=[Queue(name, shards=2)], settings=settings)
            return app, record(app, kind)

        app, _ = as_user("", declare=True)
        topology = app.topology
        declaring = worker_permissions(topology, app.queues, app.plan(), declares=True)
        working = worker_permissions(topology, app.queues, app.plan(), declares=False)
        parts = [*topology.parts(app.queues[0]), topology.crew(name)]
        users = {f"without {part}": without(working, "read", part) for part in parts}
        exchange = topology.sharded(name)
        users |= {f"without {exchange}": without(declaring, "write", exchange)}
        await make_users(node, {"declaring": declaring, "working": working, **users})

        for user in ("declaring", "working"):  # the first makes what the other needs
            app, ran = as_user(user, declare=user == "declaring")
            async with Worker(app):
                await app.enqueue_many([kind(n=n) for n in range(8)], delay=0.1)
                await app.enqueue_many([kind(n=n) for n in range(8)])
                await ran.until(16)
        for part in (*parts, exchange):
            app, _ = as_user(f"without {part}", declare=part == exchange)
            with pytest.raises(AccessRefusedError, match=part):
                async with Worker(app):
                    pass


async def test_a_worker_that_may_not_write_to_the_levels_tells_that_retries_fail(
    make_node: MakeNode, bench_on: BenchOn, unique: Callable[[], str]
) -> None:
    node, name = await asyncio.to_thread(make_node), unique()
    async with bench_on(node) as bench:
        whole = service(bench, node, "", name, declare=True, namespace=NAMESPACE)
        await declare_all(whole.app)
        level = whole.app.topology.level(0)
        worker = worker_permissions(whole.app.topology, whole.app.queues, whole.app.plan(), declares=False)
        await make_users(node, {"worker": without(worker, "write", level)})
        one = service(bench, node, "worker", name, declare=False, namespace=NAMESPACE)
        failed = watch(one.app.events, SettleFailed)

        async with Worker(one.app):
            await whole.app.enqueue(whole.kind(n=1, text="retry"))
            (event,) = await failed.until(1, within=IN_TIME)
            await make_users(node, {"worker": worker})
            await one.ran.until(2)
        await whole.app.close()

        assert level in str(event.error)
        assert "Give the user write on that exchange" in str(event.error)


async def test_a_beat_needs_what_is_printed_and_one_less_is_told(
    make_node: MakeNode, bench_on: BenchOn, unique: Callable[[], str], tmp_path: Path
) -> None:
    node, name = await asyncio.to_thread(make_node), unique()
    async with bench_on(node) as bench:

        def as_user(user: str, *, declare: bool = False) -> App[None]:
            one = service(bench, node, user, name, declare=declare, namespace=NAMESPACE)
            one.app.schedule(Each(0.2), job=one.kind(), name="tick")
            one.app.schedule(Each(0.2), job=one.kind(), name="alone", overlap="skip")
            return one.app

        topology = as_user("").topology
        lease, register, runs = topology.beat_lease(name), topology.beat_register(name), topology.beat_runs(name)
        whole = beat_permissions(topology, name, [""], declares=False)
        heard = topology.beat_control(name)
        lost = [
            *(("read", queue) for queue in (lease, register, heard, runs)),
            *(("write", exchange) for exchange in (topology.beats, topology.jobs)),
        ]
        users = {f"without {what} on {place}": without(whole, what, place) for what, place in lost}
        first = beat_permissions(topology, name, [""], declares=True)
        await make_users(node, users | {"beat": whole, "first": first})
        desk = shell(tmp_path, node, "beat", name)

        printed = await typed(desk, "topology permissions beat service --no-declare --json")
        await leads(as_user("first", declare=True))  # on a vhost where nothing is there yet
        await declare_all(as_user(""))
        published = await leads(as_user("beat"))
        told = {place: await told_to_a_beat(as_user(f"without {what} on {place}"), place) for what, place in lost}

    assert [json.loads(printed)[0][what] for what in ("configure", "write", "read")] == [
        pattern(each) for each in (whole.configure, whole.write, whole.read)
    ]
    assert published
    for place, text in told.items():
        assert f"'{place}'" in text, text


async def test_a_worker_looks_for_the_other_copy_of_a_tick_as_is_printed_and_one_less_is_told(
    make_node: MakeNode, bench_on: BenchOn, unique: Callable[[], str]
) -> None:
    node, name = await asyncio.to_thread(make_node), unique()
    async with bench_on(node) as bench:

        def as_user(user: str) -> Service:
            one = service(bench, node, user, name, declare=False, namespace=NAMESPACE)
            one.app.schedule(Each(3_600), job=one.kind(), name="tick")
            return one

        app = as_user("").app
        await declare_all(app)
        topology, runs = app.topology, app.topology.beat_runs(name)
        worker = worker_permissions(topology, app.queues, app.work_plan(), declares=False, beats=[name])
        await make_users(node, {"worker": worker, "blind": without(worker, "read", runs)})

        for user in ("worker", "blind"):
            one = as_user(user)
            dropped, untold = watch(one.app.events, TickDropped), watch(one.app.events, RunNotTold)
            async with Worker(one.app):
                for copy in ("one", "two"):
                    tick = {"amqpjobs-id": f"tick of {user}", "amqpjobs-copy": copy, "amqpjobs-doubt-since": 1}
                    await bench.broker.publish(
                        topology.queues, topology.work_queue(name), kind=one.kind_name, headers=tick, app_id=name
                    )
                await (dropped.until(1) if user == "worker" else one.ran.until(2))
            assert (len(one.ran), len(dropped), len(untold)) == ((1, 1, 0) if user == "worker" else (2, 0, 2))

        assert f"'{runs}'" in str(untold[0].error)


async def test_a_scheduler_needs_what_is_printed_and_one_less_is_told(
    make_node: MakeNode, bench_on: BenchOn, unique: Callable[[], str], tmp_path: Path
) -> None:
    node, name = await asyncio.to_thread(make_node), unique()
    async with bench_on(node) as bench:

        def as_user(user: str, *, declare: bool = False) -> App[None]:
            one = service(bench, node, user, name, declare=declare, namespace=NAMESPACE)
            one.app.schedule(Each(60), job=one.kind(), name="tick")
            return one.app

        owner = as_user("", declare=True)
        topology = owner.topology
        whole = scheduler_permissions(topology, name, declares=False)
        lost = [("read", topology.beat_register(name)), ("write", topology.beats)]
        users = {f"without {what} on {place}": without(whole, what, place) for what, place in lost}
        first = scheduler_permissions(topology, name, declares=True)
        await make_users(node, users | {"scheduler": whole, "first": first})
        desk = shell(tmp_path, node, "scheduler", name)
        printed = await typed(desk, "topology permissions scheduler service --no-declare --json")

        recorded = await changes(as_user("first", declare=True))  # on a vhost where nothing is there yet
        await declare_all(owner)
        async with Beat(owner):
            done = [await changes(as_user("scheduler", declare=each), deadline=PATIENCE) for each in (False, True)]
            told = {place: await told_to_a_scheduler(as_user(f"without {what} on {place}")) for what, place in lost}

    assert [json.loads(printed)[0][what] for what in ("configure", "write", "read")] == [
        pattern(each) for each in (whole.configure, whole.write, whole.read)
    ]
    assert (recorded, done) == (False, [True, True])
    for place, text in told.items():
        assert f"'{place}'" in text, text


async def changes(app: App[None], *, deadline: float = 10.0) -> bool:
    """Whether a beat did it in time; to look works in any case."""
    async with app:
        await app.schedules.overview()
        return (await app.schedules.pause("tick", deadline=deadline)).is_done


async def told_to_a_scheduler(app: App[None]) -> str:
    with pytest.raises((AccessRefusedError, EnqueueError)) as caught:
        async with app:
            await app.schedules.pause("tick")
    return str(caught.value)


async def leads(app: App[None]) -> Seen[TickPublished]:
    """Lead, and publish ticks if there is a queue for them."""
    leading, published = watch(app.events, BeatLeading), watch(app.events, TickPublished)
    failed = watch(app.events, TickFailed)
    async with Beat(app):
        await leading.until(1)
        if not app.settings.declare:
            await published.until(2)
        else:
            (event, *_) = await failed.until(1)
            assert isinstance(event.error, UnroutableError)
    return published


async def told_to_a_beat(app: App[None], place: str) -> str:
    """Why it does not start, does not lead, or does not publish; a busy machine may tell it more."""
    deposed, failed, lost = (
        watch(app.events, BeatDeposed),
        watch(app.events, TickFailed),
        watch(app.events, ConnectionLost),
    )

    async def is_told() -> bool:
        return f"'{place}'" in str([*deposed, *failed, *lost])

    try:
        async with asyncio.timeout(2 * IN_TIME), Beat(app):
            await eventually(is_told)
    except AccessRefusedError as error:
        return str(error)
    return str([*deposed, *failed, *lost])


@pytest.mark.slow
async def test_with_declaring_on_what_is_printed_suffices_on_an_empty_vhost_and_one_less_does_not(
    make_node: MakeNode, bench_on: BenchOn, unique: Callable[[], str]
) -> None:
    node, name = await asyncio.to_thread(make_node), unique()
    exchange, users, starts = f"{name}-exchange", dict[str, Permissions](), list[tuple[Service, str]]()
    async with bench_on(node) as bench:

        def as_user(user: str, namespace: str) -> Service:
            return service(bench, node, user, name, declare=True, namespace=namespace)

        def worker_in(namespace: str) -> Permissions:
            app = as_user("", namespace).app
            return worker_permissions(app.topology, app.queues, app.plan(), declares=True)

        users["producer"] = producer_permissions(Topology("full"), ["", exchange], declares=True)
        users["worker"] = worker_in("full")
        for number, (what, place) in enumerate(needed_to_declare(name, exchange)):
            # A namespace for each, since what is there is not declared again.
            namespace, user = f"n{number}", f"worker without {what} {number}"
            spelled = place.replace("full", namespace, 1)
            users[user] = without(worker_in(namespace), what, spelled)
            starts.append((as_user(user, namespace), spelled))
        await make_users(node, users)

        producer = as_user("producer", "full")
        with pytest.raises(UnroutableError):  # it may declare all that is shared
            await producer.app.enqueue(producer.kind())
        await works(as_user("worker", "full"), producer, bench.broker)
        for one, place in starts:
            await refuses_to_start(one, place)
            await bench.broker.delete_exchange(exchange)


def needed_to_declare(name: str, exchange: str) -> list[tuple[str, str]]:
    """One of each sort, in the namespace `full`."""
    topology = Topology("full")
    work, dead = topology.work_queue(name), topology.dead_queue(name)
    configure = [topology.jobs, topology.level(3), topology.marker.name, work, dead, exchange]
    write = [topology.unroutable, topology.level(2), topology.due, topology.queues, topology.parked, work, dead]
    read = [topology.due, topology.level(4), topology.queues, topology.jobs, work, exchange]
    named = {"configure": configure, "write": write, "read": read}
    return [(what, place) for what, places in named.items() for place in places]


async def test_an_operator_needs_what_is_printed_for_every_command_and_one_less_is_told(
    make_node: MakeNode, bench_on: BenchOn, unique: Callable[[], str], tmp_path: Path
) -> None:
    node, name = await asyncio.to_thread(make_node), unique()
    async with bench_on(node) as bench:
        app = service(bench, node, "", name, declare=True, namespace=NAMESPACE).app
        await declare_all(app)
        topology, exchange = app.topology, f"{name}-exchange"
        whole = operator_permissions(topology, app.queues, ["", exchange])
        users = {"operator": whole}
        for what, place in (("read", topology.dead_queue(name)), ("write", topology.queues)):
            users[f"without {what}"] = without(whole, what, place)
        lost = lost_by_an_operator(topology, name, exchange)
        users |= {f"without {what} on {place}": without(whole, what, place) for what, place, _ in lost}
        await make_users(node, users)
        desk = shell(tmp_path, node, "operator", name)

        printed = await typed(desk, "topology permissions operator service --json")
        assert [json.loads(printed)[0][what] for what in ("configure", "write", "read")] == [
            pattern(each) for each in (whole.configure, whole.write, whole.read)
        ]
        await every_dead_command_works(desk, bench.broker, topology, name)
        await bury(bench.broker, topology, name)
        for what, place, fails in lost:
            one = service(bench, node, f"without {what} on {place}", name, declare=False, namespace=NAMESPACE)
            async with DeadLetters(one.app) as letters:
                assert_tells(await fails(letters), what, place)
        blind = await typed(shell(tmp_path, node, "without read", name), "dead ls service", code=4)
        dumb = await typed(shell(tmp_path, node, "without write", name), "dead requeue service", code=4)

    assert f"'{topology.dead_queue(name)}'" in blind
    assert "0 requeued of 2 looked at, before this:" in dumb
    assert "perhaps in both places" not in dumb
    assert "Give the user write on that exchange." in dumb


async def test_an_observer_sees_all_and_changes_nothing_and_one_less_is_told(
    make_node: MakeNode, bench_on: BenchOn, unique: Callable[[], str], tmp_path: Path
) -> None:
    node, name = await asyncio.to_thread(make_node), unique()
    async with bench_on(node) as bench:
        app = service(bench, node, "", name, declare=True, namespace=NAMESPACE).app
        await declare_all(app)
        topology, dead = app.topology, app.topology.dead_queue(name)
        whole = observer_permissions(topology, app.queues)
        places = {"service": dead, "--place unroutable": topology.unroutable, "--place parked": topology.parked}
        users = {f"blind to {place}": without(whole, "read", place) for place in places.values()}
        await make_users(node, users | {"observer": whole})
        await bury(bench.broker, topology, name)
        desk = shell(tmp_path, node, "observer", name)

        printed = await typed(desk, "topology permissions observer service --json")
        for where, place in places.items():
            assert "2 of 2" in await typed(desk, f"dead ls {where}")
            assert "2 exported of 2" in await typed(desk, f"dead export {where} seen.jsonl --force")
            blind = await typed(shell(tmp_path, node, f"blind to {place}", name), f"dead ls {where}", code=4)
            assert f"'{place}'" in blind
        assert "as asked" in await typed(desk, "dead show service dead-1")
        refused = await typed(desk, "dead requeue service", code=4)
        await bench.broker.await_count(dead, 2)

    found = json.loads(printed)[0]
    assert (found["configure"], found["write"], found["read"]) == ("^$", "^$", pattern(whole.read))
    assert "0 requeued of 2 looked at, before this:" in refused


async def every_dead_command_works(desk: Shell, client: Broker, topology: Topology, name: str) -> None:
    """List, show, edit, export, delete and import, then requeue from each place, by each way."""
    await bury(client, topology, name)
    for where in ("service", "--place unroutable", "--place parked"):
        assert "2 of 2" in await typed(desk, f"dead ls {where}")
    assert "as asked" in await typed(desk, "dead show service dead-1")
    assert "and left where it was" in await typed(desk, "dead edit service dead-1 --keep", EDITOR="sed -i s/1/7/")
    assert "and requeued" in await typed(desk, "dead edit service dead-2", EDITOR="sed -i s/2/8/")
    for number, where in enumerate(("service", "--place unroutable", "--place parked")):
        count = 1 if number == 0 else 2
        await typed(desk, f"dead export {where} {number}.jsonl")
        assert f"{count} deleted of" in await typed(desk, f"dead purge {where} --all --yes")
        assert f"{count} imported of" in await typed(desk, f"dead import {number}.jsonl")
        assert f"{count} requeued of" in await typed(desk, f"dead requeue {where}")
    await client.await_count(topology.work_queue(name), 5)
    await client.await_count(topology.parked, 0)


async def bury(client: Broker, topology: Topology, name: str) -> None:
    """Two letters in each place: one for the service's own exchange, and one for that of its foreign kind.

    The first of the parked ones has to wait yet.
    """
    dead, ours, foreign = topology.dead_queue(name), f"{name}.kind", f"{name}.foreign"
    for n in (1, 2):
        told = {"amqpjobs-id": f"dead-{n}", "amqpjobs-dead-reason": "not_retryable", "amqpjobs-dead-error": "as asked"}
        await client.publish(topology.queues, dead, b'{"n":%d}' % n, kind=ours, headers=told)
    later = {"amqpjobs-run-at": milliseconds(datetime.now(UTC) + timedelta(seconds=LATER))}
    elsewhere = {"amqpjobs-exchange": f"{name}-exchange"}
    await client.publish(topology.unroutable, "", kind=ours, headers={})
    await client.publish(topology.unroutable, "", kind=foreign, headers=elsewhere)
    await client.publish(topology.queues, topology.parked, kind=ours, headers=later)
    await client.publish(topology.queues, topology.parked, kind=foreign, headers=elsewhere)


def lost_by_an_operator(topology: Topology, name: str, exchange: str) -> list[tuple[str, str, Failing]]:
    """What is missing, and what then fails. What is refused stays where it was, for the next."""
    dead, level = dead_of(name), topology.delayed(LATER).exchange

    def looking(place: Place) -> Failing:
        return lambda letters: refused(letters.find(place))

    def requeueing(place: Place, kind: str) -> Failing:
        return lambda letters: refused(letters.requeue(place, Filter(kind=f"{name}.{kind}")))

    async def importing(letters: DeadLetters) -> str:
        lines = list[str]()
        await letters.export(UNROUTABLE, lines.append, Filter(kind=f"{name}.kind"))
        return await refused(letters.import_lines(lines * 2))  # the second copy is not there already

    return [
        ("read", topology.dead_queue(name), looking(dead)),
        ("read", topology.unroutable, looking(UNROUTABLE)),
        ("read", topology.parked, looking(PARKED)),
        ("write", topology.queues, requeueing(dead, "kind")),
        ("write", topology.jobs, requeueing(UNROUTABLE, "kind")),
        ("write", exchange, requeueing(UNROUTABLE, "foreign")),
        ("write", level, requeueing(PARKED, "kind")),
        ("write", topology.unroutable, importing),
    ]


async def refused(doing: Awaitable[object]) -> str:
    with pytest.raises(AccessRefusedError) as caught:
        await doing
    return str(caught.value)


def assert_tells(text: str, what: str, place: str) -> None:
    assert f"'{place}'" in text
    if what == "write":
        assert "Give the user write on that exchange." in text


async def test_a_deployer_needs_what_is_printed_and_one_less_is_told(
    make_node: MakeNode, bench_on: BenchOn, unique: Callable[[], str], tmp_path: Path
) -> None:
    node, name = await asyncio.to_thread(make_node), unique()
    users, lost = dict[str, Permissions](), list[tuple[Shell, str]]()
    async with bench_on(node) as bench:

        def deployer_in(namespace: str) -> Permissions:
            app = service(bench, node, "", name, declare=True, namespace=namespace).app
            return deployer_permissions(app.topology, app.plan())

        topology = Topology("full")
        missing = [("configure", topology.dead_queue(name)), ("write", topology.due), ("read", topology.jobs)]
        users["deployer"] = deployer_in("full")
        for number, (what, place) in enumerate(missing):
            namespace, user = f"n{number}", f"without {what}"
            spelled = place.replace("full", namespace, 1)
            users[user] = without(deployer_in(namespace), what, spelled)
            lost.append((shell(tmp_path, node, user, name, namespace=namespace), spelled))
        await make_users(node, users)
        desk = shell(tmp_path, node, "deployer", name, namespace="full")

        printed = await typed(desk, "topology permissions deployer service --json")
        refused = await typed(desk, "topology permissions deployer service --declare", code=2)
        await typed(desk, "topology check service", code=1)
        await typed(desk, "topology apply service")
        fits = await typed(desk, "topology check service")
        await typed(desk, "topology apply service")
        told = [(place, await typed(one, "topology apply service", code=4)) for one, place in lost]

    assert json.loads(printed)[0]["configure"] == pattern(users["deployer"].configure)
    assert "leave out --[no-]declare" in refused
    assert "all exchanges and queues are there and fit" in fits
    for place, text in told:
        assert f"'{place}'" in text, text
        assert "amqpjobs topology permissions" in text


def shell(folder: Path, node: Node, user: str, name: str, *, namespace: str = NAMESPACE) -> Shell:
    """Somebody's shell beside the service."""
    (folder / "service.py").write_text(SERVICE.replace("{name}", name))
    url = url_of(node, user)
    return Shell(folder, AMQPJOBS_URL=url, AMQPJOBS_NAMESPACE=namespace, COLUMNS="1000")


async def typed(shell: Shell, command: str, *, code: int = 0, **environment: str) -> str:
    """The output of a command of ours that ends with this code."""
    ended, text = await asyncio.to_thread(lambda: shell.run(f"amqpjobs {command}", **environment))
    assert ended == code, f"{command}: {ended}\n{text}"
    return text


def url_of(node: Node, user: str) -> str:
    return node.url.replace("guest:guest", f"{quote(user)}:secret")


async def refuses(one: Service, place: str, options: EnqueueOptions, wanted: str = "write on") -> None:
    """Enqueue fails in time, and the error names the place and what is wanted there."""
    with pytest.raises(EnqueueError) as caught:
        async with asyncio.timeout(IN_TIME):
            await one.app.enqueue(one.kind(), **options)
    await one.app.close()

    assert f"'{place}'" in str(caught.value)
    assert wanted in str(caught.value)


async def refuses_to_start(one: Service, place: str) -> None:
    with pytest.raises(AccessRefusedError) as caught:
        async with asyncio.timeout(IN_TIME), Worker(one.app):
            pass

    assert f"'{place}'" in str(caught.value)
    assert "refused a permission" in str(caught.value)
    assert "amqpjobs topology permissions" in str(caught.value)


def is_at_least(node: Node, *version: int) -> bool:
    return tuple(int(part) for part in node.version.split(".")) >= version
