"""Keeps a number of worker processes going, and consumes nothing itself.

Each is a fresh interpreter in a session of its own, so that the terminal's Ctrl-C reaches the
supervisor alone and is handed on once. One that ends is replaced, after a pause when it had
hardly begun. A socket to each tells both sides when the other is gone; `supervised.py` is its
other end.

A reload starts the new process before it stops the old one: there is no gap, and for a while
one process more than asked for.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import spawn

from amqpjobs.clock import Clock
from amqpjobs.events import Events, ProcessEnded, ProcessStarted, Reloaded, Reloading, SupervisorStopping
from amqpjobs.worker.process import how_ended

_log = logging.getLogger(__name__)

#: Seconds of consuming that make a process's end no failure to begin.
YOUNG = 10.0
#: Seconds before one that ended young is replaced: 0.5, 1, 2 … 30.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
#: Seconds beyond its grace that a process may take to stop, its lifespan's end among them.
LAST_WORDS = 30.0

#: The command line of the process with a number, which finds its socket at a file descriptor.
Command = Callable[[int, int], Sequence[str]]


def pause_after(consumed: float, before: float) -> float:
    """How long to wait before a process is replaced that consumed so long; `before` was the last pause."""
    return 0.0 if consumed >= YOUNG else min(LONGEST_PAUSE, max(FIRST_PAUSE, before * 2))


def interpreter() -> list[str]:
    """A fresh Python that finds amqpjobs as this one did: by its flags, and in this folder only if so did we."""
    was_module = getattr(sys.modules["__main__"], "__spec__", None) is not None
    # As a script we did not look here before the standard library: a queue.py of the user's would take its place.
    return [*spawn.get_command_line()[:-3], *([] if was_module else ["-P"]), "-m", "amqpjobs"]


class Member:
    """One worker process."""

    def __init__(
        self, number: int, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, clock: Clock
    ) -> None:
        self.number = number
        self.pid = process.pid
        self.ready = asyncio.Event()
        self.over = asyncio.Event()
        #: Where it tells its health, once it has said so.
        self.port: int | None = None
        #: It has found nothing left to do.
        self.is_done = False
        self.is_asked = False
        self._process = process
        self._reader = reader
        self._writer = writer
        self._clock = clock
        self._ready_at = 0.0

    @property
    def consumed(self) -> float:
        """Seconds since it said that it consumes."""
        return self._clock.monotonic() - self._ready_at if self.ready.is_set() else 0.0

    async def ended(self) -> int:
        """Its exit code, when all that it had to say is heard."""
        hearing = asyncio.create_task(self._hear())
        code = await self._process.wait()
        with contextlib.suppress(TimeoutError):  # a handler's fork may hold the socket open
            async with self._clock.timeout(1):
                await asyncio.wait([hearing])
        hearing.cancel()
        self._writer.close()
        return code

    def ask(self) -> None:
        """Let it stop, once."""
        if not self.is_asked:
            self.is_asked = True
            self._send(signal.SIGTERM)

    def hurry(self) -> None:
        """Let it cut short what runs."""
        self.ask()
        if not self._writer.is_closing():
            self._writer.write(b"hurry\n")

    def kill(self) -> None:
        """With what its handlers have started."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _hear(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while line := await self._reader.readline():
                if line == b"ready\n":
                    self._ready_at = self._clock.monotonic()
                    self.ready.set()
                self.is_done = self.is_done or line == b"done\n"
                if line.startswith(b"health "):
                    self.port = int(line.split()[1])


class Place:
    """Where one process is at a time, and during a reload the next one waits."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.member: Member | None = None
        self.pause = 0.0
        #: Its process has found nothing left to do, and nobody takes its place.
        self.is_done = False
        #: A reload may have mended what was wrong: the pause is over.
        self.may_be_mended = asyncio.Event()
        #: Who holds it may put a process here.
        self.lock = asyncio.Lock()


@dataclass(frozen=True, slots=True)
class Post:
    """What its supervisor knows of a place."""

    number: int
    is_filled: bool
    #: Where its process tells its health; None: nowhere yet.
    port: int | None


class Supervisor:
    """Runs `count` processes until SIGTERM or SIGINT; a second one hurries, SIGHUP replaces them one by one.

    The first goes ahead, and the others follow when it consumes: what keeps it from starting is
    told once. `hopeless` are exit codes that end all when the very first process ends with one;
    `unclean` is the code of one that cut jobs short, and then also ours. `environment` is the
    processes' own; None: as ours.
    """

    def __init__(
        self,
        command: Command,
        *,
        count: int,
        clock: Clock,
        events: Events,
        grace: float,
        hopeless: frozenset[int],
        unclean: int,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = command
        self._environment = environment
        self._clock = clock
        self._events = events
        self._patience = grace + LAST_WORDS
        self._hopeless = hopeless
        self._unclean = unclean
        self._places = [Place(number) for number in range(1, count + 1)]
        self._alive: set[Member] = set()
        self._tasks: asyncio.TaskGroup | None = None
        #: Whether one of its processes has consumed.
        self.has_begun = False
        self._may_follow = asyncio.Event()
        self._stop_asked = asyncio.Event()
        self._reload_asked = asyncio.Event()
        self._had_terminal = _has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
        self._code = 0

    @property
    def is_stopping(self) -> bool:
        return self._stop_asked.is_set()

    @property
    def posts(self) -> list[Post]:
        """Its places, those left out that have found nothing left to do."""
        members = [(place.number, place.member) for place in self._places if not place.is_done]
        return [Post(number, each is not None, None if each is None else each.port) for number, each in members]

    async def run(self) -> int:
        """The exit code: 0 after a clean stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up)
        watching = asyncio.create_task(self._kill_at_last())
        try:
            async with asyncio.TaskGroup() as self._tasks:
                reloading = self._tasks.create_task(self._reload_when_asked())
                await asyncio.wait([self._tasks.create_task(self._keep(place)) for place in self._places])
                reloading.cancel()
                for member in self._alive:  # of a reload that was not over
                    member.ask()
        finally:
            watching.cancel()
            for member in self._alive:
                member.kill()
        return self._code

    def stop(self, why: str | None = None) -> None:
        """Let all processes drain; called again, let them hurry."""
        if self._stop_asked.is_set():
            for member in self._alive:
                member.hurry()
            return
        self._stop_asked.set()
        self._may_follow.set()
        self._events.emit(SupervisorStopping(len(self._alive), why))
        for member in self._alive:
            member.ask()

    def reload(self) -> None:
        """Replace all processes, one by one. Asked for during a reload: once more after it."""
        self._reload_asked.set()
        for place in self._places:
            place.may_be_mended.set()

    def _hung_up(self) -> None:
        # The same signal says that the terminal was closed, and then nobody could stop us with Ctrl-C.
        if self._had_terminal and not _has_terminal():
            self.stop("the terminal was closed")
        else:
            self.reload()

    # Keeping

    async def _keep(self, place: Place) -> None:
        """Have a process in this place until all stop, or until it finds nothing left to do."""
        if place is not self._places[0]:
            await self._may_follow.wait()
        while not self._stop_asked.is_set():
            member = await self._filled(place)
            if member is not None:
                await member.over.wait()
                if place.member is not member:  # a reload has put another one here
                    continue
                place.member = None
                if member.is_done:
                    place.is_done = True
                    return
            await self._rest(place)

    async def _filled(self, place: Place) -> Member | None:
        """The process that is in the place, or a new one; None when none can be started."""
        async with place.lock:
            if place.member is None and not self._stop_asked.is_set():
                place.member = await self._started(place)
            return place.member

    async def _started(self, place: Place) -> Member | None:
        assert self._tasks is not None
        place.may_be_mended.clear()
        ours, theirs = socket.socketpair()
        try:
            command = self._command(place.number, theirs.fileno())
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=self._environment,
            )
            reader, writer = await asyncio.open_unix_connection(sock=ours)
        except OSError as error:  # no more processes, files or memory
            ours.close()
            place.pause = pause_after(0, place.pause)
            _log.error("A process could not be started; the next try is in %g s: %s", place.pause, error)
            return None
        finally:
            theirs.close()
        member = Member(place.number, process, reader, writer, self._clock)
        self._alive.add(member)
        self._events.emit(ProcessStarted(member.number, member.pid))
        self._tasks.create_task(self._attend(place, member))
        self._tasks.create_task(self._await_ready(member))
        if self._stop_asked.is_set():
            member.ask()
        return member

    async def _await_ready(self, member: Member) -> None:
        await _first_of(member.ready, member.over)
        if member.ready.is_set():
            self.has_begun = True
            self._may_follow.set()

    async def _attend(self, place: Place, member: Member) -> None:
        """Wait for its end, and draw the conclusions."""
        code = await member.ended()
        self._alive.discard(member)
        consumed = member.consumed
        self._judge(member, code)
        is_replaced = not member.is_asked and not member.is_done and not self._stop_asked.is_set()
        if is_replaced:
            is_planned = member.ready.is_set() and code in (0, self._unclean)  # a limit was reached
            place.pause = 0.0 if is_planned else pause_after(consumed, place.pause)
        self._events.emit(
            ProcessEnded(
                member.number, member.pid, how_ended(code), code, consumed, place.pause if is_replaced else None
            )
        )
        member.over.set()

    def _judge(self, member: Member, code: int) -> None:
        """What its exit code means for ours."""
        was_killed = code < 0 and member.is_asked and member.ready.is_set()
        if code == self._unclean or was_killed:
            self._code = self._unclean
        elif member.is_asked and code > 0:
            self._code = self._code or code
        elif code in self._hopeless and not self.has_begun and not self._stop_asked.is_set():
            self._code = code
            self.stop("the first process could not start")

    async def _rest(self, place: Place) -> None:
        with contextlib.suppress(TimeoutError):
            async with self._clock.timeout(place.pause):
                await _first_of(self._stop_asked, place.may_be_mended)

    async def _kill_at_last(self) -> None:
        await self._stop_asked.wait()
        await self._clock.sleep(self._patience)
        self._kill(self._alive)

    def _kill(self, members: "set[Member]") -> None:
        for member in members:
            _log.error("Process %d did not stop within %g s and is killed", member.pid, self._patience)
            member.kill()

    # Reloading

    async def _reload_when_asked(self) -> None:
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            await self._replace_all([place for place in self._places if place.member is not None])

    async def _replace_all(self, places: Sequence[Place]) -> None:
        self._events.emit(Reloading(len(places)))
        replaced = 0
        for place in places:
            if not await self._has_replaced(place):
                break
            replaced += 1
        self._events.emit(Reloaded(replaced, len(places)))

    async def _has_replaced(self, place: Place) -> bool:
        """Put a new process in the place once it consumes, then drain the old one. False: it did not start."""
        async with place.lock:
            new = await self._started(place)
            if new is None:
                return False
            await _first_of(new.ready, new.over)
            if not new.ready.is_set() or self._stop_asked.is_set():
                return False
            old, place.member, place.pause = place.member, new, 0.0
        if old is not None:
            await self._drain(old)
        return True

    async def _drain(self, member: Member) -> None:
        member.ask()
        with contextlib.suppress(TimeoutError):
            async with self._clock.timeout(self._patience):
                await member.over.wait()
        if not member.over.is_set():
            self._kill({member})
            await member.over.wait()


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
