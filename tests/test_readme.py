"""The README tells the truth: every file and every command in it is run, and what it shows comes out.

A Python block that begins with `# name.py` is that file. Console blocks are typed in order:
`$ amqpjobs run` and `$ amqpjobs dev` keep running in the background, anything else runs to its end with exit
code 0, and the lines below a command must come out, `…` standing for anything.
"""

import asyncio
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from amqpjobs.cli import COMMANDS
from amqpjobs.outcome import DeadReason
from amqpjobs.settings import Settings
from tests.support.broker import plain_client
from tests.support.terminal import Terminal

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def environment(url: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A newcomer's shell: the commands on PATH, the broker's address, nothing else of ours."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AMQPJOBS_", "EMAIL_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    asyncio.run(_clear(url))
    # Wide enough that tables are not folded.
    yield clean | {"PATH": path, "AMQPJOBS_URL": url, "COLUMNS": "200", "AMQPJOBS_LOG_FORMAT": "text"}
    asyncio.run(_sweep(url))


def test_every_file_and_command_of_the_readme_does_what_it_shows(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "services").symlink_to(ROOT / "services")
    for language, block in BLOCKS:
        if language == "python":
            (tmp_path / _file_name(block)).write_text(block)

    with ExitStack() as left:
        running: list[Terminal] = []
        for command, expected in _typed():
            terminal = left.enter_context(Terminal(command, tmp_path, environment))
            for line in expected:
                assert terminal.shows(line), f"$ {command}\ndid not show {line!r} but\n{terminal.text}"
            if command.startswith(("amqpjobs run", "amqpjobs dev")):
                running.append(terminal)
            else:
                assert terminal.end() == 0, f"$ {command}\n{terminal.text}"
        assert running[0].shows("Hello, Ada!  job_id=… kind=hello.greet attempt=1"), running[0].text
        for terminal in running:
            terminal.signal(signal.SIGTERM)
            assert terminal.end() == 0, terminal.text

    assert list((tmp_path / "outbox").glob("*.eml"))


def test_every_make_target_of_the_readme_exists_and_ci_runs_it() -> None:
    makefile, ci = (ROOT / "Makefile").read_text(), (ROOT / ".ci/run").read_text()
    targets = [
        target
        for language, block in BLOCKS
        if language == "shell"
        for target in re.findall(r"^make (\w+)", block, re.M)
    ]

    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
        # What takes longer than a change may wait is run by hand, and its output kept.
        assert f"make {target}" in ci or target in ("chaos", "soak", "twins", "bench")


def test_the_settings_table_names_each_setting_and_its_default() -> None:
    rows = dict(re.findall(r"^\| (`AMQPJOBS_.*?) \| (.*?) \|", README, re.MULTILINE))
    named = {name: default for cell, default in rows.items() for name in re.findall(r"`(?:AMQPJOBS)?_(\w+)`", cell)}

    for name, info in Settings.model_fields.items():
        default = named.pop(name.upper())
        if isinstance(info.default, int | float) and not isinstance(info.default, bool):
            assert float(default) == info.default, name
        elif isinstance(info.default, str):
            assert default.strip("`") == info.default, name
    assert named == {}


def test_every_command_exit_code_and_dead_reason_is_in_the_readme() -> None:
    for command in COMMANDS:
        assert f"`amqpjobs {command}" in README
    for reason in DeadReason:
        assert f"`{reason}`" in README
    assert "3 import, 4 broker, 5 topology mismatch, 6 unclean shutdown" in README


def test_every_folder_and_file_the_readme_names_exists() -> None:
    named = re.findall(r"`((?:amqpjobs|services|tests)/[\w/.]*)`", README)

    assert named
    for name in named:
        assert (ROOT / name).exists(), name


def _typed() -> Iterator[tuple[str, list[str]]]:
    """Each command of the console blocks, with the lines it must show."""
    for language, block in BLOCKS:
        if language != "console":
            continue
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = part.splitlines()
            yield command, [line for line in lines if line.strip(" …")]


def _file_name(block: str) -> str:
    found = re.match(r"# (\w+\.py)\n", block)
    assert found, f"A Python block of the README must begin with its file's name:\n{block}"
    return found[1]


async def _clear(url: str) -> None:
    """What other tests have left there would be requeued by a command of the README."""
    async with plain_client(url) as broker:
        if await broker.exists("amqpjobs.unroutable.v1"):
            await broker.purge("amqpjobs.unroutable.v1")


async def _sweep(url: str) -> None:
    async with plain_client(url) as broker:
        services = ("hello", "shop", "slow", "email", "numbers", "harbour", "images", "rows")
        scheduling = ("ticking", "reports", "crawling")
        for app in (*services, *scheduling):
            await broker.delete_queue(f"amqpjobs.queue.{app}")
            await broker.delete_queue(f"amqpjobs.dead.{app}")
        for queue in ("lease", "register", "control", "runs"):
            for app in scheduling:
                await broker.delete_queue(f"amqpjobs.beat.{queue}.v1.{app}")
