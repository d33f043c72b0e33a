"""The two seams that may change what happens.

An enqueue middleware wraps what is sent and may change it, or veto it by raising; the next
one returns when the broker has confirmed (in `enqueue_many` at once: a batch is sent when
all its jobs have passed). A run middleware wraps an attempt and may change its outcome.
Both are called in the order they were registered, the first one outermost.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from amqpjobs.context import JobContext
from amqpjobs.envelope import Envelope
from amqpjobs.outcome import Outcome

EnqueueNext = Callable[[Envelope], Awaitable[Envelope]]
EnqueueMiddleware = Callable[[Envelope, EnqueueNext], Awaitable[Envelope]]

RunNext = Callable[[JobContext[Any]], Awaitable[Outcome]]
RunMiddleware = Callable[[JobContext[Any], RunNext], Awaitable[Outcome]]


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


def _enqueue_step(middleware: EnqueueMiddleware, following: EnqueueNext) -> EnqueueNext:
    async def step(envelope: Envelope) -> Envelope:
        return await middleware(envelope, following)

    return step


def _run_step(middleware: RunMiddleware, following: RunNext) -> RunNext:
    async def step(context: JobContext[Any]) -> Outcome:
        return await middleware(context, following)

    return step
