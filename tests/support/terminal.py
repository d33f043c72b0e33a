"""A shell in a folder: commands are typed, their output is read as it comes, signals are sent."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Self

#: A generous wait for what should come at once.
PATIENCE = 60.0


class Terminal:
    """One command in a session of its own; entered, it leaves nothing behind."""

    def __init__(self, command: str, folder: Path, environment: dict[str, str]) -> None:
        self.command = command
        #: All it has printed so far, on both streams.
        self.text = ""
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            f"exec env {command}",  # so that a signal reaches it, and not a shell
            shell=True,
            cwd=folder,
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=[self._process.stdout])
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self.end()

    def shows(self, line: str) -> bool:
        """Wait for a line, `…` standing for anything; False when the command ends without it."""
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in line.split("…")))
        with self._news:
            self._news.wait_for(lambda: pattern.search(self.text) or not self._reader.is_alive(), PATIENCE)
            return pattern.search(self.text) is not None

    def signal(self, number: signal.Signals) -> None:
        """As the terminal's keys or `kill` send it."""
        os.killpg(self._process.pid, number)

    def end(self) -> int:
        """Wait for its end; the exit code."""
        code = self._process.wait(PATIENCE)
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        return code

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            with self._news:
                self.text += line
                self._news.notify_all()
        with self._news:
            self._news.notify_all()


class Shell:
    """Types commands in a folder, with this Python's programs on the path and settings of ours only as given."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        clean = {key: value for key, value in os.environ.items() if not key.startswith("AMQPJOBS_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
        self.environment = clean | {"PATH": path, "COLUMNS": "160", "TMPDIR": str(folder)} | environment

    def type(self, command: str, **environment: str) -> Terminal:
        return Terminal(command, self.folder, self.environment | environment)

    def run(self, command: str, **environment: str) -> tuple[int, str]:
        """Exit code and output of a command that ends by itself."""
        with self.type(command, **environment) as terminal:
            return terminal.end(), terminal.text
