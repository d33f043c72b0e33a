"""An `amqpjobs send` to begin with: a job class's required fields, each with a value that looks like one."""

import shlex
from collections.abc import Mapping
from typing import Any, cast

from amqpjobs.codec import dumps, job_from
from amqpjobs.errors import AmqpJobsError
from amqpjobs.job import Job, options_of
from amqpjobs.schemas import payload_schema

#: By JSON Schema's `format`, then by its `type`.
_FORMATS = {
    "email": "ada@example.org",
    "uri": "https://example.org/",
    "uuid": "0197a3e2-7c51-7b1f-9d3e-0f5a6b7c8d9e",
    "date": "2030-01-31",
    "date-time": "2030-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "PT1M",
}
_TYPES: dict[str, object] = {"string": "text", "integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}}


def example_of(job: type[Job[Any]]) -> str:
    """`KIND FIELD=VALUE…`, to be pasted into a shell; where no value is known to fit, `…` stands for it."""
    values = _values(job)
    fields = [_word(name, value) for name, value in values.items()]
    return " ".join(shlex.quote(word) for word in (options_of(job).kind, *fields))


def _values(job: type[Job[Any]]) -> Mapping[str, object]:
    try:
        schema = payload_schema(job, "validation")
    except AmqpJobsError:  # a type that JSON Schema cannot say
        return {}
    required = cast("list[str]", schema.get("required", []))
    # In the order of the class; what is written by another name comes last.
    names = sorted(required, key=[*schema["properties"], *required].index)
    found = {name: _value(schema["properties"].get(name, {}), schema) for name in names}
    try:
        job_from(job, dumps(found))
    except AmqpJobsError:
        return dict.fromkeys(found, "…")
    return found


def _value(schema: Mapping[str, Any], document: Mapping[str, Any]) -> object:
    for _ in range(10):  # a `$ref` may lead to another one
        if "$ref" in schema:
            schema = document.get("$defs", {}).get(str(schema["$ref"]).rpartition("/")[2], {})
        elif "anyOf" in schema:
            schema = schema["anyOf"][0]
    if "const" in schema:
        return schema["const"]
    for several in ("enum", "examples"):
        if schema.get(several):
            return schema[several][0]
    if "minimum" in schema:
        return schema["minimum"]
    return _FORMATS.get(schema.get("format", "")) or _TYPES.get(schema.get("type", ""), "text")


def _word(name: str, value: object) -> str:
    return f"{name}={value}" if isinstance(value, str) else f"{name}:={dumps(value).decode()}"
