"""Enqueue from code that has no event loop: Django, Flask, scripts, any thread.

A `BlockingClient` keeps one daemon thread with an event loop and a producer on it. Callers
hand it their calls and wait; the deadline is kept there, and a little later here as well, for
the case that the thread itself is held up.

All it has belongs to one process. A fork inherits locks that nobody will release, a loop
without a thread, and the parent's sockets, and two processes that talk on one connection end
it. So a child finds by its pid that nothing is its own, begins anew, and lets go of the
sockets without a word: neither the broker nor the parent notices. And a fork waits for the
moment in which the thread waits, and is in the middle of nothing.
"""

import asyncio
import atexit
import contextlib
import os
import selectors
import socket
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from concurrent.futures import CancelledError, Executor, Future
from types import TracebackType
from typing import Any, Self, TypeVar, TypeVarTuple

from typing_extensions import Unpack

from amqpjobs.client import Client
from amqpjobs.clock import in_seconds
from amqpjobs.envelope import new_id
from amqpjobs.errors import EnqueueError, EnqueueManyError, EnqueueTimeoutError, UnconfirmedError
from amqpjobs.handle import EnqueueOptions, JobHandle
from amqpjobs.job import Job
from amqpjobs.producer import Producer, Producing

R = TypeVar("R")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: Seconds after its deadline by which a call that the thread has not ended returns all the same.
MARGIN = 1.0
#: Seconds that a close gives to calls under way.
LAST_CALLS = 5.0
#: Seconds that the interpreter's exit waits for all connections to close.
LAST_WORDS = 2.0
#: Seconds that a fork waits for the thread, at most.
FORK_PATIENCE = 1.0


class BlockingClient:
    """Enqueues for an app from any thread, and from many at once.

    The first enqueue connects; `close` ends the connection, and so do the end of a `with`
    block, of the interpreter, and of the client itself. An enqueue after that opens it again.
    A client made before a fork works in the child too, on a connection of the child's own.

    Middlewares and event subscribers of the app run in the client's thread.
    """

    def __init__(self, app: Producing) -> None:
        self._app = app
        #: By pid. A dict's own methods are atomic, so no lock is needed that a fork might leave locked.
        self._homes: dict[int, _Home] = {}

    def enqueue(self, job: Job[R], **options: Unpack[EnqueueOptions]) -> JobHandle[R]:
        """Enqueue a job; returns when the broker has it in at least one queue, or raises.

        Options and errors are those of `App.enqueue`. It blocks for as long as `deadline` says,
        5 s by default, and so raises RuntimeError in a thread whose event loop runs.
        """
        job_id = options.get("job_id")
        if job_id is None:
            options["job_id"] = job_id = new_id()  # here, so that any error knows it
        try:
            return self._run(lambda client: client.enqueue(job, **options), options)
        except _HeldUpError as error:
            raise error.told(job_id) from None

    def enqueue_many(self, jobs: Iterable[Job[R]], **options: Unpack[EnqueueOptions]) -> list[JobHandle[R]]:
        """Enqueue jobs, their confirms pipelined; the options and the deadline are for all together.

        Raises EnqueueManyError when some were not confirmed; it tells which were.
        """
        every = list(jobs)  # here: a generator may want its caller's thread
        if not every:
            return []
        try:
            return self._run(lambda client: client.enqueue_many(every, **options), options)
        except _HeldUpError as error:
            raise EnqueueManyError({}, {n: error.told(options.get("job_id")) for n in range(len(every))}) from None

    def close(self, timeout: float = LAST_CALLS) -> None:
        """Let calls under way finish and close the connection. Returns after `timeout` seconds at most.

        Any number of times; the next enqueue connects again.
        """
        home = self._homes.get(os.getpid())
        with contextlib.suppress(_HeldUpError):
            if home is not None and (engine := home.vacate(timeout)) is not None:
                engine.stop()
                engine.join(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, call: Callable[[Client], Coroutine[Any, Any, T]], options: EnqueueOptions) -> T:
        _refuse_in_a_loop()
        given = options.get("deadline")
        deadline = self._app.settings.enqueue_timeout if given is None else in_seconds(given)
        patience = max(deadline, 0) + MARGIN  # what cannot be a deadline is refused further on
        future = self._home().submit(call, patience)
        try:
            return future.result(patience)
        except CancelledError:
            raise _HeldUpError(UnconfirmedError, "the client was closed before it was confirmed") from None
        except BaseException as error:
            if isinstance(error, TimeoutError) and not future.done():
                raise _late(patience) from None
            raise
        finally:
            future.cancel()  # does nothing to one that is done; who was interrupted waits no more

    def _home(self) -> "_Home":
        pid = os.getpid()
        home = self._homes.get(pid)
        if home is None:
            home = self._homes.setdefault(pid, _Home(self._app))
            for other in [each for each in list(self._homes) if each != pid]:
                self._homes.pop(other, None)
            _leave_inherited()  # at the latest here: a fork made in C may not have called us
        return home


class _HeldUpError(Exception):
    """A call whose end is not known, to be told to the caller with the id of its job."""

    def __init__(self, kind: type[EnqueueError], words: str) -> None:
        super().__init__(words)
        self._kind = kind

    def told(self, job_id: str | None) -> EnqueueError:
        what = f"Job {job_id}" if job_id else "The job"
        error = self._kind(f"{what} may be queued or not: {self}.")
        error.job_id = job_id
        return error


class _Home:
    """What a client has in one process: an engine, made when first needed."""

    def __init__(self, app: Producing) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._engine: _Engine | None = None

    def submit(self, call: Callable[[Client], Coroutine[Any, Any, T]], patience: float) -> "Future[T]":
        with self._locked(patience):
            while self._engine is None or (future := self._engine.submit(call)) is None:
                self._engine = _Engine(self._app)
                self._engine.start()
                # A client that is dropped without a close. At exit all are stopped together.
                weakref.finalize(self, self._engine.stop).atexit = False
            return future

    def vacate(self, patience: float) -> "_Engine | None":
        """The engine, which is no longer used for new calls."""
        with self._locked(patience):
            engine, self._engine = self._engine, None
            return engine

    @contextlib.contextmanager
    def _locked(self, patience: float) -> Generator[None]:
        # Held for a moment only; but a signal handler that enqueues may come in just that moment.
        if not self._lock.acquire(timeout=patience):
            raise _late(patience)
        try:
            yield
        finally:
            self._lock.release()


class _Engine:
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
        """Raises EnqueueError when there can be no more threads, as late in the interpreter's exit."""
        try:
            self._thread.start()
        except RuntimeError as error:
            self._loop.close()
            raise EnqueueError(f"Nothing can be enqueued now, no thread can be started: {error}.") from error
        _engines.add(self)

    def submit(self, call: Callable[[Client], Coroutine[Any, Any, T]]) -> "Future[T] | None":
        """Begin a call, in the context of who asks: its job becomes the parent of the new one.

        None when it takes no more calls.
        """
        with self._gate:
            if self._is_stopping or not self._is_alive:
                return None
            return asyncio.run_coroutine_threadsafe(self._called(call), self._loop)

    def stop(self) -> None:
        """Finish the calls begun so far, then disconnect. Does not wait; any number of times, in any process."""
        if self._is_alive:
            with self._gate, contextlib.suppress(RuntimeError):  # the loop was closed just now
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
            _engines.discard(self)

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


#: Those that run, and after a fork also those of the parent, which must not be garbage: their
#: tasks would be ended in the child, where they have no loop.
_engines = set["_Engine"]()


class _Paused(threading.local):
    """The engines that a fork of this thread holds."""

    engines: Sequence[_Engine] = ()


_paused = _Paused()


def _pause_all() -> None:
    _paused.engines = [each for each in _engines.copy() if each.pause()]


def _resume_all() -> None:
    for engine in _paused.engines:
        engine.resume()
    _paused.engines = ()


def _leave_inherited() -> None:
    for engine in _engines.copy():
        engine.leave()


def _stop_all() -> None:
    engines = _engines.copy()
    for engine in engines:
        engine.stop()
    for engine in engines:
        engine.join(LAST_WORDS / len(engines))


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_pause_all, after_in_parent=_resume_all, after_in_child=_leave_inherited)


def _refuse_in_a_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "A BlockingClient would hold up the event loop that runs in this thread until the broker answers. "
        "Use `await app.enqueue(…)` here, or `await asyncio.to_thread(client.enqueue, job)`."
    )


def _late(patience: float) -> _HeldUpError:
    return _HeldUpError(
        EnqueueTimeoutError,
        f"the client's thread did not answer within {patience:g} s. Look for a middleware or an event "
        "subscriber of the app that blocks",
    )
