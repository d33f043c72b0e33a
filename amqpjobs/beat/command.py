"""What a beat may be told at runtime, and how that is written.

A command waits in a durable queue until a beat leads, for as long as it takes: what was paused
must stay so. Only a trigger is of no use any more after an hour, and would be a surprise.

Whoever may write to the queue is trusted to command, but not to write well: what is read is
bounded first, then checked.
"""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from amqpjobs.beat.added import LONGEST_ADDED, Added, Name
from amqpjobs.codec import problems_of
from amqpjobs.envelope import new_id
from amqpjobs.errors import ScheduleError
from amqpjobs.topology import Route
from amqpjobs.wire import Delivery, Properties, Publication

#: A trigger that no beat has read for so long is dropped.
TRIGGER_WITHIN = timedelta(hours=1)
#: Bytes of a command; JSON in JSON needs more room.
LONGEST_COMMAND = 2 * LONGEST_ADDED + 4096

_KIND = "amqpjobs.beat.command"


class Verb(StrEnum):
    ADD = "add"
    REMOVE = "remove"
    PAUSE = "pause"
    RESUME = "resume"
    TRIGGER = "trigger"


class Command(BaseModel):
    """One wish about one schedule."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Part of the id of a triggered job.
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")] = Field(default_factory=new_id)
    verb: Verb
    name: Name
    at: AwareDatetime
    #: Who asks, as they call themselves.
    by: Annotated[str, Field(max_length=255)] = ""
    #: Only to add.
    added: Added | None = None
    #: Add it instead of one of the same name.
    replace: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.verb is Verb.ADD) != (self.added is not None):
            raise ValueError("a schedule goes with add, and only with that")
        if self.added is not None and self.added.name != self.name:
            raise ValueError("the schedule has another name than the command")
        return self

    @property
    def job_id(self) -> str:
        """That of the job it triggers: `report@trigger.0197…`, the same when it comes twice."""
        return f"{self.name}@trigger.{self.id}"

    def is_too_old(self, now: datetime) -> bool:
        return self.verb is Verb.TRIGGER and now - self.at > TRIGGER_WITHIN

    def publication(self, route: Route) -> Publication:
        properties = Properties(kind=_KIND, message_id=new_id(), content_type="application/json")
        body = self.model_dump_json(exclude_defaults=True).encode()
        return Publication(exchange=route.exchange, routing_key=route.key, body=body, properties=properties)


def command_in(delivery: Delivery) -> Command:
    """Raises ScheduleError, which never repeats what was in it."""
    if len(delivery.body) > LONGEST_COMMAND:
        raise ScheduleError(f"A command has {LONGEST_COMMAND:,} bytes at most, not {len(delivery.body):,}.")
    try:
        return Command.model_validate_json(delivery.body)
    except ValidationError as error:
        raise ScheduleError(f"This is no command: {'; '.join(problems_of(error)[:5])}.") from None
    except RecursionError:
        raise ScheduleError("This is no command: it is nested too deeply.") from None
