"""What is loaded before a command begins: a process that works loads nothing that it may never need."""

import subprocess
import sys

import pytest

#: A worker is made as `amqpjobs run` does, up to the moment in which it would connect.
WORKER = """
import asyncio, sys
from amqpjobs.cli import cli
sys.argv = ["amqpjobs", "run", "plain"]
assert cli.get_command(cli.make_context("amqpjobs", ["run"]), "run").name == "run"
from amqpjobs import App, Job, Worker
app = App("plain")
class Greet(Job[None], kind="greet"):
    name: str
@app.handler(Greet)
async def greet(job: Greet) -> None: ...
async def made() -> None:
    Worker(app)
asyncio.run(made())
"""
COMMAND = """
import sys
from amqpjobs.cli import main
try:
    main()
except SystemExit as end:
    code = end.code
"""
TELL = "\nprint('loaded:', *sorted(set(sys.modules) & set({names!r})), file=sys.stderr)"
#: Schedules, a supervisor, process handlers, buffers, health, metrics, tools and what shows help.
NOT_FOR_A_WORKER = (
    "amqpjobs.beat.beat",
    "amqpjobs.beat.schedules",
    "amqpjobs.blocking",
    "amqpjobs.buffer",
    "amqpjobs.cli.beat",
    "amqpjobs.cli.console",
    "amqpjobs.deadletters",
    "amqpjobs.devbroker",
    "amqpjobs.health",
    "amqpjobs.telemetry",
    "amqpjobs.testing",
    "amqpjobs.worker.child",
    "amqpjobs.worker.supervisor",
    "croniter",
    "ctypes",
    "dateutil",
    "dotenv",
    "http",
    "multiprocessing",
    "opentelemetry",
    "prometheus_client",
    "pydantic_settings",
    "rich",
)
NOT_FOR_WORDS = ("aio_pika", "aiormq", "amqpjobs.app", "amqpjobs.settings", "asyncio", "orjson", "pydantic", "rich")


def loaded(script: str, names: tuple[str, ...], *arguments: str) -> list[str]:
    """Which of these modules there are when the script has run."""
    ran = subprocess.run(
        [sys.executable, "-c", script + TELL.format(names=names), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    told = ran.stderr.splitlines()[-1]
    assert told.startswith("loaded:"), ran.stderr
    return told.split()[1:]


def test_a_worker_loads_nothing_that_only_others_need() -> None:
    assert loaded(WORKER, NOT_FOR_A_WORKER) == []


def test_what_a_worker_does_need_would_be_found() -> None:
    assert loaded(WORKER, ("aiormq", "amqpjobs.cli.run")) == ["aiormq", "amqpjobs.cli.run"]


@pytest.mark.parametrize("arguments", [["--help"], [], ["nope"], ["--nope"], ["--version"]])
def test_help_and_other_words_are_said_without_anything_that_works(arguments: list[str]) -> None:
    assert loaded(COMMAND, NOT_FOR_WORDS, *arguments) == []


def test_what_was_loaded_is_not_looked_through_for_garbage_and_the_rest_is() -> None:
    script = f"{WORKER}\nimport gc\nassert gc.get_freeze_count() > 10_000\nassert gc.isenabled()"

    assert loaded(script, ()) == []
