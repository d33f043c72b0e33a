"""Enqueue from code that has no event loop: Django, Flask, scripts, any thread.

A `BlockingClient` keeps one daemon thread with an event loop and a producer on it. Callers
hand it their calls and wait; the deadline is kept there, and a little later here as well, for
the case that the thread itself is held up.

A client made before a fork works in the child too: the child finds by its pid that nothing is
its own, and begins anew (`engine.py` says what becomes of the parent's thread and sockets).
"""

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator, Iterable
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, Self, TypeVar

from typing_extensions import Unpack

from amqpjobs.blocking_buffer import BlockingBuffer
from amqpjobs.client import Client
from amqpjobs.clock import Seconds, in_seconds
from amqpjobs.engine import LAST_CALLS, Engine, leave_inherited, refuse_in_a_loop, start_engine
from amqpjobs.envelope import new_id
from amqpjobs.errors import EnqueueError, EnqueueManyError, EnqueueTimeoutError, UnconfirmedError
from amqpjobs.handle import BUFFER_BYTES, BUFFER_LIMIT, EnqueueOptions, JobHandle
from amqpjobs.job import Job
from amqpjobs.producer import Producing, drafts_of

R = TypeVar("R")
T = TypeVar("T")

#: Seconds after its deadline by which a call that the thread has not ended returns all the same.
MARGIN = 1.0


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

    def check(self, job: Job[Any], **options: Unpack[EnqueueOptions]) -> None:
        """Raise at once what `enqueue` would raise in this thread without asking the broker; see `App.check`."""
        refuse_in_a_loop()
        drafts_of(self._app).check(job, options)

    def buffer(
        self, *, limit: int = BUFFER_LIMIT, max_bytes: int = BUFFER_BYTES, timeout: Seconds | None = None
    ) -> BlockingBuffer:
        """A buffer in memory, for threads that may not wait; arguments are those of `App.buffer`.

        It is open at once and needs no `with` block: the end of the interpreter flushes it too.
        """
        return BlockingBuffer(self._app, self._begin, limit=limit, max_bytes=max_bytes, timeout=timeout)

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
        refuse_in_a_loop()
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

    def _begin(self, call: Callable[[Client], Coroutine[Any, Any, None]]) -> "Future[None]":
        try:
            return self._home().submit(call, MARGIN)
        except _HeldUpError as error:
            raise error.told(None) from None

    def _home(self) -> "_Home":
        pid = os.getpid()
        home = self._homes.get(pid)
        if home is None:
            home = self._homes.setdefault(pid, _Home(self._app))
            for other in [each for each in list(self._homes) if each != pid]:
                self._homes.pop(other, None)
            leave_inherited()  # at the latest here: a fork made in C may not have called us
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
        self._engine: Engine | None = None

    def submit(self, call: Callable[[Client], Coroutine[Any, Any, T]], patience: float) -> "Future[T]":
        with self._locked(patience):
            while self._engine is None or (future := self._engine.submit(call)) is None:
                self._engine = start_engine(self._app)
                # A client that is dropped without a close. At exit all are stopped together.
                weakref.finalize(self, self._engine.stop).atexit = False
            return future

    def vacate(self, patience: float) -> "Engine | None":
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


def _late(patience: float) -> _HeldUpError:
    return _HeldUpError(
        EnqueueTimeoutError,
        f"the client's thread did not answer within {patience:g} s. Look for a middleware or an event "
        "subscriber of the app that blocks",
    )
