"""`make demo`: what becomes of three mails, with real parts and nothing installed beside them.

An embedded broker takes RabbitMQ's place, and a small SMTP server that of the world; the worker and the commands
are the ones a user would type, in processes of their own. The first mail is taken at once, the second at its third
try, the third refused for good, until a person puts it right.
"""

import asyncio
import json
import os
import shlex
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import asynccontextmanager
from email import message_from_bytes
from email.policy import default
from itertools import repeat
from pathlib import Path
from typing import Any, cast

from aiosmtpd.smtp import SMTP, Envelope, Session
from rich.console import Console
from rich.text import Text

from amqpjobs.devbroker import Broker

ROOT = Path(__file__).parents[2]
TARGET = "services.email"
ANN, BOB, EVE = "ann@example.com", "bob@example.com", "eve@example.com"
BUSY = "451 4.7.1 Busy, please come back later"
UNKNOWN = "550 5.1.1 Nobody of that name lives here"
#: Seconds for anything that is waited for; on an idle machine all take less than one.
PATIENCE = 30.0

_console = Console(highlight=False, soft_wrap=True)


def say(text: str = "", style: str = "") -> None:
    _console.print(Text(text, style))


class World:
    """An SMTP server that refuses some addresses as often as it is told to, and keeps what it has to tell."""

    def __init__(self) -> None:
        self._refusals: dict[str, Iterator[str]] = {}
        self._news: list[Text] = []

    def refuse(self, address: str, answers: Iterable[str]) -> None:
        """Answer the next mails to this address so; after the last one it is as good as any."""
        self._refusals[address] = iter(answers)

    def tell(self) -> None:
        """Show what happened since. Not at once: it would come between the lines of a command."""
        news, self._news = self._news, []
        for each in news:
            _console.print(each)

    def session(self) -> SMTP:
        return SMTP(self, hostname="mail.example.com", loop=asyncio.get_running_loop())

    # Called by aiosmtpd, by these names.

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        refusal = next(self._refusals.get(address, iter(())), None)
        if refusal is not None:
            self._news.append(Text(f"      mail server  {refusal}", "yellow"))
            return refusal
        envelope.rcpt_tos.append(address)
        return "250 Fine"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        mail = message_from_bytes(cast("bytes", envelope.content), policy=default)
        self._news.append(Text(f"      inbox        To: {mail['To']}  Subject: {mail['Subject']}", "bold green"))
        return "250 Taken"


@asynccontextmanager
async def listening(world: World) -> AsyncGenerator[int]:
    """The port it listens on, as long as the block lasts."""
    server = await asyncio.get_running_loop().create_server(world.session, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


class Shell:
    """Runs `amqpjobs …` with the demo's settings, and shows what was typed."""

    def __init__(self, broker: str, port: int) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("AMQPJOBS_", "EMAIL_"))}
        self._environment = clean | {
            "AMQPJOBS_URL": broker,
            "AMQPJOBS_LOG_FORMAT": "json",
            "EMAIL_SMTP_URL": f"smtp://127.0.0.1:{port}",
            "EMAIL_SENDER": "demo@example.com",
            "EMAIL_RETRY_DELAY": "1",
            "COLUMNS": "140",
        }

    async def run(self, *words: str) -> None:
        """Type a command, and show what it prints."""
        process = await self.start(*words)
        async with asyncio.timeout(PATIENCE):
            printed, _ = await process.communicate()
        for line in printed.decode().rstrip().splitlines():
            say(f"      {line}")
        if process.returncode:
            raise DemoError(f"`amqpjobs {' '.join(words)}` ended with exit code {process.returncode}.")

    async def start(self, *words: str) -> Process:
        say(f"    $ amqpjobs {shlex.join(words)}", "bold")
        command = [sys.executable, "-m", "amqpjobs", *words]
        return await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=self._environment, stdout=PIPE, stderr=STDOUT
        )

    @asynccontextmanager
    async def working(self, world: World) -> AsyncGenerator["Worker"]:
        """A worker, until the block ends."""
        process = await self.start("run", TARGET)
        try:
            yield Worker(process, world)
            process.send_signal(signal.SIGTERM)
            await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


class Worker:
    """A worker's log in plain words, and between its lines what the world did."""

    def __init__(self, process: Process, world: World) -> None:
        self._process = process
        self._world = world

    async def tell_until(self, message: str) -> None:
        """Read on, and tell what concerns a mail, up to a line with this message."""
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            async for line in self._process.stdout:
                entry = _parsed(line)
                self._world.tell()
                if words := _told(entry):
                    say(f"      worker       {words}")
                if entry["message"] == message:
                    return
        raise DemoError("The worker ended.")


class DemoError(Exception):
    """The demo cannot go on."""


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", json.loads(line))
    except ValueError:
        say(f"      worker       {line.decode(errors='replace').rstrip()}")
        return {"message": ""}


def _told(entry: dict[str, Any]) -> str:
    error = str(entry.get("error", "")).partition(": ")[2]
    match entry["message"]:
        case "working":
            return f"ready, takes from queue {entry['queues']}"
        case "completed":
            return f"attempt {entry['attempt']}: sent"
        case "failed, will be tried again":
            return f"attempt {entry['attempt']}: failed ({error}). Next try in {entry['delay']:.1f} s"
        case "dead-lettered":
            return f"attempt {entry['attempt']}: refused for good ({error}). It is a dead letter now"
        case _:
            return ""


def mail_to(address: str, subject: str) -> tuple[str, ...]:
    """The words of a command."""
    return ("send", TARGET, "email.send", f"to={address}", f"subject={subject}", "body=How are you?")


async def main() -> None:
    world = World()
    say("Three mails, and what becomes of them", "bold underline")
    say("An embedded broker stands in for RabbitMQ, and a small mail server for the world. Both end with the demo.\n")
    async with Broker(profile="4.3") as broker, listening(world) as port:
        shell = Shell(broker.url, port)
        say("A worker of the service services/email:")
        async with shell.working(world) as worker:
            await worker.tell_until("working")
            await send_at_once(shell, worker)
            await send_at_third_try(world, shell, worker)
            await send_after_repair(world, shell, worker)
    say("\nAll three have arrived. Now with your own hands:", "bold")
    say("    .venv/bin/amqpjobs dev services.email      a worker that reloads when you change the code")
    say("    README.md                                  a service of fifteen lines, and all the rest")


async def send_at_once(shell: Shell, worker: Worker) -> None:
    say("\n1. A mail that is sent at once", "bold")
    await shell.run(*mail_to(ANN, "Hello Ann"))
    await worker.tell_until("completed")


async def send_at_third_try(world: World, shell: Shell, worker: Worker) -> None:
    say("\n2. A mail that fails twice: the server is busy. Each wait is longer than the one before, and is the", "bold")
    say("   broker's: it costs the worker nothing", "bold")
    world.refuse(BOB, repeat(BUSY, 2))
    await shell.run(*mail_to(BOB, "Hello Bob"))
    for _ in range(2):
        await worker.tell_until("failed, will be tried again")
    await worker.tell_until("completed")


async def send_after_repair(world: World, shell: Shell, worker: Worker) -> None:
    say("\n3. A mail that is refused for good: no use in trying again, so it is kept with the reason", "bold")
    world.refuse(EVE, repeat(UNKNOWN))
    await shell.run(*mail_to(EVE, "Hello Eve"))
    await worker.tell_until("dead-lettered")
    await shell.run("dead", "ls", TARGET)
    say("   Somebody gives Eve a mailbox, and has the mail tried again:", "bold")
    world.refuse(EVE, ())
    await shell.run("dead", "requeue", TARGET, "--kind", "email.send")
    await worker.tell_until("completed")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except (DemoError, TimeoutError) as error:
        sys.exit(f"The demo ended early: {str(error) or f'something took longer than {PATIENCE:g} s.'}")
    except KeyboardInterrupt:
        sys.exit(130)
