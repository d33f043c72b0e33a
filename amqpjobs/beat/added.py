"""A schedule that was added at runtime, as the broker keeps it.

Its job is kept as it goes over the wire, so that a beat needs no class for it: an app may let its
users schedule jobs that only other services know. Whoever adds one has the class, and validates.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from amqpjobs.beat.form import Form, form_of
from amqpjobs.beat.plan import CATCH_UP, GRACE, OVERLAP_LIMIT, Misfire, Overlap, Scheduled, TickOptions
from amqpjobs.clock import Seconds, in_seconds
from amqpjobs.codec import loads, problems_of
from amqpjobs.draft import WrittenJob, written
from amqpjobs.errors import DefinitionError, TooLargeError
from amqpjobs.job import LONGEST_NAME, JobOptions, check_name

#: Schedules that one app may have beside the declared ones.
MOST_ADDED = 10_000
#: Bytes of one of them as JSON, and of all together.
LONGEST_ADDED, LONGEST_TOGETHER = 64 * 1024, 4 * 1024 * 1024

Name = Annotated[str, Field(max_length=LONGEST_NAME)]
Span = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Added(BaseModel):
    """One of them; spans are seconds. `scheduled` says whether it can be followed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    schedule: Form
    kind: Name
    #: Of the payload.
    version: Annotated[int, Field(ge=1, lt=2**31)] = 1
    #: A job's own JSON.
    payload: str
    exchange: Annotated[str, Field(max_length=255)] = ""
    delay: Span | None = None
    shard_by: Annotated[str, Field(max_length=255)] | None = None
    misfire: Misfire = "once"
    limit: int = CATCH_UP
    grace: Span = GRACE
    overlap: Overlap = "allow"
    overlap_limit: Span = OVERLAP_LIMIT
    expires: Span | None = None
    queue: Name | None = None
    priority: int | None = None
    headers: dict[str, str | int | float | bool | None] | None = None
    max_attempts: int | None = None
    timeout: Span | None = None
    on_unroutable: Literal["raise", "park"] = "raise"

    def data(self) -> dict[str, Any]:
        """As JSON has it, what is usual left out."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def scheduled(self) -> Scheduled:
        """What a beat follows. Raises DefinitionError for what cannot be."""
        check_name(self.kind, "Kind")
        _check_payload(self.payload)
        options = JobOptions(
            kind=self.kind, version=self.version, exchange=self.exchange, delay=self.delay, shard_by=self.shard_by
        )
        return Scheduled(
            name=self.name,
            schedule=self.schedule.schedule(),
            job=WrittenJob(self.payload.encode(), options),
            misfire=self.misfire,
            limit=self.limit,
            grace=self.grace,
            overlap=self.overlap,
            overlap_limit=self.overlap_limit,
            options=self._options(),
        )

    def _options(self) -> TickOptions:
        given = {name: getattr(self, name) for name in TickOptions.__annotations__}
        return cast("TickOptions", {name: value for name, value in given.items() if value is not None})


def added_of(scheduled: Scheduled) -> Added:
    """A schedule with a job of a known class, to be kept. Raises DefinitionError or TooLargeError."""
    job, own, options = scheduled.job, scheduled.job_options, scheduled.options
    payload = job if isinstance(job, WrittenJob) else written(job)
    made = _validated(
        name=scheduled.name,
        schedule=form_of(scheduled.schedule),
        kind=own.kind,
        version=own.version,
        payload=payload.payload.decode(),
        exchange=own.exchange,
        delay=own.delay,
        shard_by=own.shard_by,
        misfire=scheduled.misfire,
        limit=scheduled.limit,
        grace=scheduled.grace,
        overlap=scheduled.overlap,
        overlap_limit=scheduled.overlap_limit,
        expires=_seconds(options.get("expires"), own.expires),
        queue=options.get("queue") or own.queue or None,
        priority=own.priority if options.get("priority") is None else options.get("priority"),
        headers={**own.headers, **(options.get("headers") or {})} or None,
        max_attempts=options.get("max_attempts"),
        timeout=_seconds(options.get("timeout"), None),
        on_unroutable=options.get("on_unroutable", "raise"),
    )
    check_length(made)
    return made


def added_from(data: object) -> Added:
    """What was kept, or came with a command. Raises DefinitionError, which never repeats the values."""
    try:
        return Added.model_validate(data)
    except ValidationError as error:
        raise DefinitionError(f"It cannot be read: {'; '.join(problems_of(error)[:5])}.") from None


def check_length(added: Added) -> None:
    """Raises TooLargeError."""
    length = len(added.model_dump_json(exclude_defaults=True).encode())
    if length > LONGEST_ADDED:
        raise TooLargeError(
            f"Schedule {added.name!r} has {length:,} bytes with its job, and {LONGEST_ADDED:,} are the most. "
            "Keep what is large in a store of its own, and its address in the job."
        )


def _validated(**given: object) -> Added:
    try:
        return Added.model_validate(given)
    except ValidationError as error:
        raise DefinitionError(f"The schedule cannot be kept: {'; '.join(problems_of(error)[:5])}.") from None


def _check_payload(payload: str) -> None:
    try:
        found: object = loads(payload)
    except ValueError:
        found = None
    if not isinstance(found, Mapping):
        raise DefinitionError("The payload of its job is no JSON object.")


def _seconds(span: Seconds | None, otherwise: float | None) -> float | None:
    return otherwise if span is None else in_seconds(span)
