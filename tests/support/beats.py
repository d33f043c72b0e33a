"""Beats in processes of their own, as a service manager keeps them: `Beats`. Who leads is told by their logs."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.apps import NAMESPACE
from tests.support.broker import PATIENCE, eventually

HOME = "tests.support.beat_app"
ROOT = Path(__file__).parents[2]


class Process:
    """One beat, and what it has logged."""

    def __init__(self, log: Path, environment: dict[str, str]) -> None:
        self._log = log
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "amqpjobs", "beat", HOME],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def lines(self, message: str) -> list[dict[str, Any]]:
        """What it said with these words; a line that is being written is none yet."""
        whole = self._log.read_text().rpartition("\n")[0].splitlines()
        found = [json.loads(line) for line in whole if line.startswith("{")]
        return [line for line in found if line["message"] == message]

    @property
    def enqueued(self) -> list[str]:
        """The ids of the jobs that were confirmed to it."""
        return [str(line["job_id"]) for line in self.lines("enqueued")]

    @property
    def led_at(self) -> str:
        """When it began to lead last, "" when it does not lead, as far as it knows."""
        began, ended = self.lines("the beat leads"), self.lines("the beat leads no longer")
        return str(began[-1]["time"]) if len(began) > len(ended) else ""

    @property
    def is_alive(self) -> bool:
        return self.popen.poll() is None


class Beats:
    """A beat of `beat_app` at each of these URLs, entered with one of them leading."""

    def __init__(self, urls: Sequence[str], name: str, folder: Path, *, forgets: bool = False) -> None:
        """With `forgets` those that are there at first never write down what they have published."""
        own = {"AMQPJOBS_NAMESPACE": NAMESPACE, "AMQPJOBS_LOG_FORMAT": "json", "BEAT_APP": name}
        self._environment = os.environ | own
        self._folder = folder
        self._urls = urls
        self._first = {"BEAT_FORGETS": "yes"} if forgets else {}
        self.processes: list[Process] = []

    async def __aenter__(self) -> Self:
        for url in self._urls:
            self.start(url, **self._first)
        await self.until_all_wait()
        await self.leader()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.until_all_wait()  # before, a signal ends a process as it does any other
        alive = [each.popen for each in self.processes if each.is_alive]
        for popen in alive:
            popen.send_signal(signal.SIGCONT)
            popen.send_signal(signal.SIGTERM)
        try:
            codes = await asyncio.gather(*(asyncio.to_thread(popen.wait, 2 * PATIENCE) for popen in alive))
            assert error is not None or set(codes) <= {0}
        finally:
            for popen in alive:
                popen.kill()

    def start(self, url: str, **environment: str) -> Process:
        """One more."""
        log = self._folder / f"beat-{len(self.processes)}"
        process = Process(log, self._environment | {"AMQPJOBS_URL": url} | environment)
        self.processes.append(process)
        return process

    async def until_all_wait(self) -> None:
        """Until all that live are there, and lead or wait for their turn."""

        async def are_there() -> bool:
            return all(each.lines("a beat waits for its turn") for each in self.processes if each.is_alive)

        await eventually(are_there, within=4 * PATIENCE)

    async def leader(self, *, other_than: Sequence[Process] = ()) -> Process:
        """The one that leads, as soon as there is one."""

        def found() -> Process | None:
            living = [each for each in self.processes if each.is_alive and each not in other_than]
            leading = [each for each in living if each.led_at]
            return max(leading, key=lambda each: each.led_at, default=None)

        async def is_there() -> bool:
            return found() is not None

        await eventually(is_there, within=4 * PATIENCE)
        process = found()
        assert process is not None
        return process
