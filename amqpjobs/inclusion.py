"""Whether all that one JSON Schema lets through, another lets through too; if not, what it narrows.

Made for the schemas that pydantic writes, and careful elsewhere: a keyword it does not know is
fine while it stays as it was, and otherwise counts as a narrowing that is not `certain`. What a
schema cannot say, such as a validator in Python, is not seen.

Surplus fields are no part of the comparison: where a model ignores what it does not know, a new
optional field is taken to be new to older payloads as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amqpjobs.codec import canonical
from amqpjobs.subschemas import (
    ALSO,
    CHECKS,
    NOTHING,
    PYTHON_NAME,
    RAW,
    UNIONS,
    Schema,
    alternatives,
    bare_text,
    constraints,
    is_constraint,
    listed,
    parts,
    shown,
    tag_values,
    type_of,
    whole,
    words,
)

#: Formats that are hints for people and refuse nothing.
_LOOSE_FORMATS = frozenset(("password", "binary", "path", "directory-path", "file-path", "multi-line"))
_OF_OBJECTS = frozenset(("properties", "required", "additionalProperties", "minProperties", "maxProperties"))
_OF_ARRAYS = frozenset(("items", "prefixItems", "minItems", "maxItems", "uniqueItems"))
_OF_STRINGS = frozenset(("minLength", "maxLength", "pattern", "format"))
_OF_NUMBERS = frozenset(("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"))
_KNOWN = _OF_OBJECTS | _OF_ARRAYS | _OF_STRINGS | _OF_NUMBERS | RAW | {"discriminator", CHECKS}
_DEEPEST = 60


@dataclass(frozen=True, slots=True)
class Narrowing:
    """One thing that the old schema lets through and the new one does not, or may not."""

    #: `items[].price`; "" is the whole.
    path: str
    what: str
    advice: str = ""
    certain: bool = True


def narrowings(old: Schema, new: Schema) -> list[Narrowing]:
    """What the new schema no longer lets through. Empty: every instance of the old one is one of the new."""
    return list(dict.fromkeys(_Comparison(old, new).compare(old, new, "")))


class _Comparison:
    """Two documents, whose `$ref`s point into themselves."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self._old, self._new = old, new
        #: Pairs of definitions being compared: within themselves they are taken to fit.
        self._open: set[tuple[str, str]] = set()
        self._depth = 0

    def compare(self, old: Schema | bool, new: Schema | bool, path: str) -> list[Narrowing]:
        old, new = whole(old), whole(new)
        if old == NOTHING or not constraints(new) or bare_text(old, self._old) == bare_text(new, self._new):
            return []
        pair = (bare_text(old, {}), bare_text(new, {}))
        if pair in self._open:
            return []
        if self._depth > _DEEPEST:
            return [Narrowing(path, "is too deep to compare", certain=False)]
        self._open.add(pair)
        self._depth += 1
        try:
            return [each for one in alternatives(old, self._old) for each in self._one(one, new, path)]
        finally:
            self._depth -= 1
            self._open.discard(pair)

    def _one(self, old: Schema, new: Schema, path: str) -> list[Narrowing]:
        """Compare what has no unions, references or enums any more with what may have them."""
        found = list[Narrowing]()
        for part in parts(new, self._new):
            unions = [key for key in UNIONS if key in part]
            for key in unions:
                found += self._union(old, part, key, path)
            rest = {name: value for name, value in part.items() if name not in unions}
            if constraints(rest):
                found += self._plain(old, rest, path)
        return found

    def _union(self, old: Schema, new: Schema, key: str, path: str) -> list[Narrowing]:
        options: Sequence[Schema] = new[key]
        tag: str | None = whole(new.get("discriminator", {})).get("propertyName")
        if tag is not None and tag not in listed(old, "required") and old.get("type") == "object":
            return [Narrowing(_join(path, tag), "was optional, and now tells the members of a union apart", _GIVE)]
        if key == "oneOf" and tag is None and len(options) > 1:
            return [Narrowing(path, "is one of several in a way that cannot be compared", certain=False)]
        tries = [self.compare(old, option, path) for option in options]
        if not all(tries):
            return []
        alike = [tried for tried, option in zip(tries, options, strict=True) if self._is_alike(old, option, tag)]
        return min(alike, key=len) if alike else [Narrowing(path, f"no longer takes {words(old)}", _BUMP)]

    def _is_alike(self, old: Schema, option: Schema, tag: str | None) -> bool:
        for one in alternatives(option, self._new):
            if tag is not None:
                return tag_values(old, tag, self._old) & tag_values(one, tag, self._new) != set()
            if one.get("type") == old.get("type") and "const" not in old:
                return True
        return False

    def _plain(self, old: Schema, new: Schema, path: str) -> list[Narrowing]:
        if "const" in old:
            return self._value(old["const"], new, path)
        found = list[Narrowing]()
        kind: str | None = old.get("type")
        if "enum" in new or "const" in new:
            values = new["enum"] if "enum" in new else [new["const"]]
            if not (kind == "null" and None in values):
                return [Narrowing(path, f"took {words(old)}, and now only {shown(values)}", _BUMP)]
        kinds = listed(new, "type")
        if kinds and kind not in kinds and not (kind == "integer" and "number" in kinds):
            return [Narrowing(path, f"took {words(old)}, and now {' or '.join(kinds)}", _BUMP)]
        for key in new:
            if not is_constraint(key) or key in _KNOWN:
                continue
            if bare_text({key: new[key]}, self._new) != bare_text({key: old.get(key)}, self._old):
                found.append(Narrowing(path, f"has another {key!r}, which cannot be compared", _LOOK, certain=False))
        checks = [each for each in listed(new, CHECKS) if each not in listed(old, CHECKS)]
        if checks:
            what = f"is now checked by {', '.join(checks)}, whose code cannot be compared"
            found.append(Narrowing(path, what, _LOOK, certain=False))
        if kind in (None, "string"):
            found += _string(old, new, path)
        if kind in (None, "integer", "number"):
            found += _number(old, new, path)
        if kind in (None, "array"):
            found += self._array(old, new, path)
        if kind in (None, "object"):
            found += self._object(old, new, path)
        return found

    def _value(self, value: object, new: Schema, path: str) -> list[Narrowing]:
        """One value of an old enum."""
        said, kinds = shown([value]), listed(new, "type")
        if "enum" in new or "const" in new:
            values = new["enum"] if "enum" in new else [new["const"]]
            known = [canonical(each) for each in values]
            return [] if canonical(value) in known else [Narrowing(path, f"no longer takes {said}", _VALUE)]
        kind = type_of(value)
        if kinds and kind not in kinds and not (kind == "integer" and "number" in kinds):
            return [Narrowing(path, f"no longer takes {said}: it must be {' or '.join(kinds)}", _BUMP)]
        # As if the old schema said no more than the type, and the length or size of this one value.
        exact: dict[str, Any] = {"type": kind}
        match value:
            case str():
                exact |= {"minLength": len(value), "maxLength": len(value), "pattern": None, "format": None}
            case bool() | None:
                pass
            case int() | float():
                exact |= {"minimum": value, "maximum": value, "multipleOf": value}
            case _:
                pass
        return self._plain(exact, new, path)

    def _object(self, old: Schema, new: Schema, path: str) -> list[Narrowing]:
        olds, news = _fields(old), _fields(new)
        # A model that ignores surplus says nothing about it; a mapping, or one that keeps it, takes anything.
        surplus = whole(old.get("additionalProperties", True))
        is_open = "additionalProperties" not in old and "properties" in old
        found = list[Narrowing]()
        for field in news:
            before = _before(field, olds)
            for each in before:
                found += self.compare(each.schema, field.schema, _join(path, field.key))
            if not is_open and not field.names <= {name for each in before for name in each.names}:
                found += self.compare(surplus, field.schema, _join(path, field.key))
            if field.is_required and not any(each.is_required and each.names <= field.names for each in before):
                found += _now_required(field, before, olds, path)
        for field in olds:
            found += self._unread(field, news, new, path)
        later = whole(new.get("additionalProperties", True))
        if later == NOTHING:
            if surplus != NOTHING:
                found.append(Narrowing(path, "now forbids surplus fields", "Ignore them again, or " + _low(_BUMP)))
        elif constraints(later):
            found += self.compare(surplus, later, f"{path}[*]")
        found += _bound(old, new, path, "minProperties", least=True)
        return found + _bound(old, new, path, "maxProperties", least=False)

    def _unread(self, field: "_Field", news: Sequence["_Field"], new: Schema, path: str) -> list[Narrowing]:
        """What became of the names of an old field that no new one has."""
        place = _join(path, field.key)
        names = field.names - {name for each in news for name in each.names}
        if not names:
            return []
        heir = next((each for each in news if each.python == field.python or each.names & field.names), None)
        if heir is not None:
            said = ", ".join(sorted(names))
            return [Narrowing(place, f"is now called {heir.key!r}, and {said} is no longer read", _ALIAS)]
        surplus = whole(new.get("additionalProperties", True))
        if surplus == NOTHING:
            return [Narrowing(place, "was removed, and surplus fields are forbidden", "Ignore them, or " + _low(_BUMP))]
        return self.compare(field.schema, surplus, place)

    def _array(self, old: Schema, new: Schema, path: str) -> list[Narrowing]:
        found = _bound(old, new, path, "minItems", least=True) + _bound(old, new, path, "maxItems", least=False)
        if new.get("uniqueItems") and not old.get("uniqueItems"):
            found.append(Narrowing(path, "now wants unique items", _BUMP))
        firsts, seconds = listed(old, "prefixItems"), listed(new, "prefixItems")
        most = old.get("maxItems")
        for position in range(max(len(firsts), len(seconds))):
            if most is not None and position >= most:
                return found
            first = firsts[position] if position < len(firsts) else old.get("items", True)
            second = seconds[position] if position < len(seconds) else new.get("items", True)
            found += self.compare(first, second, f"{path}[{position}]")
        if most is None or most > max(len(firsts), len(seconds)):
            found += self.compare(old.get("items", True), new.get("items", True), f"{path}[]")
        return found


_BUMP = "Raise the version and write an @upgrade from the old one."
_LOOK = "Look whether it refuses what was fine before; if so, raise the version and write an @upgrade."
_GIVE = "Raise the version and write an @upgrade that adds it."
_VALUE = "Keep the value, or raise the version and write an @upgrade that replaces it."
_ALIAS = "Read the old name too (validation_alias=AliasChoices), or raise the version and write an @upgrade."


@dataclass(frozen=True, slots=True)
class _Field:
    key: str
    names: frozenset[str]
    python: str
    schema: Schema
    is_required: bool


def _fields(schema: Schema) -> list[_Field]:
    properties: Mapping[str, Schema | bool] = schema.get("properties", {})
    required = listed(schema, "required")
    found = list[_Field]()
    for key, value in properties.items():
        inner = whole(value)
        names = frozenset((key, *listed(inner, ALSO)))
        found.append(_Field(key, names, inner.get(PYTHON_NAME, key), inner, key in required))
    found += [_Field(key, frozenset((key,)), key, {}, True) for key in required if key not in properties]
    return found


def _before(field: _Field, olds: Sequence[_Field]) -> list[_Field]:
    return [each for each in olds if each.names & field.names]


def _now_required(field: _Field, before: Sequence[_Field], olds: Sequence[_Field], path: str) -> list[Narrowing]:
    if not before and any(each.python == field.python for each in olds):
        return []  # another name for an old field, which is told where the old one is missed
    if before and all(each.is_required for each in before):
        return []  # the same: one of its names is no longer read
    place = _join(path, field.key)
    what = "was optional and is required now" if before else "is new and required"
    return [Narrowing(place, what, "Give it a default, or raise the version and write an @upgrade that adds it.")]


def _string(old: Schema, new: Schema, path: str) -> list[Narrowing]:
    found = _bound(old, new, path, "minLength", least=True) + _bound(old, new, path, "maxLength", least=False)
    for key in ("pattern", "format"):
        after = new.get(key)
        if after is None or after == old.get(key) or (key == "format" and after in _LOOSE_FORMATS):
            continue
        what = f"has the {key} {after!r}, and had " + repr(old.get(key))
        found.append(Narrowing(path, what, _BUMP, certain=key not in old))
    return found


def _number(old: Schema, new: Schema, path: str) -> list[Narrowing]:
    found = list[Narrowing]()
    for end, sign in (("inimum", 1), ("aximum", -1)):
        before, after = _edge(old, end, sign), _edge(new, end, sign)
        if after is not None and (before is None or before < after):
            had = "none" if before is None else sign * before[0]
            what = f"has the m{end} {sign * after[0]}{' (exclusive)' if after[1] else ''}, and had {had}"
            found.append(Narrowing(path, what, _BUMP))
    step, was = new.get("multipleOf"), old.get("multipleOf")
    if step is not None and step != was and (not isinstance(was, int) or not isinstance(step, int) or was % step):
        found.append(Narrowing(path, f"must be a multiple of {step}", _BUMP, certain=was is None))
    return found


def _edge(schema: Schema, end: str, sign: int) -> tuple[float, bool] | None:
    """The tighter of two bounds, as what grows with tightness; True where the bound itself is outside."""
    bounds = [(sign * schema[f"m{end}"], False)] if f"m{end}" in schema else []
    if f"exclusiveM{end}" in schema:
        edge: float = sign * schema[f"exclusiveM{end}"]
        is_whole = schema.get("type") == "integer" and isinstance(edge, int)
        bounds.append((edge + 1, False) if is_whole else (edge, True))
    return max(bounds, default=None)


def _bound(old: Schema, new: Schema, path: str, key: str, *, least: bool) -> list[Narrowing]:
    before, after = old.get(key, 0 if least else None), new.get(key)
    if after is None or (before is not None and (before >= after if least else before <= after)):
        return []
    return [Narrowing(path, f"has {key} {after}, and had {'none' if before is None else before}", _BUMP)]


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _low(text: str) -> str:
    return text[0].lower() + text[1:]
