"""One run of one job's handler, without a broker."""

from typing import Any, TypeVar, cast

from amqpjobs.app import App
from amqpjobs.errors import DefinitionError
from amqpjobs.events import Events
from amqpjobs.job import Job, options_of
from amqpjobs.outcome import Cancel, Cancelled, Completed, Dead, Outcome, Retrying, Snooze, Snoozed
from amqpjobs.producer import drafts_of
from amqpjobs.worker.execution import Execution
from amqpjobs.worker.threads import Threads

R = TypeVar("R")


async def perform(app: App[Any], job: Job[R], attempt: int) -> R:
    """The result, or what the handler raised. Raises DefinitionError if the app has no handler for it."""
    kind = options_of(type(job)).kind
    handler = app.registry.get(kind)
    if handler is None:
        raise DefinitionError(f"App {app.name!r} has no handler for kind {kind!r}. Register one with @app.handler.")
    drafts, threads = drafts_of(app), Threads()
    drafts.check(job, {})
    envelope = drafts.envelope(job, {}).evolve(attempt=attempt, queue=handler.queue)
    try:
        async with app.lifespan() as state:
            execution = Execution(
                registry=app.registry,
                settings=app.settings,
                clock=app.clock,
                events=Events(),
                threads=threads,
                state=state,
                enqueue=app.enqueue,
                middlewares=app.run_middlewares,
                chance=app.chance,
            )
            outcome = await execution.run(envelope)
    finally:
        threads.close()
    if isinstance(outcome, Completed):
        return cast("R", outcome.result)
    raise _error_of(outcome)


def _error_of(outcome: Outcome) -> BaseException:
    match outcome:
        case Retrying(_, error) | Dead(_, error) if error is not None:
            return error
        case Snoozed(delay, reason):
            return Snooze(delay, reason)
        case Cancelled(reason):
            return Cancel(reason)
        case _:
            return AssertionError(f"The job did not complete: {outcome}.")
