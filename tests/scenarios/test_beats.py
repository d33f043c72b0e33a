"""Beats die, freeze, are cut off and stay away, and their ticks run: none is lost, and few are doubled.

A schedule of one second and three beats, each in a process of its own. The worker is in the test's process
and is left alone, so that what it sees is what beats have published.
"""

import asyncio
import signal
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from amqpjobs import Beat, Worker
from amqpjobs.beat.plan import Misfire
from amqpjobs.events import BeatLeading, TickDropped, TickPublished
from tests.conftest import MakeNode
from tests.scenarios.conftest import BenchOn
from tests.support.apps import NAMESPACE, Bench, Ran, Seen, record, watch
from tests.support.beats import Beats, Process
from tests.support.broker import PATIENCE, Broker, eventually, plain_client
from tests.support.clock import FakeClock
from tests.support.faults import FaultyProxy, Way
from tests.support.length import is_full
from tests.support.shop import Shop
from tests.support.terminal import Shell
from tests.support.ticks import Each, instant_of

KILLS = 150 if is_full() else 5
SILENCES = 15 if is_full() else 1
#: Ticks between two faults.
KILL_EVERY = 2
#: Seconds without a run that are promised not to be exceeded, and how much more a machine may need that stands still
#: meanwhile. After so long ticks would be missed, too: their grace is 30 s.
KILLED_GAP, SILENT_GAP, MARGIN = 2.0, 7.0, 20.0


class Watched:
    """What the worker ran, and what was done to the beats."""

    def __init__(self, name: str, ran: Seen[Ran], dropped: Seen[TickDropped]) -> None:
        self.name = name
        self.ran = ran
        #: Second copies of ticks.
        self.dropped = dropped

    def instants(self) -> list[datetime]:
        """Of all ticks that ran, each once, in order."""
        return sorted({instant_of(each.envelope.job_id) for each in self.ran})

    def doubles(self) -> int:
        return sum(count - 1 for count in Counter(each.envelope.job_id for each in self.ran).values())

    def gap(self) -> float:
        """The longest time in which nothing ran."""
        return max(later.at - earlier.at for earlier, later in pairwise(self.ran))

    async def until_more(self, count: int) -> None:
        await self.ran.until(len(self.ran) + count, within=2 * PATIENCE)


@pytest.fixture
async def watched(url: str, unique: Callable[[], str], broker: Broker) -> AsyncGenerator[Watched]:
    bench = Bench(url, unique, broker)
    app = bench.app()
    ran = record(app, bench.kind(f"{app.name}.second"))
    async with Worker(app):
        yield Watched(app.name, ran, watch(app.events, TickDropped))
    await bench.close()
    for queue in app.topology.beat(app.name).queues:
        await broker.delete_queue(queue.name)


def assert_no_tick_is_missing(watched: Watched) -> None:
    steps = {(later - earlier).total_seconds() for earlier, later in pairwise(watched.instants())}
    assert steps == {1.0}


async def test_with_leaders_killed_one_after_the_other_every_tick_runs(
    watched: Watched, url: str, tmp_path: Path
) -> None:
    async with Beats([url] * 3, watched.name, tmp_path) as beats:
        await watched.until_more(3)
        for _ in range(KILLS):
            leader = await beats.leader()
            leader.popen.kill()
            beats.start(url)
            await asyncio.to_thread(leader.popen.wait)
            await beats.leader()
            await watched.until_more(KILL_EVERY)
            await beats.until_all_wait()  # else soon all are killed that could follow

    tell(watched, KILLS)
    assert_no_tick_is_missing(watched)
    assert watched.doubles() <= takeovers(beats)
    assert watched.gap() <= KILLED_GAP + MARGIN


async def test_a_frozen_leader_is_followed_and_publishes_nothing_when_it_wakes(
    watched: Watched, url: str, tmp_path: Path
) -> None:
    @contextmanager
    def frozen(leader: Process) -> Generator[None]:
        leader.popen.send_signal(signal.SIGSTOP)
        yield
        leader.popen.send_signal(signal.SIGCONT)

    async with Beats([url] * 3, watched.name, tmp_path) as beats:
        await assert_followed(watched, beats, frozen)


async def test_a_leader_that_is_cut_off_is_followed_and_publishes_nothing_when_it_is_back(
    watched: Watched, url: str, tmp_path: Path
) -> None:
    proxies = [FaultyProxy(url) for _ in range(3)]

    @contextmanager
    def cut_off(leader: Process) -> Generator[None]:
        proxy = proxies[beats.processes.index(leader)]
        for way in Way:
            proxy.stall(way)
        yield
        proxy.resume()

    async with AsyncExitStack() as stack:
        for proxy in proxies:
            await stack.enter_async_context(proxy.running())
        beats = await stack.enter_async_context(Beats([each.url for each in proxies], watched.name, tmp_path))
        await assert_followed(watched, beats, cut_off)


async def assert_followed(
    watched: Watched, beats: Beats, silent: Callable[[Process], AbstractContextManager[None]]
) -> None:
    """Each leader that falls silent is followed, and is no leader when it is heard again."""
    for _ in range(SILENCES):
        await watched.until_more(3)
        leader = await beats.leader()
        terms = len(leader.lines("the beat leads"))
        with silent(leader):
            since = datetime.now(UTC)
            await beats.leader(other_than=[leader])
            await watched.until_more(3)
        await eventually_deposed(leader, terms)
        await watched.until_more(3)

        # It may read now what the broker had confirmed before; nothing that was due later is its own.
        assert max(map(instant_of, enqueued_in(leader, terms)), default=since) <= since

    tell(watched, SILENCES)
    assert_no_tick_is_missing(watched)
    assert watched.doubles() <= takeovers(beats)
    assert watched.gap() <= SILENT_GAP + MARGIN


def tell(watched: Watched, faults: int) -> None:
    """What was measured; pytest -s shows it."""
    sys.stdout.write(
        f"{len(watched.instants())} ticks, {faults} faults, {watched.doubles()} second runs, "
        f"longest gap {watched.gap():.2f} s\n"
    )


async def test_what_a_leader_published_and_had_not_written_down_when_it_was_killed_runs_once(
    watched: Watched, url: str, tmp_path: Path
) -> None:
    async with Beats([url], watched.name, tmp_path, forgets=True) as beats:
        await watched.until_more(3)
        beats.processes[0].popen.kill()
        await asyncio.to_thread(beats.processes[0].popen.wait)
        first = {each.envelope.job_id for each in watched.ran}
        beats.start(url)
        await watched.until_more(3)

    assert {each.envelope.job_id for each in watched.dropped} >= first
    assert watched.doubles() == 0
    assert_no_tick_is_missing(watched)


async def eventually_deposed(leader: Process, terms: int) -> None:
    """Until it knows that so many of its terms are over. On a slow machine it may lead again by then."""

    async def is_so() -> bool:
        return len(leader.lines("the beat leads no longer")) >= terms

    await eventually(is_so, within=2 * PATIENCE)


def enqueued_in(leader: Process, terms: int) -> list[str]:
    """The ids of what it published in its first so many terms, and after them without leading."""
    later = [str(line["time"]) for line in leader.lines("the beat leads")[terms:]]
    return [str(line["job_id"]) for line in leader.lines("enqueued") if str(line["time"]) < min(later, default="9")]


def takeovers(beats: Beats) -> int:
    """How often another one began to lead: by our faults, and perhaps by those of the machine."""
    return sum(len(each.lines("the beat leads")) for each in beats.processes) - 1


START = datetime(2026, 1, 1, tzinfo=UTC)
#: What each policy publishes a minute and a half after nobody published any more, with a grace of 2 s.
MISSED: dict[Misfire, list[int]] = {"skip": [99, 100], "once": [100], "all": [97, 98, 99, 100]}


@asynccontextmanager
async def beating(bench: Bench, name: str, second: float) -> AsyncGenerator[tuple[FakeClock, Seen[TickPublished]]]:
    """A beat whose clock stands still, of an app that has a schedule of one second for each policy."""
    app, kind = bench.app(name), bench.kind(f"{name}.tick")
    for misfire in MISSED:
        app.schedule(Each(1), job=kind(), name=misfire, misfire=misfire, grace=2, limit=4)
    clock = FakeClock(START + timedelta(seconds=second))
    app.clock = clock
    published, leading = watch(app.events, TickPublished), watch(app.events, BeatLeading)
    async with Beat(app):
        await leading.until(1)
        yield clock, published


async def test_missed_ticks_are_for_each_schedules_policy_also_when_the_broker_was_restarted_meanwhile(
    make_node: MakeNode, bench_on: BenchOn
) -> None:
    node = await asyncio.to_thread(make_node)
    async with bench_on(node) as bench:
        name = bench.unique()
        worker = bench.app(name)
        record(worker, bench.kind(f"{name}.tick"))
        async with Worker(worker):
            pass
        async with beating(bench, name, 0) as (clock, published):
            for second in range(10):
                await published.until(3 * (second + 1))
                await clock.advance(1)
            await published.until(33)
    await asyncio.to_thread(node.restart)
    async with bench_on(node) as bench, beating(bench, name, 100.5) as (clock, published):
        missed = await published.until(sum(map(len, MISSED.values())))
        await clock.advance(1)
        await published.until(len(missed) + len(MISSED))
        resumed = list(published)

    for misfire, expected in MISSED.items():
        seconds = [(each.instant - START).total_seconds() for each in resumed if each.schedule == misfire]
        assert seconds == [*expected, 101], misfire


SERVICE = """
from datetime import timedelta
from amqpjobs import App, Job, cron, every

class Sweep(Job[None], kind="{name}.sweep"):
    pass

app = App("{name}")

@app.schedule(every(timedelta(seconds=1)), job=Sweep(), expires=60)
@app.schedule(cron("0 9 * * mon-fri", timezone="Europe/Berlin"), job=Sweep(), name="mornings")
@app.handler(Sweep)
async def sweep(job: Sweep) -> None: ...
"""


def test_a_worker_with_a_beat_runs_what_it_schedules_and_a_beat_alone_waits_for_its_turn(
    url: str, unique: Callable[[], str], tmp_path: Path
) -> None:
    name = unique()
    (tmp_path / "sweeper.py").write_text(SERVICE.replace("{name}", name))
    desk = Shell(tmp_path, AMQPJOBS_URL=url, AMQPJOBS_NAMESPACE=NAMESPACE, AMQPJOBS_LOG_FORMAT="json")

    with desk.type("amqpjobs run sweeper --beat") as worker:
        assert worker.shows(f'"message":"the beat leads","app":"{name}","schedules":2'), worker.text
        assert worker.shows(f'"message":"completed","kind":"{name}.sweep","job_id":"{name}.sweep@20'), worker.text
        with desk.type("amqpjobs beat sweeper") as beat:
            assert beat.shows('"message":"a beat waits for its turn"'), beat.text
            worker.signal(signal.SIGTERM)
            assert worker.end() == 0, worker.text
            assert beat.shows('"message":"the beat leads"'), beat.text
            assert beat.shows('"message":"enqueued"'), beat.text
            beat.signal(signal.SIGINT)
            assert beat.end() == 0, beat.text
    asyncio.run(sweep(url, name))


def test_a_beat_of_a_service_without_schedules_is_told_how_to_declare_one(shop: Shop) -> None:
    for command in ("amqpjobs beat shop", "amqpjobs run shop --beat"):
        code, text = shop.run(command)

        assert code == 2
        assert "has no schedule" in text
        assert "@app.schedule(every(60)" in text


async def sweep(url: str, name: str) -> None:
    async with plain_client(url) as broker:
        shared = ("lease", "register", "control", "runs")
        queues = ("queue.{}", "dead.{}", *(f"beat.{each}.v1.{{}}" for each in shared))
        for queue in queues:
            await broker.delete_queue(f"{NAMESPACE}.{queue.format(name)}")
