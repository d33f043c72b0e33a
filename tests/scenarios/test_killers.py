"""Jobs that kill their worker: they end, after as many runs as they may have, and nobody else pays."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from amqpjobs.worker.suspicion import MOST_RETURNS, PAUSED_FROM
from tests.support.broker import PATIENCE, eventually
from tests.support.length import is_full
from tests.support.proxy import Proxy
from tests.support.scene import LONG, Scene, open_scene

INNOCENTS, PREFETCH, WORKERS = (500, 50, 3) if is_full() else (60, 20, 2)
#: How often two workers are replaced by two new ones.
ROLLS = 25 if is_full() else 3
ATTEMPTS = 5 if is_full() else 3


@pytest.fixture
async def scene(
    url: str, unique: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Scene]:
    async with open_scene(url, unique(), tmp_path, monkeypatch, prefetch=PREFETCH) as scene:
        yield scene


@pytest.mark.parametrize(
    ("kind", "how", "words"),
    [
        ("Killer", "kill", "killed by SIGKILL (out of memory, or by somebody)."),
        ("KillerInThread", "kill", "killed by SIGKILL (out of memory, or by somebody)."),
        ("Killer", "segfault", "killed by SIGSEGV."),
    ],
)
async def test_a_job_that_kills_its_worker_ends_after_its_attempts_and_costs_nobody_else_one(
    scene: Scene, kind: str, how: str, words: str
) -> None:
    innocents = scene.innocents(INNOCENTS, seconds=0.05)
    killer = getattr(scene.home, kind)(name="killer", how=how)
    started = time.monotonic()

    async with scene.fleet(WORKERS) as fleet:
        middle = len(innocents) // 2
        await scene.enqueue([*innocents[:middle], killer, *innocents[middle:]], max_attempts=ATTEMPTS)
        await scene.ledger.until_done({f"innocent-{n}" for n in range(INNOCENTS)}, within=LONG)
        [letter] = await scene.dead()
        await scene.until_empty()
        deaths = fleet.deaths
    took = time.monotonic() - started
    sys.stdout.write(f"\nruns of the killer: {scene.ledger.runs('killer')}, {deaths} deaths, {took:.1f} s\n")

    assert took < LONG
    assert deaths <= 1
    assert ATTEMPTS <= len(scene.ledger.runs("killer")) <= ATTEMPTS + 1
    assert letter.kind == scene.home.app.registry.get(letter.kind).kind
    assert letter.text("amqpjobs-dead-reason") == "attempts_exhausted"
    assert letter.text("amqpjobs-dead-error") == f"ProcessDiedError: The process of this job was {words}"
    assert letter.number("amqpjobs-crashes") == ATTEMPTS
    assert scene.paid() == {}


async def test_two_killers_among_innocents_both_end_and_cost_nobody_else_an_attempt(scene: Scene) -> None:
    innocents = scene.innocents(INNOCENTS, seconds=0.05)
    killers = [scene.home.Killer(name=f"killer-{n}") for n in range(2)]

    async with scene.fleet(WORKERS) as fleet:
        await scene.enqueue([*innocents[:30], *killers, *innocents[30:]], max_attempts=ATTEMPTS)
        await scene.ledger.until_done({f"innocent-{n}" for n in range(INNOCENTS)}, within=LONG)
        letters = await scene.dead(2)
        await scene.until_empty()
        deaths = fleet.deaths

    assert {json.loads(letter.body)["name"] for letter in letters} == {"killer-0", "killer-1"}
    assert deaths <= 2
    for n in range(2):  # each may have been cut short once more by the worker's death of the other
        assert ATTEMPTS <= len(scene.ledger.runs(f"killer-{n}")) <= ATTEMPTS + 2
    assert scene.paid() == {}


@pytest.mark.parametrize("attempts", [1, 2])
async def test_a_killer_with_few_attempts_runs_once_more_at_most(scene: Scene, attempts: int) -> None:
    async with scene.fleet(1):
        await scene.enqueue([scene.home.Killer(name="killer")], max_attempts=attempts)
        await scene.enqueue(scene.innocents(10), max_attempts=1)
        await scene.ledger.until_done({f"innocent-{n}" for n in range(10)}, within=LONG)
        await scene.dead()

    assert attempts <= len(scene.ledger.runs("killer")) <= attempts + 1
    assert scene.paid() == {}


async def test_a_suspect_that_is_harmless_pays_nothing(scene: Scene) -> None:
    async with scene.fleet(1) as fleet:
        await scene.enqueue([scene.home.Killer(name="killer", unless="peace"), *scene.innocents(5, mark="peace")])
        await scene.ledger.until_run("killer", count=2, within=LONG)
        scene.touch("peace")
        await scene.ledger.until_done({"killer", *(f"innocent-{n}" for n in range(5))}, within=LONG)
        await scene.until_empty()
        await scene.dead(0)

    assert fleet.deaths == 1
    assert scene.paid() == {}


async def test_a_group_killed_from_outside_costs_nobody_an_attempt(scene: Scene) -> None:
    names = [f"innocent-{n}" for n in range(8)]

    async with scene.fleet(1, processes=8) as fleet:
        await scene.enqueue(scene.innocents(8, mark="go"))
        await scene.ledger.until_run(*names)
        os.kill(fleet.pids[0], signal.SIGKILL)
        await scene.ledger.until_run(*names, count=2, within=LONG)
        [group] = fleet.children
        group.kill()
        await scene.ledger.until_run(*names, count=3, within=LONG)
        scene.touch("go")
        await scene.ledger.until_done({f"innocent-{n}" for n in range(8)}, within=LONG)
        await scene.until_empty()
        await scene.dead(0)

    assert scene.paid() == {}
    assert {len(scene.ledger.runs(name)) for name in names} == {3}  # in the worker, in the group, alone
    assert all(scene.ledger.runs(name) == scene.ledger.runs(name, "around") for name in names)  # middlewares, too
    assert len({scene.ledger.runs(name)[2] for name in names}) == 8


async def test_what_a_worker_held_when_its_own_connection_went_is_no_suspect(scene: Scene, url: str) -> None:
    names = [f"innocent-{n}" for n in range(20)]

    # All of them run when it is cut: of what was on its way the worker knows nothing.
    async with Proxy(url).running() as proxy, scene.fleet(1, through=proxy, concurrency=20) as fleet:
        await scene.enqueue(scene.innocents(20, mark="go"))
        await scene.ledger.until_run(*names)
        proxy.cut()

        async def is_back() -> bool:
            return fleet.text.count('"connected"') >= 4

        await eventually(is_back)
        scene.touch("go")
        await scene.ledger.until_done(set(names), within=LONG)
        await scene.until_empty()
        children, pids = fleet.children, fleet.pids

    assert children == []
    assert {pid for name in names for _, pid in scene.ledger.runs(name)} == set(pids)


@pytest.mark.slow
async def test_a_child_that_does_not_answer_any_more_is_a_death(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene.fleet(1) as fleet:
        await scene.enqueue([scene.home.Killer(name="killer", how="block")], timeout=1, max_attempts=2)
        await scene.ledger.until_run("killer")
        os.kill(fleet.pids[0], signal.SIGKILL)
        [letter] = await scene.dead()

    assert len(scene.ledger.runs("killer")) == 3
    assert "killed" in letter.text("amqpjobs-dead-error")


async def test_where_no_child_can_start_suspects_run_in_the_worker_and_it_says_so(scene: Scene) -> None:
    scene.touch("broken")
    async with scene.fleet(1) as fleet:
        await scene.enqueue(scene.innocents(5, mark="go"))
        await scene.ledger.until_run(*(f"innocent-{n}" for n in range(5)))
        os.kill(fleet.pids[0], signal.SIGKILL)
        await scene.ledger.until_run(*(f"innocent-{n}" for n in range(5)), count=2, within=LONG)
        scene.touch("go")
        await scene.ledger.until_done({f"innocent-{n}" for n in range(5)}, within=LONG)
        pids = fleet.pids
        text = fleet.text

    assert {pid for n in range(5) for _, pid in scene.ledger.runs(f"innocent-{n}")[1:]} == set(pids)
    assert text.count("AMQPJOBS_QUARANTINE=false") == 1
    assert "the pool is empty" in text


async def test_a_stopping_worker_hands_suspects_back(scene: Scene) -> None:
    async with scene.fleet(1, grace=0.1) as fleet:
        await scene.enqueue(scene.innocents(5, mark="go"))
        await scene.ledger.until_run(*(f"innocent-{n}" for n in range(5)))
        os.kill(fleet.pids[0], signal.SIGKILL)
        await scene.ledger.until_run(*(f"innocent-{n}" for n in range(5)), count=2, within=LONG)
        [child] = fleet.children
        score = first_to_go(child.pid)
    await scene.broker.await_count(scene.queue, 5)

    assert score == "1000\n"
    assert not child.is_running()
    assert scene.ledger.done() == {}
    await scene.dead(0)


def first_to_go(pid: int) -> str:
    """How much Linux prefers a process when memory runs out, 1000 at most."""
    return Path(f"/proc/{pid}/oom_score_adj").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_rolling_restarts_with_full_prefetch_dead_letter_nothing(scene: Scene, number: signal.Signals) -> None:
    held, more = 2 * PREFETCH, 10
    count = held + more

    async with scene.fleet(2, grace=0.1) as fleet:
        await scene.enqueue(scene.innocents(count, mark="go"))
        for _ in range(ROLLS):
            await scene.broker.await_count(scene.queue, more)
            await asyncio.gather(*(fleet.replace(position, number) for position in range(2)))
        scene.touch("go")
        await scene.ledger.until_done({f"innocent-{n}" for n in range(count)}, within=LONG)
        await scene.until_empty()
        await scene.dead(0)

    assert scene.paid() == {}


async def test_what_came_back_far_too_often_is_dead_without_a_run(scene: Scene) -> None:
    async with scene.fleet(1):
        pass  # the queue is there
    await scene.enqueue(scene.innocents(1))
    await scene.broker.bounce(scene.queue, MOST_RETURNS)

    async with scene.fleet(1):
        [letter] = await scene.dead()

    assert scene.ledger.runs("innocent-0") == []
    assert letter.text("amqpjobs-dead-reason") == "attempts_exhausted"
    assert "came back 100 times" in letter.text("amqpjobs-dead-error")


async def test_what_came_back_often_waits_without_a_slot(scene: Scene) -> None:
    async with scene.fleet(1):
        pass  # the queue is there
    await scene.enqueue(scene.innocents(1))
    await scene.broker.bounce(scene.queue, PAUSED_FROM + 3)  # 8 s
    await scene.enqueue([scene.home.Innocent(name="fresh")])

    async with scene.fleet(1, concurrency=1):
        await scene.ledger.until_done({"fresh", "innocent-0"}, within=LONG)

    assert list(scene.ledger.attempts()) == ["fresh", "innocent-0"]  # in the order they began
    assert scene.paid() == {}


@pytest.mark.slow
async def test_children_without_jobs_are_no_more_after_a_while(scene: Scene) -> None:
    async with scene.fleet(1) as fleet:
        await scene.enqueue(scene.innocents(3, mark="go"))
        await scene.ledger.until_run(*(f"innocent-{n}" for n in range(3)))
        os.kill(fleet.pids[0], signal.SIGKILL)
        await scene.ledger.until_run(*(f"innocent-{n}" for n in range(3)), count=2)
        had = len(fleet.children)
        scene.touch("go")

        async def are_gone() -> bool:
            return fleet.children == []

        await eventually(are_gone, within=4 * PATIENCE)

    assert had == 1
