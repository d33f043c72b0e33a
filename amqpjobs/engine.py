"""The thread of a `BlockingClient`: an event loop, and a producer on it.

All it has belongs to one process. A fork inherits locks that nobody will release, a loop
without a thread, and the parent's sockets, and two processes that talk on one connection end
it. So a fork waits for the moment in which the thread waits, and is in the middle of nothing;
and a child lets go of the sockets without a word: neither the broker nor the parent notices.
"""

import asyncio
import atexit
import os
import selectors
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Any, TypeVar, TypeVarTuple

from typing_extensions import Unpack

from amqpjobs.client import Client
from amqpjobs.errors import EnqueueError
from amqpjobs.producer import Producer, Producing

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: Seconds that a stop gives to calls under way.
LAST_CALLS = 5.0
#: Seconds that the interpreter's exit waits for all connections to close.
LAST_WORDS = 2.0
#: Seconds that a fork waits for the thread, at most.
FORK_PATIENCE = 1.0


class Engine:
    """A daemon thread, an event loop that runs in it, and a producer on that."""

    def __init__(self, app: Producing) -> None:
        self._pid = os.getpid()
        self._selector = _Selector()
        self._loop = _Loop(self._selector)
        self._producer = Producer(app, self._loop, role="blocking producer")
        self._is_open = asyncio.Event()
        self._stopping = asyncio.Event()
        # Between a call and the end, one comes first: a call begun is in the loop's queue before the end is.
        self._gate = threading.Lock()
        self._is_stopping = False
        self._calls = set[asyncio.Task[Any]]()
        self._thread = threading.Thread(target=self._work, name="amqpjobs blocking client", daemon=True)

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:
            self._loop.close()
            raise EnqueueError(f"Nothing can be enqueued now, no thread can be started: {error}.") from error
        _house.engines.add(self)

    def submit(self, call: Callable[[Client], Coroutine[Any, Any, T]]) -> "Future[T] | None":
        """Begin a call, in the context of who asks: its job becomes the parent of the new one.

        None when it takes no more calls.
        """
        with self._gate:
            if self._is_stopping or not self._is_alive:
                return None
            return asyncio.run_coroutine_threadsafe(self._called(call), self._loop)

    def serves(self, client: Client) -> bool:
        """Whether this client is the one that lives here."""
        return self._producer.client is client

    def stop(self) -> None:
        """Finish the calls begun so far, then disconnect. Does not wait; any number of times, in any process."""
        if self._is_alive:
            with self._gate, suppress(RuntimeError):  # the loop was closed just now
                self._is_stopping = True
                self._loop.call_soon_threadsafe(self._stopping.set)

    def join(self, timeout: float) -> None:
        if self._is_alive and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def pause(self) -> bool:
        """Before a fork: hold the thread where it waits; False when it does not come there."""
        return self._is_alive and self._selector.busy.acquire(timeout=FORK_PATIENCE)

    def resume(self) -> None:
        """In the parent, by the same thread that paused it."""
        self._selector.busy.release()

    def leave(self) -> None:
        """In a child: let go of the sockets that belong to the parent."""
        if self._pid != os.getpid():
            # Not in the words of asyncio: it would take the sockets out of the epoll that we share
            # with the parent, and TLS would say goodbye.
            self._loop.close_descriptors()
            self._selector.close()

    @property
    def _is_alive(self) -> bool:
        return self._pid == os.getpid() and self._thread.is_alive()

    def _work(self) -> None:
        try:
            with self._selector.busy, asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._live())
        finally:
            _house.engines.discard(self)

    async def _live(self) -> None:
        await self._producer.open()
        self._is_open.set()
        await self._stopping.wait()
        if self._calls:
            await asyncio.wait(self._calls, timeout=LAST_CALLS)
        await self._producer.close()

    async def _called(self, call: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        await self._is_open.wait()
        return await call(self._producer.client)


class _Selector(selectors.DefaultSelector):
    """Lets others hold the loop's thread while it waits.

    At a fork a thread must hold no lock, since nobody will release it in the child. Some cannot
    be made anew there: pydantic's, when it first writes a model, made one child in 400 hang.
    """

    def __init__(self) -> None:
        super().__init__()
        self.busy = threading.RLock()  # not waited for when the fork is in the loop's own thread

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.busy.release()
        try:
            return super().select(timeout)
        finally:
            self.busy.acquire()


class _Loop(asyncio.SelectorEventLoop):
    """Looks up names, and does what else may block, in daemon threads.

    The usual executor takes nothing more once the interpreter ends, and its threads hold that
    end up for as long as a name server does not answer.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        super().__init__(selector)
        self._connected: list[socket.socket] = []

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Every connection begins here."""
        self._connected = [each for each in self._connected if each.fileno() >= 0] + [sock]
        await super().sock_connect(sock, address)

    def close_descriptors(self) -> None:
        """Close its sockets, and those that wake it, for this process alone."""
        wakers = [each for each in vars(self).values() if isinstance(each, socket.socket)]
        for each in [*self._connected, *wakers]:
            each.close()

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> "asyncio.Future[T]":
        if executor is not None:
            return super().run_in_executor(executor, func, *args)
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:
                future.set_exception(error)

        try:
            threading.Thread(target=work, name="amqpjobs look-up", daemon=True).start()
        except RuntimeError:  # late in the interpreter's exit
            work()
        return asyncio.wrap_future(future, loop=self)


class _House:
    """The engines of a process."""

    def __init__(self) -> None:
        #: Those that run, and after a fork also those of the parent, which must not be garbage: their
        #: tasks would be ended in the child, where they have no loop.
        self.engines = set[Engine]()
        #: Held while an engine is made: a fork finds it whole, or not at all.
        self.making = threading.RLock()  # the fork may be in the thread that makes one, in a signal handler


_house = _House()


def start_engine(app: Producing) -> Engine:
    """Raises EnqueueError when there can be no more threads, as late in the interpreter's exit."""
    with _house.making:
        engine = Engine(app)
        engine.start()
        return engine


class _Held(threading.local):
    """What a fork of this thread holds."""

    engines: Sequence[Engine] = ()
    making = False


_held = _Held()


def _pause_all() -> None:
    _held.making = _house.making.acquire(timeout=FORK_PATIENCE)
    _held.engines = [each for each in _house.engines.copy() if each.pause()]


def _resume_all() -> None:
    for engine in _held.engines:
        engine.resume()
    _held.engines = ()
    if _held.making:
        _house.making.release()


def leave_inherited() -> None:
    """In a child: let go of what belongs to the parent. Any number of times, and harmless in the parent."""
    for engine in _house.engines.copy():
        engine.leave()


def _begin_anew() -> None:
    _house.making = threading.RLock()  # it may be held by a thread that does not exist here
    leave_inherited()


def refuse_in_a_loop() -> None:
    """Raises RuntimeError in a thread whose event loop runs."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "A BlockingClient would hold up the event loop that runs in this thread until the broker answers. "
        "Use `await app.enqueue(…)` here, or `await asyncio.to_thread(client.enqueue, job)`."
    )


def _stop_all() -> None:
    engines = _house.engines.copy()
    for engine in engines:
        engine.stop()
    for engine in engines:
        engine.join(LAST_WORDS / len(engines))


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_pause_all, after_in_parent=_resume_all, after_in_child=_begin_anew)
