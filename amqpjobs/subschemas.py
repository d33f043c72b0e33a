"""A JSON Schema taken apart: references, unions and enums resolved, notes left out.

Made for the schemas that pydantic writes; the keys of our own say what JSON Schema cannot.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeGuard

from amqpjobs.codec import canonical

Schema = Mapping[str, Any]

#: Other names that a field is read by, and the name it has in Python where that is not the key.
ALSO, PYTHON_NAME = "x-amqpjobs-also", "x-amqpjobs-field"
#: What JSON Schema cannot say: limits of dates, Decimals and URLs, and the names of validators.
LIMITS, CHECKS = "x-amqpjobs-limits", "x-amqpjobs-validators"

NOTHING: Schema = {"not": {}}
_NOTES = frozenset(
    (
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "$comment",
        "$schema",
        "$defs",
    )
)
_MAPS = frozenset(("properties", "patternProperties", "dependentSchemas"))
RAW = frozenset(("const", "enum", "required", "type"))
UNIONS = ("anyOf", "oneOf")


def alternatives(schema: Schema | bool, root: Schema) -> Iterator[Schema]:
    """A schema as schemas without references, unions or enums, of one type each. May let through more."""
    flat: dict[str, Any] = {}
    for part in parts(whole(schema), root):
        for key, value in part.items():
            if key in flat and key in ("required", CHECKS):
                flat[key] = sorted({*flat[key], *value})
            elif key in flat and key == "properties":
                flat[key] = {**value, **flat[key]}
            else:
                flat.setdefault(key, value)
    for key in UNIONS:
        if key in flat:
            rest = {name: value for name, value in flat.items() if name not in UNIONS}
            tag = whole(rest.pop("discriminator", {})).get("propertyName")
            if tag is not None:
                rest["required"] = sorted({*listed(rest, "required"), tag})
            for option in flat[key]:
                yield from alternatives({"allOf": [rest, option]} if constraints(rest) else option, root)
            return
    if "enum" in flat or "const" in flat:
        checks = {CHECKS: flat[CHECKS]} if CHECKS in flat else {}
        yield from ({"const": value} | checks for value in (flat["enum"] if "enum" in flat else [flat["const"]]))
        return
    for kind in listed(flat, "type") or [None]:
        yield flat | {"type": kind} if kind else flat


def parts(schema: Schema, root: Schema) -> Iterator[Schema]:
    """The schemas that all hold: `allOf` and references resolved."""
    rest = {key: value for key, value in schema.items() if key not in ("allOf", "$ref")}
    if rest:
        yield rest
    for part in listed(schema, "allOf"):
        yield from parts(whole(part), root)
    if "$ref" in schema:
        yield from parts(_target(schema["$ref"], root), root)


def _target(reference: str, root: Schema) -> Schema:
    name = reference.removeprefix("#/$defs/")
    found: Schema | bool = root.get("$defs", {}).get(name, {"$ref-elsewhere": reference})
    return whole(found)


def tag_values(schema: Schema, name: str, root: Schema) -> set[str]:
    """The values a union's tag may have in one of its members."""
    inner = whole(schema.get("properties", {}).get(name, True))
    return {str(each["const"]) for each in alternatives(inner, root) if "const" in each}


def constraints(schema: Schema) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if is_constraint(key)}


def is_constraint(key: str) -> bool:
    return key in (LIMITS, CHECKS) or not (key in _NOTES or key.startswith("x-"))


def bare_text(schema: Schema, root: Schema) -> str:
    """The schema without notes and, where there is a root, without references: equal texts let through the same."""
    return canonical(_bare(schema, root, ()))


def _bare(node: Any, root: Schema, seen: tuple[str, ...]) -> Any:
    if is_list(node):
        return [_bare(each, root, seen) for each in node]
    if not is_dict(node):
        return node
    found = dict[str, Any]()
    for key, value in node.items():
        if key == "$ref" and root and value not in seen:
            found["allOf"] = [_bare(_target(value, root), root, (*seen, value)), *found.get("allOf", [])]
        elif key in RAW:
            found[key] = sorted(value) if key == "required" else value
        elif key in _MAPS:
            found[key] = {name: _bare(inner, root, seen) for name, inner in value.items()}
        elif key == "discriminator":
            found[key] = value.get("propertyName")
        elif is_constraint(key) or key in (ALSO, PYTHON_NAME):
            found[key] = _bare(value, root, seen)
    return found


def whole(schema: Schema | bool) -> Schema:
    if isinstance(schema, bool):
        return {} if schema else NOTHING
    return schema


def listed(schema: Schema, key: str) -> list[Any]:
    value: object = schema.get(key, [])
    return value if is_list(value) else [value]


def is_list(value: object) -> TypeGuard[list[Any]]:
    """A list of JSON's."""
    return isinstance(value, list)


def is_dict(value: object) -> TypeGuard[dict[str, Any]]:
    """An object of JSON's."""
    return isinstance(value, dict)


def type_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def words(schema: Schema) -> str:
    """What a schema without unions takes, for a person."""
    if "const" in schema:
        return shown([schema["const"]])
    kind: str = schema.get("type", "anything")
    named: str = schema.get("title" if kind == "object" else "format", kind)
    return named if named in ("null", "anything") else f"any {named}"


def shown(values: Iterable[object]) -> str:
    return ", ".join(repr(each)[:60] for each in values)
