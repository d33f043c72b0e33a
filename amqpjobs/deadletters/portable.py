"""Letters as lines of JSON, and back: exactly the same messages come of them."""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import datetime
from decimal import Decimal
from typing import Any, cast

from amqpjobs.codec import dumps, loads
from amqpjobs.deadletters.letter import DeadLetter, letter_of
from amqpjobs.deadletters.place import LetterError, Place, PlaceName
from amqpjobs.wire import Headers, HeaderValue, Properties

#: Of the exported lines.
_FORMAT = 1


def line_of(letter: DeadLetter) -> str:
    """One line of JSON: the message with the exact types of its headers, and where it belongs. It needs its body."""
    body = letter.body or b""
    told: dict[str, object] = {"amqpjobs": _FORMAT, "place": letter.place.name.value, "queue": letter.place.queue}
    told |= {each.name: to_json(getattr(letter.properties, each.name)) for each in fields(Properties)}
    try:
        told["body"] = body.decode()
    except UnicodeDecodeError:
        told["body_base64"] = base64.b64encode(body).decode()
    return dumps(told).decode()


def letter_from(line: str, number: int = 1) -> DeadLetter:
    """The letter of a line. Raises LetterError."""
    try:
        told = cast("dict[str, Any]", loads(line))
        if told["amqpjobs"] != _FORMAT:
            raise ValueError(f"its format is {told['amqpjobs']!r}, and this version reads {_FORMAT}")
        place = Place(PlaceName(told["place"]), str(told["queue"]))
        given: dict[str, Any] = {each.name: from_json(told[each.name]) for each in fields(Properties)}
        raw: bytes | None = base64.b64decode(told["body_base64"], validate=True) if "body_base64" in told else None
        body = str(told["body"]).encode() if raw is None else raw
        return letter_of(Properties(**given), body, place, number, keep_body=True)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise LetterError(
            f"Line {number} is no exported dead letter ({type(error).__name__}: {error}). Nothing was imported; "
            "mend or remove the line."
        ) from error


def to_json(value: HeaderValue) -> object:
    """A header value in JSON, told apart from others that would look alike."""
    match value:
        case None | bool() | int():
            return value
        case str():
            return value if _is_clean(value) else {"$text": _base64(value.encode("utf-8", "surrogatepass"))}
        case float():
            return {"$float": value.hex()} if value != value or value in (float("inf"), float("-inf")) else value
        case bytearray():
            return {"$bytearray": _base64(bytes(value))}
        case bytes():
            return {"$bytes": _base64(value)}
        case datetime():
            return {"$time": value.isoformat()}
        case Decimal():
            return {"$decimal": str(value)}
        case list() | tuple():
            return [to_json(each) for each in cast("Iterable[HeaderValue]", value)]
        case Mapping():
            table = cast("Headers", value)
            if all(_is_clean(name) and not name.startswith("$") for name in table):
                return {name: to_json(each) for name, each in table.items()}
            return {"$table": [[to_json(name), to_json(each)] for name, each in table.items()]}
        case _:
            return str(value)


def from_json(value: object) -> Any:
    """Back again. Raises ValueError, KeyError or TypeError."""
    if isinstance(value, list):
        return [from_json(each) for each in cast("list[object]", value)]
    if not isinstance(value, dict):
        return value
    table = cast("dict[str, Any]", value)
    tag = next(iter(table), "")
    if not tag.startswith("$"):
        return {name: from_json(each) for name, each in table.items()}
    inner = table[tag]
    match tag:
        case "$text":
            return base64.b64decode(inner, validate=True).decode("utf-8", "surrogatepass")
        case "$float":
            return float.fromhex(inner)
        case "$bytearray":
            return bytearray(base64.b64decode(inner, validate=True))
        case "$bytes":
            return base64.b64decode(inner, validate=True)
        case "$time":
            return datetime.fromisoformat(inner)
        case "$decimal":
            return Decimal(inner)
        case "$table":
            return {from_json(name): from_json(each) for name, each in inner}
        case _:
            raise ValueError(f"{tag!r} is no type of a header")


def _is_clean(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
