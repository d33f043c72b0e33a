"""The two seams that may change what happens.

An enqueue middleware wraps what is sent and may change it, or veto it by raising; the next
one returns when the broker has confirmed (in `enqueue_many` at once: a batch is sent when
all its jobs have passed). A run middleware wraps an attempt and may change its outcome.
Both are called in the order they were registered, the first one outermost.

One that wants to know which jobs belong together has a context manager for it: `together` for
those of one `enqueue_many`, `jointly` for those in one call of a batch handler. Around what is
told to the broker of a run there is a third seam, for our own observers.
"""

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

from amqpjobs.context import JobContext
from amqpjobs.envelope import Envelope
from amqpjobs.outcome import Outcome
from amqpjobs.wire import Delivery

EnqueueNext = Callable[[Envelope], Awaitable[Envelope]]
EnqueueMiddleware = Callable[[Envelope, EnqueueNext], Awaitable[Envelope]]

RunNext = Callable[[JobContext[Any]], Awaitable[Outcome]]
RunMiddleware = Callable[[JobContext[Any], RunNext], Awaitable[Outcome]]

SettleNext = Callable[[Delivery, Envelope | None, Outcome], Awaitable[bool]]
SettleMiddleware = Callable[[Delivery, Envelope | None, Outcome, SettleNext], Awaitable[bool]]


@runtime_checkable
class Together(Protocol):
    """An enqueue middleware that is told of jobs enqueued together, before they pass one by one."""

    def together(self, envelopes: Sequence[Envelope], /) -> AbstractContextManager[None]: ...


@runtime_checkable
class Jointly(Protocol):
    """A run middleware that is told of jobs run by one call of a batch handler, around that call."""

    def jointly(self, members: Sequence[JobContext[Any]], /) -> AbstractContextManager[None]: ...


def around_enqueue(middlewares: Sequence[EnqueueMiddleware], last: EnqueueNext) -> EnqueueNext:
    """One function that calls them all, then `last`."""
    for middleware in reversed(middlewares):
        last = _enqueue_step(middleware, last)
    return last


def around_run(middlewares: Sequence[RunMiddleware], last: RunNext) -> RunNext:
    """One function that calls them all, then `last`."""
    for middleware in reversed(middlewares):
        last = _run_step(middleware, last)
    return last


def around_settle(middlewares: Sequence[SettleMiddleware], last: SettleNext) -> SettleNext:
    """One function that calls them all, then `last`."""
    for middleware in reversed(middlewares):
        last = _settle_step(middleware, last)
    return last


def around_together(
    middlewares: Sequence[EnqueueMiddleware], envelopes: Sequence[Envelope]
) -> AbstractContextManager[object]:
    """Tells those who want to know that these jobs are enqueued together within."""
    told = [each for each in cast("Sequence[object]", middlewares) if isinstance(each, Together)] if envelopes else []
    return _entered([partial(each.together, envelopes) for each in told]) if told else nullcontext()


def around_jointly(
    middlewares: Sequence[RunMiddleware], members: Sequence[JobContext[Any]]
) -> AbstractContextManager[object]:
    """Tells those who want to know that these jobs run jointly within."""
    told = [each for each in cast("Sequence[object]", middlewares) if isinstance(each, Jointly)]
    return _entered([partial(each.jointly, members) for each in told]) if told else nullcontext()


@contextmanager
def _entered(made: Sequence[Callable[[], AbstractContextManager[None]]]) -> Generator[None]:
    with ExitStack() as stack:
        for make in made:
            stack.enter_context(make())
        yield


def _enqueue_step(middleware: EnqueueMiddleware, following: EnqueueNext) -> EnqueueNext:
    async def step(envelope: Envelope) -> Envelope:
        return await middleware(envelope, following)

    return step


def _run_step(middleware: RunMiddleware, following: RunNext) -> RunNext:
    async def step(context: JobContext[Any]) -> Outcome:
        return await middleware(context, following)

    return step


def _settle_step(middleware: SettleMiddleware, following: SettleNext) -> SettleNext:
    async def step(delivery: Delivery, envelope: Envelope | None, outcome: Outcome) -> bool:
        return await middleware(delivery, envelope, outcome, following)

    return step
