"""A schedule as data, to be kept by the broker and made again by another process.

Only what is made by `cron`, `every` and `at`, and `between` and `jittered` of these, can be
written down: each form names one of our own constructors, and nothing is ever imported by a
name. What is read may come from anybody, so it passes the constructors' own checks, and costs
no more to ask than what a program would declare: there is nothing that counts or searches far.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from amqpjobs.beat.cron import Cron, cron
from amqpjobs.beat.every import At, Every, at, every
from amqpjobs.beat.refined import Between, Jittered, Refinable
from amqpjobs.beat.schedule import Schedule, describe
from amqpjobs.errors import DefinitionError


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    #: `between` these.
    start: AwareDatetime | None = None
    end: AwareDatetime | None = None
    #: Seconds of `jittered`, after that.
    jitter: Annotated[float, Field(gt=0, le=366 * 86_400)] | None = None

    def refined(self, schedule: Refinable) -> Refinable:
        if self.start is not None or self.end is not None:
            schedule = schedule.between(self.start, self.end)
        return schedule if self.jitter is None else schedule.jittered(self.jitter)


class CronForm(_Form):
    """`cron(…)`."""

    cron: Annotated[str, Field(max_length=500)]
    timezone: Annotated[str, Field(max_length=100)] = "UTC"
    #: Where they stand in six fields.
    seconds: Literal["first", "last"] | None = None

    def schedule(self) -> Refinable:
        """Raises DefinitionError."""
        return self.refined(cron(self.cron, timezone=self.timezone, seconds=self.seconds))


class EveryForm(_Form):
    """`every(…)`."""

    every: float
    #: `every(start=…)`: what is counted from.
    origin: AwareDatetime | None = None
    from_start: bool = False
    at_start: bool = False

    def schedule(self) -> Refinable:
        """Raises DefinitionError."""
        made = every(self.every, start=self.origin, from_start=self.from_start, at_start=self.at_start)
        return self.refined(made)


class AtForm(_Form):
    """`at(…)`."""

    at: AwareDatetime

    def schedule(self) -> Refinable:
        """Raises DefinitionError."""
        return self.refined(at(self.at))


Form = CronForm | EveryForm | AtForm


def form_of(schedule: Schedule) -> Form:
    """What `Form.schedule` makes an equal one of. Raises DefinitionError where there is none."""
    start: datetime | None = None
    end: datetime | None = None
    jitter: float | None = None
    plain = schedule
    if isinstance(plain, Jittered):
        jitter = plain.most.total_seconds()
        plain = plain.inner
    if isinstance(plain, Between):
        start, end = plain.start, plain.end
        plain = plain.inner
    form: Form
    match plain:
        case Cron(fields=fields, timezone=timezone):
            six = len(fields.text.split()) == 6  # its text begins with the seconds
            form = CronForm(
                cron=fields.text,
                timezone=timezone,
                seconds="first" if six else None,
                start=start,
                end=end,
                jitter=jitter,
            )
        case Every():
            form = EveryForm(
                every=plain.interval.total_seconds(),
                origin=plain.start,
                from_start=plain.from_start,
                at_start=plain.at_start,
                start=start,
                end=end,
                jitter=jitter,
            )
        case At(instant=instant):
            form = AtForm(at=instant, start=start, end=end, jitter=jitter)
        case _:
            raise _unwritable(schedule)
    if str(form.schedule()) != str(schedule):
        raise _unwritable(schedule)
    return form


def _unwritable(schedule: Schedule) -> DefinitionError:
    return DefinitionError(
        f"{describe(schedule)!r} cannot be added at runtime: a schedule that the broker keeps is cron(…), every(…) or "
        "at(…), perhaps with .between(…) and then .jittered(…). Declare it in the code: app.schedule(…)."
    )
