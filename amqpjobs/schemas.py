"""JSON Schemas of payloads and results, as pydantic writes them, and what it leaves out.

A comparison needs to know by which names a field is read, which limits JSON Schema has no word
for, and that there are validators in Python: these stand in keys that begin with `x-amqpjobs-`.
Defaults of secrets are left out, and so are titles that only repeat a field's name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue, JsonSchemaWarningKind
from pydantic_core import core_schema

from amqpjobs.errors import DefinitionError
from amqpjobs.job import Job
from amqpjobs.subschemas import ALSO, CHECKS, LIMITS, PYTHON_NAME

_LIMITS = (
    *("gt", "ge", "lt", "le", "multiple_of", "max_digits", "decimal_places"),
    *("now_op", "tz_constraint", "allowed_schemes", "host_required"),
)


def payload_schema(job: type[Job[Any]], mode: JsonSchemaMode) -> dict[str, Any]:
    """What may be sent (validation), or what we send (serialization). Raises DefinitionError."""
    try:
        return job.model_json_schema(schema_generator=SchemaWriter, mode=mode)
    except PydanticUserError as error:
        raise DefinitionError(
            f"The payload of {place_of(job)} has no JSON Schema: {str(error).splitlines()[0]} "
            "Say what it is by pydantic's WithJsonSchema."
        ) from None


def result_schema(job: type[Job[Any]]) -> dict[str, Any]:
    """What a handler returns; a type that JSON Schema cannot describe may be anything."""
    wanted: Any = job.result_type()
    try:
        return TypeAdapter(wanted).json_schema(schema_generator=SchemaWriter, mode="serialization")
    except PydanticUserError:
        return {"$comment": "a type without a JSON Schema"}


def place_of(job: type[Job[Any]]) -> str:
    """Where a job class is defined."""
    return f"{job.__module__}.{job.__qualname__}"


class SchemaWriter(GenerateJsonSchema):
    """Pydantic's JSON Schema, with what it leaves out and a comparison needs, and no default of a secret."""

    ignored_warning_kinds: set[JsonSchemaWarningKind] = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012  (declared so by pydantic)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_fields_schema(self, schema: core_schema.ModelFieldsSchema) -> JsonSchemaValue:
        made = super().model_fields_schema(schema)
        if "required" in made:
            made["required"] = sorted(made["required"])
        if self.mode == "validation":
            by_name = bool(self._config.populate_by_name or self._config.validate_by_name)
            for name, field in schema["fields"].items():
                _name(made["properties"], name, _aliases(field.get("validation_alias"), name, by_name))
        return made

    def field_is_required(
        self,
        field: core_schema.ModelField | core_schema.DataclassField | core_schema.TypedDictField,
        total: bool,
    ) -> bool:
        if self.mode == "serialization" and field["type"] != "typed-dict-field":
            return not field.get("serialization_exclude")  # defaults are written out
        return super().field_is_required(field, total)

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        made = super().default_schema(schema)
        return {key: value for key, value in made.items() if key != "default"} if made.get("writeOnly") else made

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        made = super().decimal_schema(schema)
        for each in made.get("anyOf", []):
            if each.get("type") == "string":
                each["format"] = "decimal"
        return _limited(made, schema)

    def date_schema(self, schema: core_schema.DateSchema) -> JsonSchemaValue:
        return _limited(super().date_schema(schema), schema)

    def time_schema(self, schema: core_schema.TimeSchema) -> JsonSchemaValue:
        return _limited(super().time_schema(schema), schema)

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        return _limited(super().datetime_schema(schema), schema)

    def timedelta_schema(self, schema: core_schema.TimedeltaSchema) -> JsonSchemaValue:
        return _limited(super().timedelta_schema(schema), schema)

    def url_schema(self, schema: core_schema.UrlSchema) -> JsonSchemaValue:
        return _limited(super().url_schema(schema), schema)

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        return _checked(super().function_before_schema(schema), schema["function"]["function"])

    def function_after_schema(self, schema: core_schema.AfterValidatorFunctionSchema) -> JsonSchemaValue:
        return _checked(super().function_after_schema(schema), schema["function"]["function"])

    def function_wrap_schema(self, schema: core_schema.WrapValidatorFunctionSchema) -> JsonSchemaValue:
        return _checked(super().function_wrap_schema(schema), schema["function"]["function"])

    def function_plain_schema(self, schema: core_schema.PlainValidatorFunctionSchema) -> JsonSchemaValue:
        return _checked(super().function_plain_schema(schema), schema["function"]["function"])


def _aliases(alias: str | list[str | int] | list[list[str | int]] | None, name: str, by_name: bool) -> list[str]:
    """The keys a field is read from, the one in the schema first. Paths into other fields are left out."""
    match alias:
        case None:
            return [name]
        case str():
            found = [alias]
        case _:
            found = [str(each[0]) for each in alias if isinstance(each, list) and len(each) == 1]
    return [*found, name] if by_name else found


def _name(properties: dict[str, Any], name: str, keys: Sequence[str]) -> None:
    shown = next((key for key in keys if key in properties), None)
    if shown is None:
        return
    others = sorted({*keys} - {shown})
    extra: dict[str, Any] = ({ALSO: others} if others else {}) | ({PYTHON_NAME: name} if name != shown else {})
    properties[shown] = {**properties[shown], **extra}


def _limited(made: JsonSchemaValue, schema: Mapping[str, Any]) -> JsonSchemaValue:
    limits = {key: str(schema[key]) for key in _LIMITS if schema.get(key) is not None}
    return made | {LIMITS: limits} if limits else made


def _checked(made: JsonSchemaValue, function: Any) -> JsonSchemaValue:
    module: str = getattr(function, "__module__", None) or ""
    if module.split(".")[0] in ("pydantic", "pydantic_core"):  # its types say by their format what they take
        return made
    name: str = getattr(function, "__name__", type(function).__name__)
    return made | {CHECKS: sorted({*made.get(CHECKS, []), name})}
