"""Networks fail in more ways than one, and a worker consumes again by itself after each of them."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count

import psutil
import pytest

from amqpjobs import App, BrokerError, EnqueueError, EnqueueTimeoutError, JobContext, Retry, Worker
from amqpjobs.amqp.connection import CLIENT_ERRORS
from amqpjobs.amqp.consumer import Consumer
from amqpjobs.amqp.declare import Declarer
from amqpjobs.amqp.watchdog import Watchdog
from amqpjobs.events import ConnectionLost, ConnectionOpened, JobEnded
from amqpjobs.worker.suspicion import LONGEST_PAUSE
from tests.conftest import announce
from tests.scenarios.conftest import until_all_ran, until_enqueued
from tests.support.apps import Bench, Note, Ran, Seen, dead_queue, record, watch, work_queue
from tests.support.broker import PATIENCE, eventually, plain_client
from tests.support.faults import FaultyProxy, Way
from tests.support.length import is_full

#: What one look of the watchdog says.
OPEN_CHANNEL, DECLARE = "method 20.10", "queue.declare"

#: Far more than the client library lets wait for room on a connection.
AT_ONCE = 200

#: Jobs at once, and seconds each takes.
PREFETCH, TAKES = (200, 10.0) if is_full() else (40, 1.0)
#: Seconds after a cut by which a worker is at its old rate.
BACK_WITHIN = 15.0 if is_full() else 5.0

#: Seconds of faults by chance.
STORM = 120.0 if is_full() else 8.0
#: Jobs that must have been confirmed in a storm to tell anything; on a busy machine it lasts until then.
ENOUGH = 20


class Faulty:
    """A bench, and a proxy between its workers and the broker."""

    def __init__(self, bench: Bench, proxy: FaultyProxy) -> None:
        self.bench = bench
        self.proxy = proxy

    def worked(self, *, heartbeat: int = 10) -> App[None]:
        """An app that works through the proxy. A machine that stands still for two heartbeats loses its connections."""
        return self.bench.app(settings=self.bench.settings(url=self.proxy.url, heartbeat=heartbeat, reconnect_cap=1))

    async def until_lost(self, lost: Seen[ConnectionLost], words: str) -> None:
        """Until a connection was lost for this reason."""

        async def is_so() -> bool:
            return any(words in str(each.error) for each in lost)

        await eventually(is_so)


@pytest.fixture
async def faulty(url: str, unique: Callable[[], str]) -> AsyncGenerator[Faulty]:
    async with faulty_bench(url, unique) as made:
        yield made


@asynccontextmanager
async def faulty_bench(url: str, unique: Callable[[], str], seed: int | None = None) -> AsyncGenerator[Faulty]:
    async with plain_client(url) as client, FaultyProxy(url, seed=seed).running() as proxy:
        bench = Bench(url, unique, client)
        yield Faulty(bench, proxy)
        proxy.resume()
        await bench.close()


@pytest.fixture
def eager_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks once a second, however long the heartbeat is."""

    def eager(declarer: Declarer, heartbeat: float, consumers: Callable[[], Sequence[Consumer]]) -> Watchdog:
        return Watchdog(declarer, 1.0, consumers)

    monkeypatch.setattr("amqpjobs.worker.worker.Watchdog", eager)


@pytest.mark.usefixtures("eager_watchdog")
async def test_a_cancel_that_got_lost_on_its_way_is_found_by_the_watchdog(faulty: Faulty) -> None:
    app, producer, kind = faulty.worked(), faulty.bench.app(), faulty.bench.kind()
    ran, lost = record(app, kind), watch(app.events, ConnectionLost)
    async with Worker(app):
        swallowed = faulty.proxy.swallow(Way.FROM_BROKER, "basic.cancel")
        await faulty.bench.broker.delete_queue(work_queue(app))
        await swallowed.met()
        await until_enqueued(producer, kind(n=1))
        await ran.until(1)

    assert "is gone without a word" in " ".join(str(each.error) for each in lost)


@pytest.mark.usefixtures("eager_watchdog")
async def test_a_queue_that_was_made_again_without_its_consumer_is_found_by_the_watchdog(faulty: Faulty) -> None:
    app, producer, kind = faulty.worked(), faulty.bench.app(), faulty.bench.kind()
    ran, lost = record(app, kind), watch(app.events, ConnectionLost)
    queues = {each.name: each.arguments for each in app.topology.app(app.queues, []).queues}
    queue = work_queue(app)
    async with Worker(app):
        swallowed = faulty.proxy.swallow(Way.FROM_BROKER, "basic.cancel")
        await faulty.bench.broker.delete_queue(queue)
        # Not before: a quorum queue that is back within a moment has 3.10 count a consumer that gets nothing.
        await swallowed.met()
        await faulty.bench.broker.declare_queue(queue, queues[queue])
        await until_enqueued(producer, kind(n=1))
        await ran.until(1)

    assert "no consumer at the broker" in " ".join(str(each.error) for each in lost)


async def test_a_consumer_that_the_broker_cancels_is_back_at_once(faulty: Faulty) -> None:
    app, producer, kind = faulty.worked(), faulty.bench.app(), faulty.bench.kind()
    ran, lost = record(app, kind), watch(app.events, ConnectionLost)
    opened = watch(app.events, ConnectionOpened)

    async def consumes_once() -> bool:
        return faulty.proxy.consumers == 1

    async with Worker(app):
        await opened.until(2)
        for round_ in range(5):
            await eventually(consumes_once)  # the connection before may just be ending
            assert faulty.proxy.forge_cancel() == 1
            await opened.until(3 + round_)
            await producer.enqueue(kind())
            await ran.until(round_ + 1)

    assert sum("cancelled the consumer" in str(each.error) for each in lost) == 5


@pytest.mark.usefixtures("eager_watchdog")
async def test_the_watchdog_leaves_a_healthy_worker_alone(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amqpjobs.amqp.watchdog.PATIENCE", PATIENCE)  # a busy broker's answer takes longer than 3 s
    app, producer, kind = faulty.worked(), faulty.bench.app(), faulty.bench.kind()
    ran, lost = record(app, kind), watch(app.events, ConnectionLost)
    async with Worker(app):
        before = Counter(faulty.proxy.to_broker)

        async def has_looked() -> bool:
            await producer.enqueue(kind())
            return faulty.proxy.to_broker[DECLARE] >= before[DECLARE] + 4

        await eventually(has_looked)
        await ran.until(1)
        said = faulty.proxy.to_broker - before

    # A channel for each look at most; the watchdog and the watch of the parked may be about to look just now.
    assert said[OPEN_CHANNEL] <= said[DECLARE] + 2
    assert said["basic.consume"] == 0
    assert list(lost) == []


@pytest.mark.usefixtures("eager_watchdog")
async def test_an_answer_that_never_comes_ends_the_session(faulty: Faulty) -> None:
    app, producer, kind = faulty.worked(), faulty.bench.app(), faulty.bench.kind()
    ran, lost = record(app, kind), watch(app.events, ConnectionLost)
    async with Worker(app):
        # The first may be the answer to a look for parked jobs.
        faulty.proxy.swallow(Way.FROM_BROKER, "queue.declare-ok", count=2)
        await faulty.until_lost(lost, "did not answer on a connection that is open")
        faulty.proxy.release()
        await producer.enqueue(kind())
        await ran.until(1)


async def test_a_broker_that_answers_nothing_while_a_session_is_prepared_is_tried_again(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, producer, kind = faulty.worked(), faulty.bench.app(), faulty.bench.kind()
    ran, lost = record(app, kind), watch(app.events, ConnectionLost)
    async with Worker(app):
        monkeypatch.setattr("amqpjobs.amqp.connection.PREPARE_WITHIN", 2.0)
        swallowed = faulty.proxy.swallow(Way.FROM_BROKER, "basic.consume-ok")
        faulty.proxy.cut()
        await swallowed.met()
        await faulty.until_lost(lost, "did not answer in time")
        monkeypatch.setattr("amqpjobs.amqp.connection.PREPARE_WITHIN", PATIENCE)  # which a busy broker may need
        await producer.enqueue(kind())
        await ran.until(1)


@pytest.mark.parametrize("way", Way, ids=lambda way: way.name.lower())
async def test_a_connection_of_which_one_half_is_dead_is_given_up(faulty: Faulty, way: Way) -> None:
    app, producer, kind = faulty.worked(heartbeat=1), faulty.bench.app(), faulty.bench.kind()
    ran, lost = record(app, kind), watch(app.events, ConnectionLost)
    async with Worker(app) as worker:

        async def is_given_up() -> bool:
            return not worker.is_consuming

        faulty.proxy.stall(way)
        await lost.until(2)
        await eventually(is_given_up)
        faulty.proxy.resume()
        await producer.enqueue(kind())
        await ran.until(1)


async def test_a_connection_that_takes_nothing_more_is_let_go_of(faulty: Faulty) -> None:
    bench, kind = faulty.bench, faulty.bench.kind()
    # The client library's own stuck detection must take longer than the test waits.
    app = bench.app(settings=bench.settings(url=faulty.proxy.url, heartbeat=60))
    record(app, kind)
    async with Worker(app):
        pass

    def sockets() -> int:
        ends = [each.raddr for each in psutil.Process().net_connections("tcp")]
        return sum(tuple(end) == ("127.0.0.1", faulty.proxy.port) for end in ends)

    async def are_closed() -> bool:
        return sockets() == 0

    async def is_one() -> bool:  # and no longer those of the worker
        return sockets() == 1

    await app.enqueue(kind())
    await eventually(is_one)
    for way in Way:
        faulty.proxy.stall(way)
    enqueuing = [app.enqueue(kind(text="x" * 7_000_000), deadline=0.9) for _ in range(5)]
    failures = await asyncio.gather(*enqueuing, return_exceptions=True)
    await app.close()
    await eventually(are_closed)

    assert all(isinstance(each, EnqueueTimeoutError) for each in failures)


async def test_jobs_that_run_when_the_connection_is_cut_run_once_and_are_acked(faulty: Faulty) -> None:
    app, producer, kind = faulty.worked(), faulty.bench.app(), faulty.bench.kind()
    gate = asyncio.Event()

    async def wait(job: Note, context: JobContext[None]) -> None:
        await gate.wait()

    ran, ended = record(app, kind, wait), watch(app.events, JobEnded)
    opened = watch(app.events, ConnectionOpened)
    async with Worker(app, concurrency=20):
        await producer.enqueue_many([kind(n=n) for n in range(50)])
        await ran.until(20)
        faulty.proxy.cut()
        await opened.until(4)
        await until_delivered(faulty.proxy, 40)
        gate.set()
        await ended.until(50)

    assert sorted(run.n for run in ran) == list(range(50))
    assert await faulty.bench.broker.count(work_queue(app)) == 0


async def test_jobs_that_end_just_when_the_connection_is_cut_are_settled_and_leave_their_slots(faulty: Faulty) -> None:
    app, producer, kind = faulty.worked(), faulty.bench.app(), faulty.bench.kind()
    gate = asyncio.Event()

    async def wait(job: Note, context: JobContext[None]) -> None:
        await gate.wait()

    ran = record(app, kind, wait)
    async with Worker(app, concurrency=AT_ONCE) as worker:
        await producer.enqueue_many([kind(n=n) for n in range(2 * AT_ONCE)])
        await ran.until(AT_ONCE)
        gate.set()
        faulty.proxy.cut()

        async def is_idle() -> bool:
            # What was acked just then comes again, so it is no use to count.
            return {run.n for run in ran} == set(range(2 * AT_ONCE)) and worker.running == 0

        await eventually(is_idle)

    assert await faulty.bench.broker.count(work_queue(app)) == 0


async def test_a_worker_that_is_to_stop_just_when_its_connection_is_cut_does_not_wait_for_its_grace(
    faulty: Faulty,
) -> None:
    app, producer, kind = faulty.worked(), faulty.bench.app(), faulty.bench.kind()
    gate = asyncio.Event()

    async def wait(job: Note, context: JobContext[None]) -> None:
        await gate.wait()

    ran = record(app, kind, wait)
    worker = await Worker(app, concurrency=AT_ONCE, grace=600).__aenter__()
    await producer.enqueue_many([kind(n=n) for n in range(AT_ONCE)])
    await ran.until(AT_ONCE)
    gate.set()
    faulty.proxy.cut()
    async with asyncio.timeout(PATIENCE):
        await worker.__aexit__(None, None, None)

    assert worker.running == worker.cancelled == 0


async def test_jobs_that_end_while_the_broker_is_away_are_settled_when_it_is_back(faulty: Faulty) -> None:
    app, producer, kind = faulty.worked(), faulty.bench.app(), faulty.bench.kind()
    gate = asyncio.Event()

    async def wait(job: Note, context: JobContext[None]) -> None:
        await gate.wait()
        if context.attempt == 1 and job.n % 2:
            raise Retry("once more", delay=0)

    ran, ended = record(app, kind, wait), watch(app.events, JobEnded)
    lost = watch(app.events, ConnectionLost)
    async with Worker(app, concurrency=20) as worker:
        await producer.enqueue_many([kind(n=n) for n in range(20)])
        await ran.until(20)
        await faulty.proxy.refuse()
        faulty.proxy.cut()
        await lost.until(4)
        gate.set()

        async def is_idle() -> bool:
            return worker.running == 0

        await eventually(is_idle)
        assert len(ended) == 0
        await faulty.proxy.accept()
        await ended.until(30)

    assert Counter((run.n, run.attempt) for run in ran) == Counter(
        [(n, 1) for n in range(20)] + [(n, 2) for n in range(1, 20, 2)]
    )
    assert await faulty.bench.broker.count(work_queue(app)) == 0


async def test_a_worker_whose_connection_is_cut_is_soon_back_at_its_old_rate(faulty: Faulty) -> None:
    app, producer, kind = faulty.worked(), faulty.bench.app(), faulty.bench.kind()
    ends = list[float]()

    async def work(job: Note, context: JobContext[None]) -> None:
        await asyncio.sleep(TAKES)
        ends.append(time.monotonic())

    ran = record(app, kind, work)
    until_cut, watched = 3 * TAKES, 2 * TAKES
    needed = round(PREFETCH / TAKES * (until_cut + BACK_WITHIN + watched)) + 2 * PREFETCH
    numbers = count()
    async with Worker(app, concurrency=PREFETCH):
        await producer.enqueue_many([kind(n=next(numbers)) for _ in range(needed)], deadline=60)
        await ran.until(3 * PREFETCH)
        await asyncio.sleep(TAKES / 2)  # an ack that gets lost on its way makes a copy, and that is no news here
        faulty.proxy.cut()
        from_then = time.monotonic() + BACK_WITHIN
        await asyncio.sleep(BACK_WITHIN + watched)

        async def is_at_its_old_rate() -> bool:
            # Later on a machine that stood still just then, which needs more jobs.
            since = max(from_then, time.monotonic() - watched)
            if sum(since <= each < since + watched for each in ends) > 0.8 * PREFETCH / TAKES * watched:
                return True
            await producer.enqueue_many([kind(n=next(numbers)) for _ in range(PREFETCH)], deadline=60)
            await asyncio.sleep(TAKES / 2)
            return False

        await eventually(is_at_its_old_rate)

    # Only of those that were settled just when it was cut: there are some where the machine stood still before.
    assert len(ran) - len({run.n for run in ran}) <= PREFETCH


async def test_nothing_confirmed_is_lost_in_a_storm_of_faults(
    url: str, unique: Callable[[], str], pytestconfig: pytest.Config
) -> None:
    async with faulty_bench(url, unique) as faulty:
        proxy, kind = faulty.proxy, faulty.bench.kind()
        announce(pytestconfig, f"the storm's seed is {proxy.seed}")
        app, producer = faulty.worked(heartbeat=1), faulty.worked(heartbeat=1)
        confirmed = set[str]()

        async def fail_first(job: Note, context: JobContext[None]) -> None:
            await asyncio.sleep(proxy.random.uniform(0, 0.05))
            if context.attempt == 1 and job.n % 4 == 0:
                raise Retry("once more", delay=0)

        async def produce() -> None:
            for n in count():
                with suppress(EnqueueError):
                    confirmed.add((await producer.enqueue(kind(n=n), deadline=3)).job_id)

        ran = record(app, kind, fail_first)
        worker = Worker(app, concurrency=10)

        async def is_idle() -> bool:
            with suppress(BrokerError, *CLIENT_ERRORS):
                return not await worker.left()
            return False

        async with worker:
            producing = [asyncio.create_task(produce()) for _ in range(3)]
            ends = time.monotonic() + STORM
            while (now := time.monotonic()) < ends or (len(confirmed) < ENOUGH and now < ends + PATIENCE):
                await trouble(proxy)
            proxy.calm()
            for task in producing:
                task.cancel()
            await asyncio.wait(producing)
            proxy.cut()  # what was told and got lost on its way comes again
            # What came back often waits so long before it runs again.
            patience = LONGEST_PAUSE + PATIENCE
            await until_all_ran(
                confirmed, lambda: {run.envelope.job_id for run in ran if is_last(run)}, within=patience
            )
            await eventually(is_idle, within=patience)
        await producer.close()

        assert len(confirmed) >= ENOUGH
        assert await faulty.bench.broker.count(dead_queue(app)) == 0
        assert await faulty.bench.broker.count(work_queue(app)) == 0


def is_last(run: Ran) -> bool:
    return run.attempt == (2 if run.n % 4 == 0 else 1)


async def trouble(proxy: FaultyProxy) -> None:
    """One fault by chance, and a while until the next."""
    chance = proxy.random
    way = chance.choice(list(Way))
    match chance.randrange(6):
        case 0:
            proxy.cut(reset=chance.random() < 0.5)
        case 1:
            proxy.cut_at(way, chance.randint(1, 5_000))
        case 2:
            proxy.tear(way, chance.choice(["basic.ack", "basic.deliver", "basic.publish", "body"]))
        case 3:
            proxy.stall(way)
        case 4:
            proxy.swallow(Way.TO_BROKER, "basic.ack", nth=chance.randint(1, 5))
        case _:
            proxy.forge_cancel()
    proxy.delay(chance.uniform(0, 0.02), jitter=0.02)
    await asyncio.sleep(chance.uniform(0.1, 0.8))
    proxy.resume()


async def until_delivered(proxy: FaultyProxy, count: int) -> None:
    async def is_delivered() -> bool:
        return proxy.from_broker["basic.deliver"] >= count

    await eventually(is_delivered)
