"""One child process, and the conversations with it, seen from the worker.

Each conversation has a number, so that a child can be asked about many jobs at once. There is
a socket for each direction: one that can no longer be written to, since the child is dead, is
closed with all that it still holds to be read, and that tells whose job has killed the child.

A child leads a session of its own, so that the terminal's Ctrl-C does not reach it, and so
that killing it takes along what its handler has forked.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from itertools import count
from typing import Any

from amqpjobs.clock import Clock
from amqpjobs.codec import RemoteError, loads
from amqpjobs.errors import ProcessDiedError
from amqpjobs.job import Job
from amqpjobs.outcome import Outcome
from amqpjobs.worker.crossing import LENGTHS, Frame, Head, error_of, outcome_of, packed, record_of

_log = logging.getLogger(__name__)

#: Seconds a child may take to leave its lifespan, or to end once its ends of the sockets are closed.
LAST_WORDS = 5.0
#: Seconds it may take to end one job it was asked to end; less than a stopping worker gives its runs.
CANCEL_PATIENCE = 3.0
#: The number of the first conversation, which is about the child's start.
_START = 0
#: What a child begins with; only the standard library is found before it has our sys.path.
#: SIGINT and SIGTERM are sent to all of a service at once, and the worker decides what they mean.
#: They are not ignored, since programs that a handler starts would inherit that.
_PROGRAM = """\
import signal, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
heard, said, *sys.path = sys.argv[1:]
from amqpjobs.worker.child import main
main(int(heard), int(said))
"""


class NotTakenError(ProcessDiedError):
    """It ended before it had the job: nothing was run."""


class Talk:
    """One question to a child, until it is answered."""

    __slots__ = ("answer", "has_taken", "number", "on_taken")

    def __init__(self, number: int, answer: "asyncio.Future[Frame]", on_taken: Callable[[], object]) -> None:
        self.number = number
        self.answer = answer
        #: Whether the child has begun with the job; told before anything of the job is run.
        self.has_taken = False
        self.on_taken = on_taken
        # Whoever asked may be gone by then; an error that nobody reads is no news.
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())


class Child:
    """One process, and the conversations with it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._sockets: list[asyncio.StreamWriter] = []
        self._exit: asyncio.Future[int] = self._loop.create_future()
        self._listening: asyncio.Task[None] | None = None
        self._talks: dict[int, Talk] = {}
        self._numbers = count(_START)
        self._is_killed = False

    @property
    def is_over(self) -> bool:
        """Whether it takes no more jobs."""
        return self._is_killed or self._listening is None or self._listening.done()

    def on_over(self, call: Callable[["Child"], object]) -> None:
        assert self._listening is not None
        self._listening.add_done_callback(lambda _: call(self))

    async def start(self, introduction: Head) -> None:
        """Returns when its lifespan is entered. Raises RemoteError with what went wrong there."""
        to_child, heard = socket.socketpair()
        from_child, said = socket.socketpair()
        try:
            self._spawn(heard, said)
            _, self._writer = await asyncio.open_unix_connection(sock=to_child)
            reader, silent = await asyncio.open_unix_connection(sock=from_child)
            self._sockets = [self._writer, silent]
        except BaseException:
            to_child.close()
            from_child.close()
            self.kill()
            raise
        finally:
            heard.close()
            said.close()
        self._listening = asyncio.create_task(self._listen(reader))
        head, _ = await self._ask(introduction, b"")
        if head["say"] == "failed":
            await self._end()
            raise error_of(head, "A process for handlers could not start. ") or RemoteError("It could not start.")

    async def run(self, frame: Frame, job: type[Job[Any]], on_taken: Callable[[], object] = bool) -> Outcome:
        """The outcome of one job. Whoever cancels this kills the child."""
        return _outcome(await self._ask(*frame, on_taken), job)

    async def share(self, frame: Frame, job: type[Job[Any]], on_taken: Callable[[], object] = bool) -> Outcome:
        """The outcome of one job among others. Whoever cancels this ends just this job."""
        with self._talk(*frame, on_taken) as talk:
            try:
                await asyncio.wait([talk.answer])
            except asyncio.CancelledError:
                await self._end_one(talk)
                if _has_ended(talk):  # before it heard, or as its own answer to the cancellation
                    return _outcome(talk.answer.result(), job)
                raise
            return _outcome(talk.answer.result(), job)

    async def answers(self, within: float) -> bool:
        """Whether it says something when asked, or is over."""
        if self.is_over:
            return True
        with self._talk({"say": "ping"}, b"") as talk, contextlib.suppress(TimeoutError):
            async with self._clock.timeout(within):
                await asyncio.wait([talk.answer])
        return talk.answer.done()

    async def stop(self) -> None:
        """Let it leave its lifespan; kill it if that takes too long."""
        if self._listening is None:
            return self.kill()
        if not self.is_over and not self._talks:
            self._send({"say": "stop"}, b"")
            with contextlib.suppress(TimeoutError):
                async with self._clock.timeout(LAST_WORDS):
                    await asyncio.wait([self._listening])
        return await self._end()

    def kill(self) -> None:
        """Whatever it does. Its jobs' conversations end with ProcessDiedError."""
        self._is_killed = True
        with self._lock:
            if self._process is not None and self._process.returncode is None:
                _kill_session(self._process.pid)

    async def _ask(self, head: Head, body: bytes, on_taken: Callable[[], object] = bool) -> Frame:
        with self._talk(head, body, on_taken) as talk:
            try:
                return await talk.answer
            except asyncio.CancelledError:
                await self._end()
                raise

    @contextlib.contextmanager
    def _talk(self, head: Head, body: bytes, on_taken: Callable[[], object] = bool) -> Generator[Talk]:
        if self.is_over:
            raise NotTakenError("A process for handlers had ended before it took a job.")
        talk = Talk(next(self._numbers), self._loop.create_future(), on_taken)
        self._talks[talk.number] = talk
        try:
            self._send(head | {"id": talk.number}, body)
            yield talk
        finally:
            del self._talks[talk.number]

    async def _end_one(self, talk: Talk) -> None:
        """Ask it to end one job; kill it if that takes too long, since nobody may run the job again before."""
        self._send({"say": "cancel", "id": talk.number}, b"")
        try:
            async with self._clock.timeout(CANCEL_PATIENCE):
                await asyncio.wait([talk.answer])
        except (TimeoutError, asyncio.CancelledError):
            await self._end()

    def _send(self, head: Head, body: bytes) -> None:
        assert self._writer is not None
        self._writer.writelines(packed(head, body))

    async def _end(self) -> None:
        """Kill it, and return when it is gone: nobody may run its job again before."""
        self.kill()
        if self._listening is not None:
            await asyncio.wait([self._listening])

    # The process

    def _spawn(self, heard: socket.socket, said: socket.socket) -> None:
        from multiprocessing import spawn  # most workers never have a child

        found: list[str] = [*spawn.get_command_line()[:-3], "-c", _PROGRAM]
        fds = [heard.fileno(), said.fileno()]
        self._process = subprocess.Popen(
            [*found, *map(str, fds), *spawn.get_preparation_data("amqpjobs")["sys_path"]],
            stdin=subprocess.DEVNULL,
            pass_fds=fds,
            start_new_session=True,
        )
        # Not asyncio's own watchers: they need the main thread, or differ from loop to loop.
        threading.Thread(target=self._reap, args=[self._process], name="amqpjobs-reaper", daemon=True).start()

    def _reap(self, process: "subprocess.Popen[bytes]") -> None:
        if sys.platform == "linux":  # while it is a zombie, its id is nobody else's
            with contextlib.suppress(ChildProcessError):  # somebody else waits for all children
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            _kill_session(process.pid)
            with self._lock:
                code = process.wait()
        else:
            code = process.wait()
            _kill_session(process.pid)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._ended, code)

    def _ended(self, code: int) -> None:
        if not self._exit.done():
            self._exit.set_result(code)

    # What it says

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Hear what it says until it is gone, also what it said last."""
        hearing = asyncio.create_task(self._hear(reader))
        both: list[asyncio.Future[Any]] = [hearing, self._exit]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        # The other one follows at once, unless a handler has closed or given away its sockets.
        with contextlib.suppress(TimeoutError):
            async with self._clock.timeout(LAST_WORDS):
                await asyncio.wait(both)
        self.kill()
        if hearing.done() and (error := hearing.exception()) is not None:
            _log.error("A process for handlers said what cannot be read", exc_info=error)
        hearing.cancel()
        code = await self._exit
        for each in self._sockets:
            each.close()
        for talk in self._talks.values():
            if not talk.answer.done():
                talk.answer.set_exception(_death(code, talk))

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head_length, body_length = LENGTHS.unpack(await reader.readexactly(LENGTHS.size))
                head = loads(await reader.readexactly(head_length))
                self._heard(head, await reader.readexactly(body_length))

    def _heard(self, head: Head, body: bytes) -> None:
        match head["say"]:
            case "log":
                record = record_of(head)
                logger = logging.getLogger(record.name)
                if logger.isEnabledFor(record.levelno):
                    logger.handle(record)
            case say:
                talk = self._talks.get(head.get("id", _START))
                if say == "taken" and talk is not None:
                    talk.has_taken = True
                    talk.on_taken()
                elif talk is not None and not talk.answer.done():
                    talk.answer.set_result((head, body))
                elif say == "failed":
                    _log.error("A process for handlers did not end well", exc_info=error_of(head))


def _outcome(answer: Frame, job: type[Job[Any]]) -> Outcome:
    if answer[0]["say"] == "failed":
        raise error_of(answer[0]) or RemoteError("The outcome was lost.")
    return outcome_of(answer, job)


def _has_ended(talk: Talk) -> bool:
    """Whether its job has an outcome, and was not cut short."""
    done = talk.answer.done() and not talk.answer.cancelled() and talk.answer.exception() is None
    return done and talk.answer.result()[0].get("outcome") != "returned"


def _death(code: int, talk: Talk) -> ProcessDiedError:
    how = how_ended(code)
    if talk.has_taken:
        return ProcessDiedError(f"The process of this job {how}.")
    return NotTakenError(f"A process for handlers {how} before it took a job.")


def _kill_session(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def how_ended(code: int) -> str:
    """An exit code, or the signal it stands for, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        name = f"signal {-code}"
    return f"was killed by {name}" + (" (out of memory, or by somebody)" if -code == signal.SIGKILL else "")
