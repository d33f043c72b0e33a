"""What a job costs: one delivery and at most one ack on the wire, and at most one task of ours in the process."""

import asyncio
import math
from collections import Counter
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

import pytest

from amqpjobs import JobContext, Worker
from amqpjobs.amqp.declare import AT_ONCE
from tests.support.apps import Bench, Note, dead_queue, record, work_queue
from tests.support.broker import Broker
from tests.support.proxy import Proxy

T = TypeVar("T")

#: As the proxy calls them.
CHANNEL_OPEN, BIND, BIND_OK = "method 20.10", "method 50.20", "method 50.21"


@pytest.mark.parametrize("fast_lane", [True, False])
async def test_a_job_costs_its_worker_one_delivery_and_at_most_one_ack(
    bench: Bench, broker: Broker, fast_lane: bool
) -> None:
    async with Proxy(bench.url).running() as proxy:
        producer, kind = bench.app(), bench.kind()
        app = bench.app(settings=bench.settings(url=proxy.url, fast_lane=fast_lane))
        ran = record(app, kind)
        async with Worker(app, concurrency=20):
            await producer.enqueue_many([kind(n=n) for n in range(1_000)], deadline=30)
            await ran.until(1_000)

        await broker.await_count(work_queue(app), 0)

    assert proxy.from_broker["basic.deliver"] == 1_000
    assert proxy.to_broker["basic.ack"] < 1_000 if fast_lane else proxy.to_broker["basic.ack"] == 1_000
    assert proxy.to_broker["basic.publish"] == 0
    assert proxy.to_broker["basic.nack"] == proxy.to_broker["basic.reject"] == 0


async def test_a_retry_costs_one_publish_and_its_confirm(bench: Bench, broker: Broker) -> None:
    async with Proxy(bench.url).running() as proxy:
        producer, kind = bench.app(), bench.kind()
        app = bench.app(settings=bench.settings(url=proxy.url))

        async def fail(job: Note, context: JobContext[None]) -> None:
            raise ValueError("no")

        record(app, kind, fail, max_attempts=2)
        async with Worker(app):
            await producer.enqueue_many([kind(n=n) for n in range(50)])
            await broker.take(dead_queue(app), 50)

    assert proxy.from_broker["basic.deliver"] == 100
    assert proxy.to_broker["basic.publish"] == 100  # a retry and a dead letter each
    assert proxy.from_broker["basic.ack"] <= 100  # confirms, of which one may speak for several


@pytest.mark.parametrize("waits", [False, True])
async def test_a_job_costs_one_task_if_it_waits_and_off_the_fast_lane_one_of_the_client(
    bench: Bench, waits: bool
) -> None:
    producer, app, kind = bench.app(), bench.app(), bench.kind()

    async def behave(job: Note, context: JobContext[Any]) -> None:
        if waits:
            await asyncio.sleep(0)

    ran = record(app, kind, behave)
    tasks = Counter[str]()

    def counting(
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, T] | Generator[Any, None, T],
        **options: Any,
    ) -> asyncio.Task[T]:
        tasks[name_of(coroutine)] += 1
        return asyncio.Task(coroutine, loop=loop, **options)

    async with Worker(app):
        pass  # its queue exists from here on
    await producer.enqueue_many([kind(n=n) for n in range(1_000)], deadline=30)
    loop = asyncio.get_running_loop()
    loop.set_task_factory(counting)
    try:
        async with Worker(app, concurrency=20):
            await ran.until(1_000)
    finally:
        loop.set_task_factory(None)

    ours = {name: count for name, count in tasks.items() if name.startswith("amqpjobs.worker")}
    clients = {name: count for name, count in tasks.items() if name not in ours}
    own, shared = (ours.pop(f"amqpjobs.worker.running.Running.{name}", 0) for name in ("_work", "_work_off"))
    if waits:
        assert (own, shared) == (1_000, 0)
    else:  # those that came first, and then one for all that came together
        assert own < 1_000
        assert own + shared <= 1_000
    assert sum(ours.values()) <= 2  # the look at the parked jobs, and the end
    # Those of two connections, and without the lane one for each job.
    assert sum(clients.values()) <= (150 if app.settings.fast_lane else 1_150), clients


def name_of(coroutine: object) -> str:
    """Module and name of the function a task runs."""
    frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
    module = "" if frame is None else str(frame.f_globals["__name__"])
    return f"{module}.{getattr(coroutine, '__qualname__', '')}"


async def test_a_worker_waits_for_one_answer_about_eight_binds_and_opens_a_channel_for_all_it_declares(
    bench: Bench,
) -> None:
    async with Worker(bench.app()):  # what all apps share is there from now on
        pass
    async with Proxy(bench.url).running() as proxy:
        app = bench.app(settings=bench.settings(url=proxy.url))
        for _ in range(20):
            record(app, bench.kind())
        async with Worker(app):
            pass

    binds = proxy.to_broker[BIND]
    assert binds > 2 * 20
    assert proxy.from_broker[BIND_OK] == math.ceil(binds / AT_ONCE)
    assert proxy.to_broker[CHANNEL_OPEN] <= 3  # to declare, to consume, to look at what is parked
