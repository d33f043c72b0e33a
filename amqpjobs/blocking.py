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
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from typing_extensions import Unpack

from amqpjobs.blocking_buffer import BlockingBuffer
from amqpjobs.client import Client
from amqpjobs.clock import Seconds, in_seconds
from amqpjobs.engine import LAST_CALLS, Engine, leave_inherited, refuse_in_a_loop, start_engine
from amqpjobs.envelope import new_id
from amqpjobs.errors import EnqueueError, EnqueueManyError, EnqueueTimeoutError, ResultError, UnconfirmedError
from amqpjobs.handle import (
    BUFFER_BYTES,
    BUFFER_LIMIT,
    RESULT_WITHIN,
    BlockingHandle,
    CallOptions,
    EnqueueOptions,
    JobHandle,
)
from amqpjobs.job import Job
from amqpjobs.producer import Producing, drafts_of

R = TypeVar("R")
R2 = TypeVar("R2")
R3 = TypeVar("R3")
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

    def enqueue(self, job: Job[R], **options: Unpack[EnqueueOptions]) -> BlockingHandle[R]:
        """Enqueue a job; returns when the broker has it in at least one queue, or raises.

        Options and errors are those of `App.enqueue`. It blocks for as long as `deadline` says,
        5 s by default, and so raises RuntimeError in a thread whose event loop runs.
        """
        job_id = options.get("job_id")
        if job_id is None:
            options["job_id"] = job_id = new_id()  # here, so that any error knows it
        try:
            handle, client = self._run(lambda client: _enqueued(client, job, options), self._deadline(options))
        except _HeldUpError as error:
            raise error.told(job_id) from None
        return self._handle(handle, client)

    def call(self, job: Job[R], *, timeout: Seconds = RESULT_WITHIN, **options: Unpack[CallOptions]) -> R:
        """Enqueue a job and wait for its result, for `timeout` seconds in all (30); see `App.call`."""
        job_id = options.get("job_id")
        if job_id is None:
            options["job_id"] = job_id = new_id()
        try:
            return self._run(lambda client: client.call(job, timeout=timeout, **options), in_seconds(timeout))
        except _HeldUpError as error:
            raise error.told(job_id) from None

    @overload
    def gather(
        self, one: Job[R] | BlockingHandle[R], two: Job[R2] | BlockingHandle[R2], /, *, timeout: Seconds = ...
    ) -> tuple[R, R2]: ...
    @overload
    def gather(
        self,
        one: Job[R] | BlockingHandle[R],
        two: Job[R2] | BlockingHandle[R2],
        three: Job[R3] | BlockingHandle[R3],
        /,
        *,
        timeout: Seconds = ...,
    ) -> tuple[R, R2, R3]: ...
    @overload
    def gather(self, *awaited: Job[R] | BlockingHandle[R], timeout: Seconds = ...) -> tuple[R, ...]: ...
    @overload
    def gather(
        self, *awaited: Job[R] | BlockingHandle[R], timeout: Seconds = ..., return_exceptions: bool
    ) -> tuple[R | BaseException, ...]: ...

    def gather(
        self, *awaited: Any, timeout: Seconds = RESULT_WITHIN, return_exceptions: bool = False
    ) -> tuple[Any, ...]:
        """The results of many, in the order they are given; see `App.gather`.

        Jobs are enqueued one after the other, and the first error in their order is raised.
        """
        clock, handles = self._app.clock, list[BlockingHandle[Any] | BaseException]()
        end = clock.monotonic() + in_seconds(timeout)
        for each in awaited:
            begin = partial(self._begun, each, max(0.0, end - clock.monotonic()))
            handles.append(_attempted(begin, return_exceptions))
        return tuple(
            _attempted(partial(each.result, max(0.0, end - clock.monotonic())), return_exceptions)
            if isinstance(each, BlockingHandle)
            else each
            for each in handles
        )

    def enqueue_many(self, jobs: Iterable[Job[R]], **options: Unpack[EnqueueOptions]) -> list[BlockingHandle[R]]:
        """Enqueue jobs, their confirms pipelined; the options and the deadline are for all together.

        Raises EnqueueManyError when some were not confirmed; it tells which were.
        """
        every = list(jobs)  # here: a generator may want its caller's thread
        if not every:
            return []
        try:
            found, client = self._run(lambda client: _enqueued_many(client, every, options), self._deadline(options))
            return [self._handle(each, client) for each in found]
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

    def _deadline(self, options: EnqueueOptions) -> float:
        given = options.get("deadline")
        return self._app.settings.enqueue_timeout if given is None else in_seconds(given)

    def _handle(self, handle: JobHandle[R], client: Client) -> BlockingHandle[R]:
        wait = partial(self._result, handle, client, os.getpid()) if handle.has_reply else None
        return BlockingHandle(handle.job_id, handle.kind, handle.is_parked, wait)

    def _begun(self, awaited: Job[R] | BlockingHandle[R], deadline: float) -> BlockingHandle[R]:
        if isinstance(awaited, BlockingHandle):
            return awaited
        return self.enqueue(awaited, reply=True, deadline=min(deadline, self._app.settings.enqueue_timeout))

    def _result(self, handle: JobHandle[R], client: Client, pid: int, timeout: float) -> R:
        refuse_in_a_loop()
        home, patience = self._homes.get(os.getpid()), max(timeout, 0) + MARGIN
        try:
            is_here = home is not None and pid == os.getpid()
            future = home.submit_to(client, lambda _: handle.result(timeout), patience) if home and is_here else None
            if future is None:
                raise _unheard(
                    handle, "the client that enqueued it was closed, or was that of the process before a fork"
                )
            return self._awaited(future, patience)
        except _HeldUpError as error:
            raise _unheard(handle, str(error)) from None

    def _run(self, call: Callable[[Client], Coroutine[Any, Any, T]], deadline: float) -> T:
        refuse_in_a_loop()
        patience = max(deadline, 0) + MARGIN  # what cannot be a deadline is refused further on
        return self._awaited(self._home().submit(call, patience), patience)

    def _awaited(self, future: "Future[T]", patience: float) -> T:
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

    def submit_to(
        self, client: Client, call: Callable[[Client], Coroutine[Any, Any, T]], patience: float
    ) -> "Future[T] | None":
        """The same on just this client's engine; None when that is not here any more."""
        with self._locked(patience):
            engine = self._engine
            return engine.submit(call) if engine is not None and engine.serves(client) else None

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


async def _enqueued(client: Client, job: Job[R], options: EnqueueOptions) -> tuple[JobHandle[R], Client]:
    return await client.enqueue(job, **options), client


async def _enqueued_many(
    client: Client, jobs: Iterable[Job[R]], options: EnqueueOptions
) -> tuple[list[JobHandle[R]], Client]:
    return await client.enqueue_many(jobs, **options), client


def _attempted(call: Callable[[], T], return_exceptions: bool) -> T | BaseException:
    try:
        return call()
    except Exception as error:
        if return_exceptions:
            return error
        raise


def _unheard(handle: JobHandle[Any], why: str) -> ResultError:
    error = ResultError(f"The result of job {handle.kind!r} ({handle.job_id}) cannot be had: {why}.")
    error.job_id = handle.job_id
    return error


def _late(patience: float) -> _HeldUpError:
    return _HeldUpError(
        EnqueueTimeoutError,
        f"the client's thread did not answer within {patience:g} s. Look for a middleware or an event "
        "subscriber of the app that blocks",
    )
