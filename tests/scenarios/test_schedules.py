"""Schedules are changed from a terminal, while beats in processes of their own lead, die and come back."""

import asyncio
import json
import re
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from amqpjobs.topology import Topology
from tests.support.apps import NAMESPACE
from tests.support.broker import PATIENCE, plain_client
from tests.support.terminal import Shell, Terminal

SERVICE = """
from amqpjobs import App, Job, cron, every

class Sweep(Job[None], kind="{name}.sweep"):
    room: str = "hall"

app = App("{name}")

@app.schedule(every(1), job=Sweep(), name="sweep")
@app.schedule(cron("0 9 * * mon-fri", timezone="Europe/Berlin"), job=Sweep(), name="mornings", misfire="skip")
@app.handler(Sweep)
async def sweep(job: Sweep) -> None: ...
"""


@pytest.fixture
def desk(url: str, unique: Callable[[], str], tmp_path: Path) -> Iterator[Shell]:
    """A shell beside the service `sweeper`."""
    name = unique()
    (tmp_path / "sweeper.py").write_text(SERVICE.replace("{name}", name))
    yield Shell(tmp_path, AMQPJOBS_URL=url, AMQPJOBS_NAMESPACE=NAMESPACE, AMQPJOBS_LOG_FORMAT="json")
    asyncio.run(sweep(url, name))


async def sweep(url: str, name: str) -> None:
    topology = Topology(NAMESPACE)
    async with plain_client(url) as broker:
        for queue in topology.beat(name).queues:
            await broker.delete_queue(queue.name)
        for queue_name in (topology.work_queue(name), topology.dead_queue(name)):
            await broker.delete_queue(queue_name)


def typed(desk: Shell, command: str, *, code: int = 0) -> str:
    verb, _, rest = command.partition(" ")
    patience = "" if verb == "ls" else f"--deadline {PATIENCE:g} "  # a beat that is slow to answer is no failure
    ended, text = desk.run(f"amqpjobs schedule {verb} {patience}{rest}")
    assert ended == code, f"{command}: {ended}\n{text}"
    return text


def completed(worker: Terminal, schedule: str) -> list[datetime]:
    """The instants of a schedule's ticks that ran."""
    found = re.findall(rf'"message":"completed".*?"job_id":"{schedule}@(2[^"]+)"', worker.text)
    return [datetime.fromisoformat(each) for each in found]


def shows_ticks(worker: Terminal, schedule: str, count: int) -> bool:
    """Wait for so many more; none that came before counts."""
    if not worker.shows(f'"message":"completed"…"job_id":"{schedule}@2'):
        return False
    latest = max([datetime.now(UTC), *completed(worker, schedule)])
    for number in range(1, count + 1):
        instant = latest.replace(microsecond=0) + timedelta(seconds=number)
        if not worker.shows(f'"message":"completed"…"job_id":"{schedule}@{instant:%Y-%m-%dT%H:%M:%S}Z"'):
            return False
    return True


def test_what_is_said_in_a_terminal_is_so_whichever_beat_leads(desk: Shell) -> None:
    with (
        desk.type("amqpjobs run sweeper") as worker,
        desk.type("amqpjobs beat sweeper") as first,
        desk.type("amqpjobs beat sweeper") as second,
    ):
        assert shows_ticks(worker, "sweep", 2), worker.text

        assert "paused sweep" in typed(desk, "pause sweeper sweep")
        rested = datetime.now(UTC)
        listed = json.loads(typed(desk, "ls sweeper --json"))
        leading, waiting = (first, second) if "the beat leads" in first.text else (second, first)
        leading.signal(signal.SIGKILL)
        assert waiting.shows('"message":"the beat leads"'), waiting.text
        added = typed(desk, f"add sweeper kitchen --every 1 {listed['app']}.sweep room=kitchen")
        assert shows_ticks(worker, "kitchen", 3), worker.text  # so much time has passed
        table = typed(desk, "ls sweeper")
        triggered = json.loads(typed(desk, "trigger sweeper sweep --json"))
        assert worker.shows(f'"message":"completed"…"job_id":"{triggered["job_id"]}"'), worker.text
        before = datetime.now(UTC)
        assert "resumed sweep" in typed(desk, "resume sweeper sweep")
        assert shows_ticks(worker, "sweep", 2), worker.text
        assert "removed kitchen" in typed(desk, "remove sweeper kitchen")
        ended = datetime.now(UTC)
        assert shows_ticks(worker, "sweep", 3), worker.text
        for terminal in (worker, waiting):
            terminal.signal(signal.SIGTERM)
            assert terminal.end() == 0, terminal.text

    margin = timedelta(seconds=1)
    ticks = completed(worker, "sweep")
    assert not [each for each in ticks if rested + margin < each < before - margin]
    assert [each for each in ticks if each > before]
    assert not [each for each in completed(worker, "kitchen") if each > ended + margin]
    assert listed["schedules"][0]["paused_since"] is not None
    assert listed["leader"]["host"]
    assert re.search(r"sweep +every 1 s .*declared, paused", table), table
    assert re.search(r"kitchen +every 1 s .*added", table), table
    assert "leads since" in table
    assert "added kitchen" in added


def test_what_is_said_while_no_beat_runs_is_recorded_and_honoured_by_the_next(desk: Shell) -> None:
    recorded = "recorded: no beat answers now; the next one that leads will honour it"
    with desk.type("amqpjobs run sweeper") as worker:
        assert worker.shows('"message":"working"'), worker.text

        assert "No beat runs." in typed(desk, "ls sweeper")
        assert recorded in typed(desk, "pause sweeper sweep")
        name = json.loads(typed(desk, "ls sweeper --json"))["app"]
        assert recorded in typed(desk, f'add sweeper kitchen --every 1 {name}.sweep \'{{"room": "kitchen"}}\'')
        assert f"{recorded} within an hour" in typed(desk, "trigger sweeper mornings")
        with desk.type("amqpjobs beat sweeper") as beat:
            assert worker.shows('"message":"completed"…"job_id":"mornings@trigger.'), worker.text
            assert shows_ticks(worker, "kitchen", 3), worker.text
            assert beat.shows('"message":"a schedule was changed"'), beat.text
            beat.signal(signal.SIGINT)
            assert beat.end() == 0, beat.text

    assert completed(worker, "sweep") == []


def test_what_cannot_be_is_told_with_its_exit_code_and_with_what_may_have_been_meant(desk: Shell) -> None:
    with desk.type("amqpjobs beat sweeper") as beat:
        assert beat.shows('"message":"the beat leads"'), beat.text
        name = json.loads(typed(desk, "ls sweeper --json"))["app"]

        assert "Did you mean 'sweep'?" in typed(desk, "pause sweeper sweeep", code=1)
        assert "is declared in the code" in typed(desk, "remove sweeper sweep", code=1)
        assert "The code declares a schedule 'sweep'" in typed(
            desk, f"add sweeper sweep --every 1 {name}.sweep", code=1
        )
        assert "room" in typed(desk, f"add sweeper kitchen --every 1 {name}.sweep room:=[]", code=1)
        beat.signal(signal.SIGTERM)
        assert beat.end() == 0, beat.text
