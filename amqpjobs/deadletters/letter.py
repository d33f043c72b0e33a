"""A dead letter, and how a message becomes one.

Whatever a header holds, a letter comes of it: what is missing or of a wrong type is None.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import cast

from amqpjobs.codec import PREFIX
from amqpjobs.deadletters.place import Place, PlaceName
from amqpjobs.wire import Headers, HeaderValue, Properties

# With a dot: what begins with `amqpjobs-` is written anew by each worker, and these are a
# job's history, which rides along through retries as a user's own headers do.
#: How many times it was requeued.
REQUEUES = "amqpjobs.requeues"
#: The message id of the dead letter it was last made from, and when (ms since the epoch).
REQUEUED_FROM, REQUEUED_AT = "amqpjobs.requeued-from", "amqpjobs.requeued-at"
#: The message id of the letter with the payload before it was edited, and when (ms since the epoch).
EDITED_FROM, EDITED_AT = "amqpjobs.edited-from", "amqpjobs.edited-at"

#: Characters of a body that a letter shows when it is not asked to keep the whole.
PREVIEW = 200
#: The broker's words for why it dead-lettered a message itself, where ours say more.
_BROKER_REASONS = {"delivery_limit": "worker_lost"}
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?=:|$)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that waits for a person. What it does not tell, or tells wrongly, is None."""

    place: Place
    #: From 1, the oldest.
    position: int
    job_id: str | None
    message_id: str | None
    kind: str | None
    attempt: int
    #: A `DeadReason`, or what the broker did itself: rejected, worker_lost (its delivery limit), expired.
    reason: str | None
    error: str | None
    #: The class the error's text begins with.
    exception: str | None
    traceback: str | None
    dead_at: datetime | None
    first_at: datetime | None
    expires_at: datetime | None
    host: str | None
    #: The queue it died in.
    queue: str | None
    #: How many times it was requeued before.
    requeues: int
    #: Bytes of the body.
    size: int
    #: The body's beginning.
    preview: str
    #: The whole body, where it was asked for.
    body: bytes | None
    properties: Properties

    @property
    def headers(self) -> Headers:
        return self.properties.headers

    @property
    def since(self) -> datetime | None:
        """When it came to this place, as far as it says: when it died, else when it was enqueued."""
        return self.dead_at or _aware(self.properties.timestamp)

    @property
    def identity(self) -> str:
        """The job id; for who has none, one that is always the same."""
        return self.job_id or sha256(self.body or b"").hexdigest()[:32]

    @property
    def fingerprint(self) -> str:
        """Equal for copies of one letter. It needs its body."""
        seen = f"{self.identity}|{self.kind}|{self.reason}|{self.dead_at}|{self.attempt}|".encode()
        return sha256(seen + (self.body or b"")).hexdigest()


def letter_of(
    properties: Properties, body: bytes, place: Place, position: int, *, keep_body: bool = False
) -> DeadLetter:
    """A message as a letter. Nothing in it can make this fail."""
    headers = properties.headers
    death = _death(headers if place.name is PlaceName.DEAD else {})
    error, broker_reason = text_of(headers, "dead-error"), death.get("reason")
    exception = _EXCEPTION.match(error) if error else None
    reason = text_of(headers, "dead-reason")
    if reason is None and isinstance(broker_reason, str):
        reason = _BROKER_REASONS.get(broker_reason, broker_reason)
    return DeadLetter(
        place=place,
        position=position,
        job_id=text_of(headers, "id") or properties.message_id or None,
        message_id=properties.message_id or None,
        kind=properties.kind or None,
        attempt=_number(headers.get(PREFIX + "attempt")) or 1,
        reason=reason,
        error=error,
        exception=exception[0] if exception else None,
        traceback=text_of(headers, "dead-traceback"),
        dead_at=time_of(headers, "dead-at") or _aware(death.get("time")),
        first_at=time_of(headers, "first-at"),
        expires_at=time_of(headers, "expires-at"),
        host=text_of(headers, "dead-host"),
        queue=text_of(headers, "dead-queue") or place.queue or None,
        requeues=_number(headers.get(REQUEUES)) or 0,
        size=len(body),
        preview=body[: 4 * PREVIEW].decode("utf-8", "replace")[:PREVIEW],
        body=body if keep_body else None,
        properties=properties,
    )


def text_of(headers: Headers, name: str) -> str | None:
    """One of our headers, when it is a text with something in it."""
    value = headers.get(PREFIX + name)
    return value if isinstance(value, str) and value else None


def time_of(headers: Headers, name: str) -> datetime | None:
    """One of our headers, when it is a time."""
    value = _number(headers.get(PREFIX + name))
    try:
        return None if value is None else _EPOCH + value * _MILLISECOND
    except OverflowError:
        return None


def _death(headers: Headers) -> Mapping[str, object]:
    """The broker's last own dead-lettering; the newest comes first."""
    deaths = headers.get("x-death")
    first = cast("list[object]", deaths)[0] if isinstance(deaths, list) and deaths else None
    return cast("Mapping[str, object]", first) if isinstance(first, dict) else {}


def _number(value: HeaderValue) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _aware(value: object) -> datetime | None:
    return value if isinstance(value, datetime) and value.utcoffset() is not None else None
