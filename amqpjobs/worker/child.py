"""A child of the worker: a fresh process that runs handlers, as many jobs at once as its parent sends.

It imports what its parent names, enters the app's lifespan once, and then returns an outcome
for each envelope, decided here, where the real exception is. It ends when its parent does: a
thread sees its socket close, and where that thread is kept from running, Linux kills it.

One for process handlers gets one job at a time, and leaves the users' middlewares to its worker. One
for suspects runs all of a job, whatever its handler is.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from io import TextIOWrapper
from multiprocessing import spawn
from pathlib import Path
from typing import Any, Protocol, cast

from amqpjobs.clock import Clock
from amqpjobs.codec import loads
from amqpjobs.envelope import Envelope
from amqpjobs.errors import DefinitionError
from amqpjobs.events import Events
from amqpjobs.handle import Enqueue
from amqpjobs.job import Job
from amqpjobs.middleware import RunMiddleware
from amqpjobs.outcome import Completed, Outcome, Returned
from amqpjobs.registry import Registry
from amqpjobs.settings import Settings
from amqpjobs.worker.crossing import (
    LENGTHS,
    Frame,
    Head,
    envelope_of,
    failure_frame,
    log_frame,
    outcome_frame,
    packed,
)
from amqpjobs.worker.execution import Execution
from amqpjobs.worker.introduction import child_starting
from amqpjobs.worker.threads import Threads

_log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1


class Service(Protocol):
    """What a child needs of an app."""

    @property
    def registry(self) -> Registry: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def enqueue(self) -> Enqueue: ...
    @property
    def run_middlewares(self) -> Sequence[RunMiddleware]: ...
    @property
    def inner_middlewares(self) -> Sequence[RunMiddleware]: ...

    def lifespan(self) -> AbstractAsyncContextManager[Any]: ...
    async def close(self) -> None: ...
    def observe(self, *, always: bool = ...) -> None: ...


class Channel:
    """The sockets from and to the worker. Any thread may send; one reads."""

    def __init__(self, heard: socket.socket, said: socket.socket) -> None:
        self._heard = heard
        self._said = said
        self._lock = threading.RLock()  # a signal handler or finalizer may log while its thread sends
        # What a handler forks must not keep our ends open.
        for each in (heard, said):
            os.register_at_fork(after_in_child=each.close)

    def send(self, frame: Frame) -> None:
        pieces = packed(*frame)
        try:
            with self._lock:
                for piece in pieces:
                    self._said.sendall(piece)
        except OSError:  # the parent is gone, or a handler has closed what was not its own
            os._exit(1)

    def read(self) -> Frame | None:
        """The next frame; None when the parent has closed its end, or is dead."""
        lengths = self._exactly(LENGTHS.size)
        if lengths is None:
            return None
        head_length, body_length = LENGTHS.unpack(lengths)
        head, body = self._exactly(head_length), self._exactly(body_length)
        return None if head is None or body is None else (loads(head), body)

    def _exactly(self, count: int) -> bytes | None:
        raw = bytearray(count)
        view, got = memoryview(raw), 0
        while got < count:
            try:
                more = self._heard.recv_into(view[got:])
            except ConnectionError:
                return None
            if not more:
                return None
            got += more
        return bytes(raw)


class Forwarding(logging.Handler):
    """Hands log lines to the worker, which writes them where and how it writes its own."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self.name = "amqpjobs"  # as `logs` calls who writes our lines
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._channel.send(log_frame(record))
        except Exception:
            self.handleError(record)


def main(heard: int, said: int) -> None:
    """The life of a child. Both are descriptors of sockets: of what its worker says, and of what it says itself."""
    for fd in (heard, said):
        os.set_inheritable(fd, False)
    channel = Channel(socket.socket(fileno=heard), socket.socket(fileno=said))
    first = channel.read()
    if first is None:
        return
    introduction, _ = first
    die_with(introduction["parent"])
    is_for_suspects = bool(introduction["quarantine"])
    if is_for_suspects:
        die_first()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # a line that is printed is seen, whatever comes after it
    log_to(channel, introduction["levels"])
    try:
        with child_starting():
            app = found_app(introduction)
        if introduction["observed"]:
            app.observe(always=True)
        asyncio.run(live(app, channel, is_for_suspects=is_for_suspects))
    except BaseException as error:
        channel.send(failure_frame("failed", error))


def die_with(parent: int) -> None:
    """Be killed when the parent ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it ended before we had asked
            os.kill(os.getpid(), signal.SIGKILL)


def die_first() -> None:
    """Where memory runs out, Linux shall take us and not the worker."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # no /proc here
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def log_to(channel: Channel, levels: dict[str, int]) -> None:
    """Let the worker write our log lines."""
    logging.basicConfig(handlers=[Forwarding(channel)], force=True)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def found_app(introduction: Head) -> Service:
    """The app and its handlers, imported anew. Raises DefinitionError, or what the import raised."""
    spawn.prepare(introduction["prepare"])
    module, _, attributes = introduction["app"].partition(":")
    app: Any = import_module(module)
    for attribute in attributes.split("."):
        app = getattr(app, attribute)
    for name in introduction["modules"]:
        import_module(name)
    for kind, handler in introduction["handlers"].items():
        if cast("Service", app).registry.get(kind) is None:
            raise DefinitionError(
                f"{handler} shall run in a process, but a fresh process that imports {module!r} and "
                f"{', '.join(map(repr, introduction['modules']))} finds no handler for kind {kind!r}. Register it at "
                "the top of a module, and not within a function or below `if __name__ == '__main__':`."
            )
    return cast("Service", app)


async def live(app: Service, channel: Channel, *, is_for_suspects: bool) -> None:
    """Run jobs until the worker says stop."""
    frames = asyncio.Queue[Frame]()
    loop = asyncio.get_running_loop()
    threads = Threads()
    async with app.lifespan() as state:
        execution = Execution(
            registry=app.registry,
            settings=app.settings,
            clock=app.clock,
            events=Events(),  # told in the worker
            threads=threads,
            state=state,
            enqueue=app.enqueue,
            middlewares=app.run_middlewares if is_for_suspects else app.inner_middlewares,
        )
        threading.Thread(target=_read, args=[channel, loop, frames], name="amqpjobs-parent", daemon=True).start()
        channel.send(({"say": "ready"}, b""))
        desk = Desk(execution, app.registry, channel, is_lenient=is_for_suspects)
        while (frame := await frames.get())[0]["say"] != "stop":
            desk.hear(frame)
    threads.close()
    await app.close()


class Desk:
    """Hears what the worker wants, and answers each job under its number."""

    def __init__(self, execution: Execution, registry: Registry, channel: Channel, *, is_lenient: bool) -> None:
        self._execution = execution
        self._registry = registry
        self._channel = channel
        #: Whether a result that cannot cross is left out, and no failure: in the worker it would be none.
        self._is_lenient = is_lenient
        self._runs: dict[int, asyncio.Task[Outcome]] = {}
        self._answering = set[asyncio.Task[None]]()

    def hear(self, frame: Frame) -> None:
        number = frame[0]["id"]
        match frame[0]["say"]:
            case "job":
                self._start(number, envelope_of(frame))
            case "cancel" if number in self._runs:
                self._runs[number].cancel("the worker stops")
            case "ping":
                self._channel.send(({"say": "pong", "id": number}, b""))
            case _:  # to cancel what has just ended
                pass

    def _start(self, number: int, envelope: Envelope) -> None:
        # Before anything of the job is run: who dies from now on may have died of it.
        self._channel.send(({"say": "taken", "id": number}, b""))
        # A task for each job: what its handler does to its task and context ends with it.
        self._runs[number] = asyncio.create_task(self._execution.run(envelope))
        answering = asyncio.create_task(self._answer(number, envelope))
        self._answering.add(answering)
        answering.add_done_callback(self._answering.discard)

    async def _answer(self, number: int, envelope: Envelope) -> None:
        run = self._runs[number]
        await asyncio.wait([run])
        del self._runs[number]
        head, body = self._told(Returned() if run.cancelled() else run.result(), envelope)
        self._channel.send((head | {"id": number}, body))

    def _told(self, outcome: Outcome, envelope: Envelope) -> Frame:
        handler = self._registry.get(envelope.kind)
        job: type[Job[Any]] = Job[Any] if handler is None else handler.job
        try:
            return outcome_frame(outcome, job)
        except Exception as error:  # a result that is none of this job's, or no JSON
            if self._is_lenient and isinstance(outcome, Completed):
                return outcome_frame(Completed(), Job[None])
            return failure_frame("failed", error)


def _read(channel: Channel, loop: asyncio.AbstractEventLoop, frames: "asyncio.Queue[Frame]") -> None:
    while (frame := channel.read()) is not None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: we are at the end
            loop.call_soon_threadsafe(frames.put_nowait, frame)
    os.killpg(0, signal.SIGKILL)  # and what the handler has forked
