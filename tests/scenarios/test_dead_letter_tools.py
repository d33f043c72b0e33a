"""The dead-letter commands as an operator uses them, also when they are killed in the middle.

There are 1,000 letters, and with --full 10,000, which takes about a minute and a half more.
"""

import asyncio
import json
import re
import signal
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from amqpjobs.amqp.browse import WINDOW
from amqpjobs.codec import milliseconds
from tests.support.broker import Broker, Foreign, Letter, eventually, plain_client
from tests.support.faults import FaultyProxy, Way
from tests.support.length import is_full
from tests.support.terminal import Shell, Terminal

LETTERS = 10_000 if is_full() else 1_000
REASONS = ("attempts_exhausted", "not_retryable", "invalid_arguments", "unreadable", "unknown_kind")
ERRORS = ("ConnectionError", "ValueError", "InvalidArgumentsError", "UnreadableError", "UnknownKindError")
COMMANDS = ("ls", "show", "requeue", "edit", "purge", "export", "import")

SERVICE = """
from amqpjobs import App, Job

class Order(Job[None], kind="{name}.order"):
    number: int
    note: str = ""

app = App("{name}")

@app.handler(Order)
async def order(job: Order) -> None:
    pass
"""


class Desk:
    """An operator's shell beside a service, and a plain look at its queues."""

    def __init__(self, name: str, folder: Path, url: str, broker: Broker) -> None:
        self.name = name
        self.folder = folder
        self.url = url
        self.broker = broker
        self.work, self.dead = f"tests.queue.{name}", f"tests.dead.{name}"
        self._shell = Shell(folder, AMQPJOBS_URL=url, AMQPJOBS_NAMESPACE="tests", COLUMNS="200")
        (folder / "service.py").write_text(SERVICE.replace("{name}", name))

    def type(self, command: str, **environment: str) -> Terminal:
        return self._shell.type(f"amqpjobs dead {command}", **environment)

    async def run(self, command: str, *, code: int = 0, **environment: str) -> str:
        """The output of a command that ends with this code."""
        ended, text = await asyncio.to_thread(lambda: self._shell.run(f"amqpjobs dead {command}", **environment))
        assert ended == code, f"{command}: {ended}\n{text}"
        return text

    async def listed(self) -> list[str]:
        """The ids that `ls` shows."""
        await self.run("ls service --json > listed.jsonl")
        lines = (self.folder / "listed.jsonl").read_text().splitlines()
        return [json.loads(line)["job_id"] for line in lines]

    async def apply(self) -> None:
        code, text = await asyncio.to_thread(self._shell.run, "amqpjobs topology apply service")
        assert code == 0, text

    async def bury(self, count: int) -> list[str]:
        """So many letters of five reasons in turn; their ids, the ledger outside the broker."""
        ids = [f"{self.name}-job-{n}" for n in range(count)]
        messages: list[tuple[bytes, Foreign]] = [
            (json.dumps({"number": n}).encode(), self._letter(n, job_id)) for n, job_id in enumerate(ids)
        ]
        share = max(100, -(-count // 20))  # many in parallel, for each publish waits for its confirm
        await asyncio.gather(
            *(
                self.broker.publish_all("tests.queues", self.dead, messages[start : start + share])
                for start in range(0, count, share)
            )
        )
        return ids

    def _letter(self, n: int, job_id: str) -> Foreign:
        headers: dict[str, object] = {
            "amqpjobs-id": job_id,
            "amqpjobs-attempt": 5,
            "amqpjobs-dead-reason": REASONS[n % 5],
            "amqpjobs-dead-error": f"{ERRORS[n % 5]}: it \x1b[31mbroke\x1b[0m\nforged",
            "amqpjobs-dead-traceback": "Traceback (most recent call last):\n" + "  somewhere\n" * 40,
            "amqpjobs-dead-at": milliseconds(datetime.now(UTC) - timedelta(minutes=n)),
            "amqpjobs-dead-queue": self.name,
        }
        return {"kind": f"{self.name}.order", "message_id": f"m-{job_id}", "headers": headers}

    async def ids(self, queue: str, count: int) -> list[str]:
        """All ids in a queue, of which there must be just so many; it is then empty.

        What somebody held who is gone may be back a moment later.
        """
        await self.broker.await_count(queue, count)
        letters: list[Letter] = await self.broker.take(queue, count, within=300)
        return [letter.text("amqpjobs-id") for letter in letters]


@pytest.fixture
async def desk(url: str, unique: Callable[[], str], tmp_path: Path) -> AsyncGenerator[Desk]:
    async with plain_client(url) as broker:
        desk = Desk(unique(), tmp_path, url, broker)
        await desk.apply()
        yield desk
        await broker.delete_queue(desk.work)
        await broker.delete_queue(desk.dead)


async def test_a_requeue_killed_in_the_middle_and_run_again_loses_nothing(desk: Desk) -> None:
    ledger = await desk.bury(LETTERS)
    meant = {job_id for n, job_id in enumerate(ledger) if n % 5 in (0, 1) or n % 10 == 2}
    command = "requeue service --reason '{}'"

    listed = await desk.listed()
    groups = await desk.run("ls service --group --json")
    sent, moved = await _kill_in_the_middle(desk, command.format("attempts_exhausted"))
    came = await desk.ids(desk.work, sent)
    await desk.broker.await_count(desk.dead, LETTERS - moved)  # what it held comes back
    left = set(await desk.listed())
    in_flight = left & set(came)
    first = await desk.run(command.format("attempts_exhausted"))
    await desk.run(command.format("not_retryable"))
    some = " ".join(f"--id {ledger[n]}" for n in range(2, LETTERS, 10))
    await desk.run(f"requeue service {some}")

    assert Counter(listed) == Counter(ledger)
    counted = {(group["reason"], group["exception"]): group["count"] for group in map(json.loads, groups.splitlines())}
    assert counted == dict.fromkeys(zip(REASONS, ERRORS, strict=True), LETTERS // 5)
    assert left | set(came) == set(ledger), "a letter was lost"
    assert 0 < len(in_flight) == sent - moved <= WINDOW
    assert f"{LETTERS // 5 - len(came) + len(in_flight):,} requeued of" in first
    came += await desk.ids(desk.work, len(meant) - moved)
    assert set(came) == meant
    assert {job_id for job_id, copies in Counter(came).items() if copies > 1} == in_flight
    assert max(Counter(came).values()) <= 2
    assert Counter(await desk.ids(desk.dead, LETTERS - len(meant))) == Counter(set(ledger) - meant)


async def _kill_in_the_middle(desk: Desk, command: str) -> tuple[int, int]:
    """SIGKILL a command that has moved some and waits for the confirms of others; how many it sent, and moved."""
    async with FaultyProxy(desk.url).running() as proxy:
        confirms = proxy.hold(Way.FROM_BROKER, "basic.ack", nth=2, count=LETTERS)

        async def is_in_the_middle() -> bool:
            return proxy.to_broker["basic.publish"] > proxy.to_broker["basic.ack"] > 0

        async def has_passed_all() -> bool:
            return proxy.open == 0

        with desk.type(command, AMQPJOBS_URL=proxy.url) as terminal:
            await confirms.met()
            await eventually(is_in_the_middle)
            terminal.signal(signal.SIGKILL)
            assert await asyncio.to_thread(terminal.end) == -signal.SIGKILL
        await eventually(has_passed_all)
        return proxy.to_broker["basic.publish"], proxy.to_broker["basic.ack"]


async def test_ctrl_c_ends_after_what_is_under_way_and_tells_how_far_it_got(desk: Desk) -> None:
    ledger = await desk.bury(LETTERS)

    async with FaultyProxy(desk.url).running() as proxy:
        confirms = proxy.hold(Way.FROM_BROKER, "basic.ack", nth=2, count=LETTERS)  # so that it does not end before
        with desk.type("requeue service", AMQPJOBS_URL=proxy.url) as terminal:
            await confirms.met()
            terminal.signal(signal.SIGINT)
            proxy.release()
            assert await asyncio.to_thread(terminal.end) == 130

    assert "stopped before the end" in terminal.text
    told = re.search(r"([\d,]+) requeued of", terminal.text)
    assert told, terminal.text
    done = int(told[1].replace(",", ""))
    requeued, left = await desk.ids(desk.work, done), await desk.ids(desk.dead, LETTERS - done)
    assert Counter(requeued + left) == Counter(ledger)
    assert "Traceback" not in terminal.text


async def test_a_terminal_sees_what_died_without_escapes(desk: Desk) -> None:
    ledger = await desk.bury(10)

    listed = await desk.run("ls service --rows 4")
    grouped = await desk.run(f"ls --queue {desk.name} --group")
    shown = await desk.run(f"show service {ledger[1]}")
    as_json = await desk.run(f"show --queue {desk.name} {ledger[1]} --json")

    assert all(job_id in listed for job_id in ledger[:4])
    assert ledger[5] not in listed
    assert "… and 6 more: --rows 0 shows all" in listed
    assert "10 of 10 in dead letters of" in listed
    assert "ConnectionError" in grouped
    assert "not_retryable" in shown
    assert "somewhere" in shown
    assert '"number": 1' in shown
    assert json.loads(as_json)["body"] == '{"number": 1}'
    for text in (listed, grouped, shown, as_json):
        assert "\x1b" not in text
        assert "\nforged" not in text


async def test_a_payload_is_edited_checked_and_requeued(desk: Desk) -> None:
    ledger = await desk.bury(2)
    edit = f"edit service {ledger[0]}"

    unchanged = await desk.run(edit, EDITOR="true")
    wrong = await desk.run(edit, code=1, EDITOR="sed -i s/0/abc/")
    invalid = await desk.run(edit, code=1, EDITOR="""sed -i 's/0/"abc"/'""")
    misspelt = await desk.run(edit, code=1, EDITOR="""sed -i 's/0/0, "nte": "x"/'""")
    homeless = await desk.run(f"edit --queue {desk.name} {ledger[0]}", code=2, EDITOR="true")
    assert await desk.broker.count(desk.work) == 0
    edited = await desk.run(edit, EDITOR="""sed -i 's/0/7, "note": "mended"/'""")

    assert "nothing changed" in unchanged
    assert "Nothing was changed" in wrong
    assert "number: Input should be a valid integer" in invalid
    assert "Did you mean 'note'?" in misspelt
    assert "--unchecked" in homeless
    assert "and requeued" in edited
    (letter,) = await desk.broker.take(desk.work, 1)
    assert json.loads(letter.body) == {"number": 7, "note": "mended"}
    assert letter.text("amqpjobs-id") == ledger[0]
    assert await desk.ids(desk.dead, 1) == [ledger[1]]


async def test_a_purge_needs_to_know_which_and_that_it_is_meant(desk: Desk) -> None:
    ledger = await desk.bury(10)

    which = await desk.run("purge service", code=2)
    nobody = await desk.run("purge service --all", code=2)
    dry = await desk.run("purge service --reason unreadable --dry-run")
    done = await desk.run("purge service --older-than 5m30s --yes")

    assert "--older-than" in which
    assert "10 would be deleted. Nobody can be asked here: say --yes." in " ".join(nobody.replace("│", " ").split())
    assert "2 would be deleted of 10" in dry
    told = re.search(r"(\d+) deleted of 10", done)
    assert told, done
    assert int(told[1]) > 0
    assert set(await desk.ids(desk.dead, 10 - int(told[1]))) < set(ledger)


async def test_an_export_is_a_file_that_brings_everything_back(desk: Desk) -> None:
    ledger = await desk.bury(10)

    exported = await desk.run("export service letters.jsonl")
    refused = await desk.run("export service letters.jsonl", code=2)
    piped = await desk.run("export service --reason unreadable -")
    await desk.run("purge service --all --yes")
    dry = await desk.run("import letters.jsonl --dry-run")
    imported = await desk.run("import letters.jsonl")
    again = await desk.run("import letters.jsonl")
    broken = await desk.run("import service.py", code=1)

    assert "10 exported of 10" in exported
    assert "--force" in refused
    assert len([line for line in piped.splitlines() if line.startswith("{")]) == 2
    assert (desk.folder / "letters.jsonl").stat().st_mode & 0o077 == 0
    assert "10 would be imported" in dry
    assert "10 imported of 10" in imported
    assert "10 left out: it is there already" in again
    assert "Line 2 is no exported dead letter" in broken
    assert Counter(await desk.ids(desk.dead, 10)) == Counter(ledger)


async def test_dry_runs_change_nothing(desk: Desk) -> None:
    ledger = await desk.bury(10)

    dry = await desk.run("requeue service --exception ValueError --dry-run --json")
    await desk.run("export service nowhere.jsonl --dry-run")

    assert json.loads(dry)["done"] == 2
    assert not (desk.folder / "nowhere.jsonl").exists()
    assert Counter(await desk.ids(desk.dead, 10)) == Counter(ledger)


async def test_mistakes_are_answered_with_what_to_do(desk: Desk) -> None:
    answers = {
        "ls": (2, "--queue NAME"),
        "ls --queue nowhere": (1, "There is no queue 'tests.dead.nowhere'"),
        "ls service --older-than soon": (2, "15m"),
        "show service nobody": (1, "`amqpjobs dead ls` shows their ids"),
        "import nowhere.jsonl": (2, "cannot be read"),
        "export service nowhere/letters.jsonl": (2, "cannot be written"),
    }

    for command, (code, words) in answers.items():
        text = await desk.run(command, code=code)
        assert words in text, (command, text)


async def test_every_subcommand_explains_itself_with_an_example(desk: Desk) -> None:
    listed = await desk.run("--help")

    for command in COMMANDS:
        assert command in listed
        assert f"amqpjobs dead {command} " in await desk.run(f"{command} --help")


async def test_other_places_need_no_target(desk: Desk) -> None:
    for place in ("unroutable", "parked"):
        assert " in " + place in await desk.run(f"ls --place {place} --kind '{desk.name}.*'")
        assert "0 requeued" in await desk.run(f"requeue --place {place} --kind '{desk.name}.*'")
