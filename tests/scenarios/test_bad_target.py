"""A queue that does not take what is due for it holds up others only beyond the broker's own prefetch.

This is what `docs/delays.md` says. A delay level carries at most 32 messages that their queues have not taken; the
33rd holds up all that leaves that level, until the queue takes again and the level has tried again. It does so after
the broker's `dead_letter_worker_publisher_confirm_timeout`: 3 minutes by default, 2 seconds here.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import aiormq
import pytest

from amqpjobs import App, Worker
from amqpjobs.errors import RefusedError
from amqpjobs.job import options_of
from tests.scenarios.conftest import BenchOn, control, until_all_ran
from tests.support.apps import Bench, Note, Ran, Seen, record, work_queue
from tests.support.broker import PATIENCE, eventually
from tests.support.clock import FakeClock
from tests.support.length import is_full
from tests.support.rabbitmq import Node

#: Seconds for which a queue does not take.
REFUSING = 60.0 if is_full() else 5.0
#: Less and more than the 32 that a level carries unconfirmed.
FEWER, MORE = 20, 40
TRIES_AGAIN_SOON = "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 2000}]}]."
#: Instead of an id, for messages that are no jobs.
FOREIGN = "foreign"
FULL = '{"max-length": 1, "overflow": "reject-publish"}'
#: Of delays that nothing holds up. Rounding costs up to 0.1 s; the rest is for a machine that stands still meanwhile.
#: That nothing holds them up is shown by this: they have run before the queue takes again.
LATEST = 15.0


class Sender:
    """Enqueues with just the delay that was asked for: no time passes between a job's making and its publication.

    A tenth of a second lost there would send it to another level, or right into its queue.
    """

    def __init__(self, bench: Bench) -> None:
        self._began = time.time()
        self._clock = FakeClock(datetime.fromtimestamp(self._began, UTC))
        self.app = bench.app()
        self.app.clock = self._clock

    async def send(self, jobs: Iterable[Note], delay: float) -> list[str]:
        """Their ids."""
        self._clock.forward(time.time() - self._began)
        return [handle.job_id for handle in await self.app.enqueue_many(jobs, delay=delay)]

    async def send_meanwhile(self, kind: type[Note], *, delays: tuple[float, ...]) -> list[str]:
        """The ids of jobs with these delays in turn, for as long as the queue shall not take."""
        ids: list[str] = []
        end = time.monotonic() + REFUSING
        while time.monotonic() < end or len(ids) < len(delays):
            ids += await self.send([kind(n=len(ids))], delays[len(ids) % len(delays)])
            await asyncio.sleep(0.05)
        return ids


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """One for all tests: each leaves nothing that waits."""
    with Node(advanced=TRIES_AGAIN_SOON) as node:
        yield node


async def test_few_refused_jobs_delay_nobody_else(node: Node, bench_on: BenchOn) -> None:
    async with bench_on(node) as bench:
        app, kind, unwanted = bench.app(), bench.kind(), bench.kind()
        ran, sender = record(app, kind), Sender(bench)
        async with sender.app, Worker(app):
            queue, there = await full_queue(node, bench, app, unwanted)
            refused = await sender.send([unwanted(n=n) for n in range(FEWER)], 0.1)

            others = await sender.send_meanwhile(kind, delays=(0.1, 0.2, 0.7))
            await until_all_ran(set(others), lambda: ids_of(ran))
            await control(node, "clear_policy", queue)
            came = await until_all_came(bench, queue, refused)

    assert ids_of(ran) == set(others)
    assert came.pop(FOREIGN) == there
    assert came.keys() == set(refused)
    assert min(run.lateness for run in ran) >= 0
    assert max(run.lateness for run in ran) < LATEST


async def test_many_refused_jobs_hold_up_their_level_until_their_queue_takes_again(
    node: Node, bench_on: BenchOn
) -> None:
    async with bench_on(node) as bench:
        app, kind, elsewhere, unwanted = bench.app(), bench.kind(), bench.kind(), bench.kind()
        ran, ran_elsewhere, sender = record(app, kind), record(app, elsewhere), Sender(bench)
        async with sender.app, Worker(app):
            queue, there = await full_queue(node, bench, app, unwanted)
            refused = await sender.send([unwanted(n=n) for n in range(MORE)], 0.1)

            # 0.1 s is the level that is held up, 0.2 s the one above it alone.
            held_up = await sender.send([kind(n=n) for n in range(20)], 0.1)
            others = await sender.send_meanwhile(elsewhere, delays=(0.2, 0.4))
            await until_all_ran(set(others), lambda: ids_of(ran_elsewhere))
            ran_too_soon = len(ran)
            await control(node, "clear_policy", queue)
            await until_all_ran(set(held_up), lambda: ids_of(ran))
            came = await until_all_came(bench, queue, refused)

    tell("held up", ran)
    assert ran_too_soon == 0
    assert max(run.lateness for run in ran_elsewhere) < LATEST
    assert ids_of(ran) == set(held_up)
    assert came.pop(FOREIGN) == there
    assert came.keys() == set(refused)
    assert min(run.lateness for run in [*ran, *ran_elsewhere]) >= 0


@pytest.mark.parametrize("trouble", ["full", "without a leader"])
async def test_a_work_queue_that_takes_again_gets_what_was_due_for_it(
    node: Node, bench_on: BenchOn, trouble: str
) -> None:
    async with bench_on(node) as bench:
        app, kind, troubled, wanted = bench.app(), bench.kind(), bench.app(), bench.kind()
        ran, ran_later, sender = record(app, kind), record(troubled, wanted), Sender(bench)
        async with Worker(troubled):
            pass  # its queue and bindings exist from here on
        async with sender.app, Worker(app):
            first = await fill(node, troubled, wanted) if trouble == "full" else await lead(node, troubled, "stop")
            late = await sender.send([wanted(n=n) for n in range(FEWER)], 0.1)
            others = await sender.send_meanwhile(kind, delays=(0.1, 0.2, 0.7))
            await until_all_ran(set(others), lambda: ids_of(ran))

            if trouble == "full":
                await control(node, "clear_policy", work_queue(troubled))
                if node.version.startswith("3."):  # does not try a quorum queue again that has refused
                    await asyncio.to_thread(node.restart)
            else:
                await lead(node, troubled, "restart")
            async with Worker(troubled):
                await until_all_ran({*first, *late}, lambda: ids_of(ran_later))

    assert ids_of(ran) == set(others)
    assert max(run.lateness for run in ran) < LATEST
    assert ids_of(ran_later) == {*first, *late}


def ids_of(ran: Seen[Ran]) -> set[str]:
    """A level that waits too long for a confirm sends a job again: what ran twice counts once."""
    return {run.envelope.job_id for run in ran}


async def until_all_came(bench: Bench, queue: str, ids: Iterable[str]) -> Counter[str]:
    """What is in a queue, by job id, as soon as all these are; also what comes behind them by then."""
    came = Counter[str]()

    async def have_all() -> bool:
        letters = await bench.broker.take(queue, await bench.broker.count(queue))
        came.update(str(letter.headers.get("amqpjobs-id", FOREIGN)) for letter in letters)
        return came.keys() >= {*ids}

    await eventually(have_all, within=2 * PATIENCE)
    return came


async def full_queue(node: Node, bench: Bench, app: App[None], kind: type[Note]) -> tuple[str, int]:
    """Somebody else's queue that wants what is due of a kind, and what is in it: it refuses more."""
    queue = await bench.queue()
    await bench.broker.bind(queue, app.topology.due, "*." * 32 + f"kind.{options_of(kind).kind}")
    await control(node, "set_policy", "--apply-to", "queues", queue, f"^{queue}$", FULL)

    async def is_refused() -> bool:
        try:
            await bench.broker.publish("", queue)
        except aiormq.exceptions.DeliveryError:
            return True
        return False

    await eventually(is_refused)
    return queue, await bench.broker.count(queue)


async def fill(node: Node, app: App[None], kind: type[Note]) -> list[str]:
    """The ids of the jobs in an app's work queue that a policy now lets refuse more."""
    queue = work_queue(app)
    ids: list[str] = []
    await control(node, "set_policy", "--apply-to", "queues", queue, f"^{queue}$", FULL)

    async def is_refused() -> bool:
        try:
            ids.append((await app.enqueue(kind())).job_id)
        except RefusedError:
            return True
        return False

    await eventually(is_refused)
    return ids


async def lead(node: Node, app: App[None], verb: str) -> list[str]:
    """Stop or restart the only member of a quorum queue: without it, it is as if its majority were lost."""
    await control(node, "eval", f"ra:{verb}_server(quorum_queues, {{'%2F_{work_queue(app)}', node()}}).")
    return []


def tell(what: str, ran: Seen[Ran]) -> None:
    """The measured lateness; pytest -s shows it."""
    late = sorted(run.lateness for run in ran)
    sys.stdout.write(f"{what}: {len(late)} jobs, {late[0]:.1f} to {late[-1]:.1f} s late\n")
