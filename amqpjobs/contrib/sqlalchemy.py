"""Enqueue when SQLAlchemy's session commits.

    with Session(engine) as session, session.begin():
        session.add(order)
        order.job_id = enqueue_on_commit(client, session, Charge(order=order.id))

A rolled-back or closed transaction enqueues nothing, and neither does a rolled-back savepoint.
A crash between commit and publish loses the job: see `amqpjobs.contrib`. The session's own
commit counts, also where its connection is in a transaction of somebody else's, as in tests.
"""

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, overload

from typing_extensions import Unpack

from amqpjobs.blocking import BlockingClient
from amqpjobs.envelope import new_id
from amqpjobs.handle import Enqueue, EnqueueOptions, refuse_reply
from amqpjobs.job import Job

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session, SessionTransaction

T = TypeVar("T")

#: Where a session keeps what waits for its commit.
_KEY = "amqpjobs.contrib.sqlalchemy"


class AsyncProducer(Protocol):
    """An `App`, for what enqueues with an AsyncSession."""

    @property
    def enqueue(self) -> Enqueue: ...
    def check(self, job: Job[Any], **options: Unpack[EnqueueOptions]) -> None: ...


@overload
def enqueue_on_commit(
    client: BlockingClient, session: "Session", job: Job[Any], **options: Unpack[EnqueueOptions]
) -> str: ...
@overload
def enqueue_on_commit(
    client: AsyncProducer, session: "AsyncSession", job: Job[Any], **options: Unpack[EnqueueOptions]
) -> str: ...


def enqueue_on_commit(
    client: BlockingClient | AsyncProducer,
    session: "Session | AsyncSession",
    job: Job[Any],
    **options: Unpack[EnqueueOptions],
) -> str:
    """Enqueue once the session's transaction has committed; with an AsyncSession, by an `App`.

    Returns the id that the job will have. Options are those of `App.enqueue`; `delay` and
    `expires` count from the commit, and so does the `deadline` for which the commit waits.
    Like a statement, it begins a transaction if there is none. What cannot be enqueued at all
    is refused here, as by `App.check`.

    Jobs are enqueued in their order, after the connection went back to its pool. The first
    error comes out of the commit, when the data is committed already; a note on it tells
    which jobs were therefore not tried.
    """
    from sqlalchemy.orm import Session

    own = session if isinstance(session, Session) else session.sync_session
    if (own is session) is not isinstance(client, BlockingClient):
        raise TypeError("A Session wants a BlockingClient, and an AsyncSession an App.")
    refuse_reply(options, "that waits for a commit")
    client.check(job, **options)
    job_id = options.get("job_id")
    if job_id is None:
        options["job_id"] = job_id = new_id()
    _list_of(own).add(_Waiting(client, job, job_id, options))
    return job_id


class _Waiting:
    """A job that waits for a commit."""

    def __init__(
        self, client: BlockingClient | AsyncProducer, job: Job[Any], job_id: str, options: EnqueueOptions
    ) -> None:
        self._client = client
        self._job = job
        self._job_id = job_id
        self._options = options

    def __str__(self) -> str:
        return f"{type(self._job).__name__} ({self._job_id})"

    def enqueue(self) -> None:
        if isinstance(self._client, BlockingClient):
            self._client.enqueue(self._job, **self._options)
        else:
            _awaited(self._client.enqueue(self._job, **self._options))


class _WaitingList:
    """The jobs of one session, by the transaction or savepoint that must commit first."""

    def __init__(self, session: "Session") -> None:
        from sqlalchemy import event

        self._session = session
        self._waiting: dict[SessionTransaction, list[_Waiting]] = {}
        self._committed: SessionTransaction | None = None
        event.listen(session, "after_commit", self._after_commit)
        event.listen(session, "after_transaction_end", self._after_end)

    def add(self, waiting: _Waiting) -> None:
        self._waiting.setdefault(self._current() or self._session.begin(), []).append(waiting)

    def _current(self) -> "SessionTransaction | None":
        return self._session.get_nested_transaction() or self._session.get_transaction()

    def _after_commit(self, session: "Session") -> None:
        self._committed = self._current()

    def _after_end(self, session: "Session", ended: "SessionTransaction") -> None:
        """Only here is the session free again, so that an error of ours leaves it in order."""
        jobs = self._waiting.pop(ended, [])
        is_committed, self._committed = self._committed is ended, None
        if not is_committed:
            return
        if ended.nested:
            self._hand_up(ended, jobs)
        else:
            _enqueue_all(jobs)

    def _hand_up(self, savepoint: "SessionTransaction", jobs: list[_Waiting]) -> None:
        parent = self._current()
        if parent is not None and jobs:
            self._waiting.setdefault(parent, []).extend(jobs)


def _list_of(session: "Session") -> _WaitingList:
    if _KEY not in session.info:
        session.info[_KEY] = _WaitingList(session)
    return cast("_WaitingList", session.info[_KEY])


def _enqueue_all(jobs: list[_Waiting]) -> None:
    for position, job in enumerate(jobs):
        try:
            job.enqueue()
        except Exception as error:
            if untried := jobs[position + 1 :]:
                error.add_note(f"Committed, and not tried after this one: {', '.join(map(str, untried))}.")
            raise


def _awaited(awaitable: Awaitable[T]) -> T:
    """Wait for it from within the commit, which an AsyncSession runs in a greenlet."""
    from sqlalchemy.util import await_only

    return await_only(awaitable)
