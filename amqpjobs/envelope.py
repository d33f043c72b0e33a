"""One job on its way, between the typed object and the bytes.

The payload stays the bytes that were enqueued: a retry sends the same ones again, so that
fields this code does not know survive. Times are aware UTC datetimes, spans are seconds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from uuid_utils import uuid7

from amqpjobs.wire import HeaderValue, copier_of, maker_of, no_headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A job, where it goes, and how far it has come."""

    kind: str
    payload: bytes
    job_id: str
    #: The jobs exchange it was or will be published to.
    exchange: str = ""
    #: One queue by its own name: where it is sent to, or came from. "" means by kind.
    queue: str = ""
    #: The run about to start, from 1.
    attempt: int = 1
    #: Payload version; None is what a foreign producer sends, and means the current one.
    version: int | None = None
    enqueued_at: datetime | None = None
    run_at: datetime | None = None
    expires_at: datetime | None = None
    #: Only when given at enqueue; they win over the worker's own.
    max_attempts: int | None = None
    timeout: float | None = None
    priority: int | None = None
    #: The job that enqueued this one, and the first of that line.
    parent: str | None = None
    root: str | None = None
    schedule: str | None = None
    #: Of a tick: which publication of it this is. Retries keep it.
    copy: str | None = None
    #: Since when there may be another copy of this tick, if there may be one.
    doubt_since: datetime | None = None
    #: When a worker first saw it and could not finish it.
    first_at: datetime | None = None
    #: Since when no worker knew its kind or version.
    unknown_since: datetime | None = None
    #: Processes it is known to have killed; from the first one on it runs in a process of its own.
    crashes: int = 0
    #: What it is sharded by, as a number; None: it may go to any shard.
    shard_key: int | None = None
    app_id: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    #: Headers of users and of others, ours left out.
    headers: Mapping[str, HeaderValue] = field(default_factory=no_headers)

    if TYPE_CHECKING:

        def evolve(self, **changes: Any) -> "Envelope": ...
    else:
        evolve = replace


make_envelope = maker_of(Envelope)
#: The same for another job: its payload and its id.
make_another: Callable[[Envelope, bytes, str], Envelope] = copier_of(Envelope, "payload", "job_id")


def new_id() -> str:
    """A fresh UUIDv7 (RFC 9562): ids sort by the time they were made."""
    return str(uuid7())
