"""The fields of a job that its class lets spans show; all others stay in the payload."""

from typing import Any, cast

from amqpjobs.codec import dumps, loads
from amqpjobs.job import Job, traceable_fields
from amqpjobs.telemetry import names
from amqpjobs.telemetry.spans import Attributes, text


def fields_of(job: type[Job[Any]], payload: bytes) -> Attributes:
    """Those that the payload has; none of one that is no JSON object."""
    marked = traceable_fields(job)
    if not marked:
        return {}
    try:
        found: object = loads(payload)
    except ValueError:
        return {}
    values = cast("dict[str, object]", found) if isinstance(found, dict) else {}
    return {names.JOB_FIELD + name: _shown(values[key]) for name, key in marked.items() if values.get(key) is not None}


def _shown(value: object) -> bool | int | float | str:
    if isinstance(value, bool | int | float):
        return value
    return text(value if isinstance(value, str) else dumps(value).decode())
