"""The contracts of services as an AsyncAPI 3.0 document, for the tools of that world.

One channel and one operation for each kind: the service receives it, and replies where its
result is more than nothing. All models stand under `components`, each once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from amqpjobs.job import Job, options_of
from amqpjobs.schemas import SchemaWriter, payload_schema, result_schema
from amqpjobs.subschemas import is_dict, is_list
from amqpjobs.topology import Route

_BINDINGS = "0.3.0"
_HEADERS: Mapping[str, Mapping[str, Any]] = {
    "amqpjobs-id": {"type": "string", "description": "The job's id; else the message id is taken."},
    "amqpjobs-version": {"type": "integer", "minimum": 1, "description": "Of the payload; without it, the current."},
    "amqpjobs-expires-at": {"type": "integer", "description": "Not after: milliseconds since the epoch."},
    "amqpjobs-max-attempts": {"type": "integer", "minimum": 1},
    "amqpjobs-timeout-ms": {"type": "integer", "minimum": 1},
}


def asyncapi(title: str, jobs: Sequence[tuple[type[Job[Any]], Route]]) -> dict[str, Any]:
    """The document of these job classes, each with the exchange and key it is published to."""
    routes = dict(sorted(((options_of(job).kind, (job, route)) for job, route in jobs), key=lambda each: each[0]))
    # No kind has two dots in a row, so that results have names of their own.
    schemas, models = _schemas([job for job, _ in routes.values()])
    channels, operations, messages = dict[str, Any](), dict[str, Any](), dict[str, Any]()
    for kind, (job, route) in routes.items():
        channels[kind] = _channel(kind, route)
        operations[kind] = {
            "action": "receive",
            "channel": {"$ref": f"#/channels/{kind}"},
            "messages": [{"$ref": f"#/channels/{kind}/messages/job"}],
        }
        messages[kind] = _message(job, schemas[kind, "validation"])
        result = schemas[kind, "serialization"]
        if result != {"type": "null"}:
            channels[f"{kind}..result"] = _reply_channel(kind)
            operations[kind]["reply"] = _reply(kind)
            messages[f"{kind}..result"] = {"contentType": "application/json", "payload": _answer(result)}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": "1.0.0", "description": "Jobs on RabbitMQ, written by amqpjobs."},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": models},
    }


def _channel(kind: str, route: Route) -> dict[str, Any]:
    exchange = {"name": route.exchange, "type": "topic", "durable": True, "autoDelete": False}
    return {
        "address": route.key,
        "messages": {"job": {"$ref": f"#/components/messages/{kind}"}},
        "bindings": {"amqp": {"is": "routingKey", "exchange": exchange, "bindingVersion": _BINDINGS}},
    }


def _reply_channel(kind: str) -> dict[str, Any]:
    return {"address": None, "messages": {"result": {"$ref": f"#/components/messages/{kind}..result"}}}


def _reply(kind: str) -> dict[str, Any]:
    return {
        "address": {"location": "$message.header#/reply_to", "description": "The AMQP property reply_to."},
        "channel": {"$ref": f"#/channels/{kind}..result"},
        "messages": [{"$ref": f"#/channels/{kind}..result/messages/result"}],
    }


def _answer(result: Mapping[str, Any]) -> dict[str, Any]:
    """How a job has ended; the result is there when it has completed, and nothing kept it from being told."""
    texts = {name: {"type": "string"} for name in ("type", "message", "traceback")}
    return {
        "type": "object",
        "required": ["state"],
        "properties": {
            "state": {"enum": ["completed", "dead", "cancelled", "expired"]},
            "result": result,
            "reason": {"type": "string"},
            "error": {"anyOf": [{"type": "object", "properties": texts}, {"type": "null"}]},
        },
    }


def _message(job: type[Job[Any]], payload: Mapping[str, Any]) -> dict[str, Any]:
    own = options_of(job)
    told = {"description": job.__doc__} if job.__doc__ else {}
    return told | {
        "name": own.kind,
        "title": job.__name__,
        "contentType": "application/json",
        "headers": {"type": "object", "properties": _HEADERS},
        "payload": payload,
        "bindings": {"amqp": {"messageType": own.kind, "bindingVersion": _BINDINGS}},
        "x-amqpjobs-version": own.version,
        "x-amqpjobs-aliases": sorted(own.aliases),
    }


def _schemas(jobs: Sequence[type[Job[Any]]]) -> tuple[dict[tuple[str, str], Any], dict[str, Any]]:
    """Payloads and results by kind and mode, and the models they refer to, each by a name of its own."""
    wanted = list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]]()
    found = dict[tuple[str, str], Any]()
    for job in jobs:
        kind, result = options_of(job).kind, result_schema(job)
        payload_schema(job, "validation")  # says which class cannot be described
        wanted.append((kind, "validation", TypeAdapter(job)))
        found[kind, "serialization"] = result
        if "$comment" not in result:
            returned: Any = job.result_type()
            wanted.append((kind, "serialization", TypeAdapter(returned)))
    made, models = TypeAdapter.json_schemas(
        wanted, ref_template="#/components/schemas/{model}", schema_generator=SchemaWriter
    )
    found.update({(kind, mode): _without_mappings(schema) for (kind, mode), schema in made.items()})
    return found, {name: _without_mappings(each) for name, each in models.get("$defs", {}).items()}


def _without_mappings(node: object) -> Any:
    """AsyncAPI's discriminator is one string; the constants in the members of a union tell the same."""
    if is_list(node):
        return [_without_mappings(each) for each in node]
    if not is_dict(node):
        return node
    is_union = "oneOf" in node and is_dict(node.get("discriminator"))
    return {key: _without_mappings(value) for key, value in node.items() if not (is_union and key == "discriminator")}
