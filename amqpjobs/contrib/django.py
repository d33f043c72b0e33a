"""Enqueue when Django's transaction commits.

    with transaction.atomic():
        order.save()
        order.job_id = enqueue_on_commit(client, Charge(order=order.pk))

A rolled-back transaction or savepoint enqueues nothing. A crash between commit and publish
loses the job: see `amqpjobs.contrib`.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol, cast

from typing_extensions import Unpack

from amqpjobs.blocking import BlockingClient
from amqpjobs.envelope import new_id
from amqpjobs.handle import EnqueueOptions, refuse_reply
from amqpjobs.job import Job


class _Transaction(Protocol):
    """What we use of django.db.transaction, which has no types."""

    def on_commit(self, func: Callable[[], object], using: str | None = None, robust: bool = False) -> None: ...


def enqueue_on_commit(
    client: BlockingClient,
    job: Job[Any],
    *,
    using: str | None = None,
    robust: bool = False,
    **options: Unpack[EnqueueOptions],
) -> str:
    """Enqueue once the transaction of database `using` has committed, or now if there is none.

    Returns the id that the job will have. Options are those of `App.enqueue`; `delay` and
    `expires` count from the commit, and so does the `deadline` for which the commit waits.
    What cannot be enqueued at all is refused here, as by `BlockingClient.check`.

    A later error of the enqueue comes out of the `atomic` block, when the data is committed already,
    and Django then leaves out what else waited for the commit. With `robust` Django logs the
    error instead and goes on: the request succeeds, and the job is lost but for that line.
    In a TestCase nothing commits; use TransactionTestCase or `captureOnCommitCallbacks`.
    """
    refuse_reply(options, "that waits for a commit")
    client.check(job, **options)
    job_id = options.get("job_id")
    if job_id is None:
        options["job_id"] = job_id = new_id()

    def enqueue() -> None:
        client.enqueue(job, **options)

    transaction = cast("_Transaction", import_module("django.db.transaction"))
    transaction.on_commit(enqueue, using=using, robust=robust)
    return job_id
