"""The jobs of the reports service: one that others enqueue, and two that are scheduled."""

from datetime import date
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, Field, StringConstraints

from amqpjobs import Job


class Report(BaseModel):
    """A report that was written."""

    day: date
    sales: int
    cents: int


class RecordSale(Job[None], kind="reports.sale", timeout=30):
    """Something was sold."""

    item: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
    cents: int = Field(ge=0)
    at: AwareDatetime


class WriteReport(Job[Report], kind="reports.daily", timeout=120):
    """Report what was sold before a day, and not reported yet."""

    #: None: the day of the tick that this job comes from, or today.
    day: date | None = None


class CleanUp(Job[int], kind="reports.clean_up", timeout=600):
    """Delete old reports, and sales that they were about; how many reports."""
