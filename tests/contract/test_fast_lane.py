"""What only shows on a real connection: both ways of a job, with the lane and without it."""

import asyncio

import pytest

from amqpjobs import EnqueueError, EnqueueManyError, Job, UnroutableError, Worker
from amqpjobs.amqp import lane
from amqpjobs.events import ConnectionLost
from amqpjobs.settings import Settings
from tests.support.apps import Bench, record, work_queue
from tests.support.broker import PATIENCE, Broker, eventually

#: The client library takes a broker for dead that says nothing for three times a heartbeat and a second.
HEARTBEAT, PATIENCE_OF_THE_LIBRARY = 1, 6.0
#: What a frame of RabbitMQ's carries at most.
FRAME = 131_072 - 8


@pytest.fixture(params=[True, False], ids=["lane", "library"])
def settings(bench: Bench, request: pytest.FixtureRequest) -> Settings:
    return bench.settings(fast_lane=request.param)


class Flow:
    """How long jobs have gone to and fro without a pause, and what was lost in that time.

    After a pause, of this process or of the broker, each may rightly take the other one for dead: so it begins anew.
    """

    def __init__(self) -> None:
        self.losses = list[ConnectionLost]()
        self._begun = self._latest = self._now()

    @property
    def lasted(self) -> float:
        return self._latest - self._begun

    def go_on(self) -> None:
        """Jobs have gone now."""
        now = self._now()
        if now - self._latest > HEARTBEAT:
            self._begun = now + 3 * HEARTBEAT  # until then the end of a connection may come to light
        self._latest = now

    def note(self, lost: ConnectionLost) -> None:
        if self._begun <= self._now() <= self._latest + HEARTBEAT:
            self.losses.append(lost)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


async def test_a_connection_that_only_carries_jobs_stays_open(bench: Bench) -> None:
    settings = bench.settings(heartbeat=HEARTBEAT)
    producer, app, kind = bench.app(settings=settings), bench.app(settings=settings), bench.kind()
    ran, flow, sent = record(app, kind), Flow(), set[str]()
    for each in (producer, app):
        each.events.subscribe(ConnectionLost, flow.note)

    async def have_run() -> bool:
        return {run.envelope.job_id for run in ran} >= sent

    async with Worker(app, concurrency=20):
        # So often that the broker, too, has no reason to send a heartbeat.
        while flow.lasted < PATIENCE_OF_THE_LIBRARY + 2:
            try:
                handles = await producer.enqueue_many([kind(n=n) for n in range(10)], deadline=PATIENCE)
                sent |= {handle.job_id for handle in handles}
            except EnqueueManyError as error:  # of a connection that was lost: that is judged below
                sent |= set(error.enqueued.values())
            await asyncio.sleep(0.05)
            flow.go_on()
        await eventually(have_run)

    assert flow.losses == []
    assert lane.TOLD_EVERY < PATIENCE_OF_THE_LIBRARY / 2


async def test_bodies_of_any_number_of_frames_come_as_they_were_sent(bench: Bench, settings: Settings) -> None:
    app, kind = bench.app(settings=settings), bench.kind()
    ran = record(app, kind)
    around = len(kind(n=1).model_dump_json().encode())
    sizes = [0, *(frames * FRAME + more - around for frames in (1, 2) for more in (-1, 0, 1)), 3_000_000]
    jobs = [kind(n=1, text=chr(97 + place) * size) for place, size in enumerate(sizes)]

    async with Worker(app, concurrency=20):
        await app.enqueue_many(jobs, deadline=60)
        await ran.until(len(jobs))

    assert sorted(run.text for run in ran) == sorted(job.text for job in jobs)


async def test_each_of_many_jobs_is_told_its_own_fate(bench: Bench, broker: Broker, settings: Settings) -> None:
    app, kind, unwanted = bench.app(settings=settings), bench.kind(), bench.kind()
    record(app, kind)
    async with Worker(app):
        pass  # its queue is there from here on
    jobs = [unwanted(n=n) if n % 3 == 0 else kind(n=n) for n in range(1_000)]

    with pytest.raises(EnqueueManyError) as caught:
        await app.enqueue_many(jobs, deadline=30)

    assert sorted(caught.value.errors) == list(range(0, 1_000, 3))
    assert {type(error) for error in caught.value.errors.values()} == {UnroutableError}
    assert len(caught.value.enqueued) == 666
    await broker.await_count(work_queue(app), 666)


async def test_a_channel_that_is_closed_under_many_is_told_to_all_and_the_next_ones_go_through(
    bench: Bench, settings: Settings
) -> None:
    app, kind, lost = bench.app(settings=settings), bench.kind(), bench.kind(exchange=bench.unique())
    ran = record(app, kind)
    jobs: list[Job[None]] = [lost(n=n) if n == 300 else kind(n=n) for n in range(600)]

    async with Worker(app):
        results = await asyncio.gather(*(app.enqueue(job) for job in jobs), return_exceptions=True)
        await app.enqueue(kind(n=1_000))
        errors = [each for each in results if isinstance(each, BaseException)]
        confirmed = {n for n, each in enumerate(results) if not isinstance(each, BaseException)}

        async def have_run() -> bool:  # perhaps some of the others, too
            return {run.n for run in ran} >= confirmed | {1_000}

        await eventually(have_run)

    assert isinstance(results[300], UnroutableError)
    assert [each for each in errors if not isinstance(each, EnqueueError)] == []
