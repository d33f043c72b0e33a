"""What counts as a narrowing; and that where none is found, no payload of the old code is refused by the new."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal, cast

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    EmailStr,
    Field,
    HttpUrl,
    PastDate,
    SecretStr,
    TypeAdapter,
    create_model,
    field_validator,
)

from amqpjobs.codec import dumps, job_from
from amqpjobs.inclusion import narrowings
from amqpjobs.job import Job, payload_of
from amqpjobs.schemas import SchemaWriter, payload_schema


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class BigDog(Dog):
    weight: int


class Node(BaseModel):
    value: int
    following: "Node | None" = None


class LooseNode(BaseModel):
    value: float
    following: "LooseNode | None" = None


class StrictNode(BaseModel):
    value: Annotated[int, Field(ge=0)]
    following: "StrictNode | None" = None


class OpenSettings(BaseModel):
    model_config = ConfigDict(extra="allow")

    a: int = 0


class ClosedSettings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    a: int = 0


class Tagged(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class TaggedMore(BaseModel):
    pet: Annotated[Cat | BigDog, Field(discriminator="kind")]


def schema(annotation: Any) -> dict[str, Any]:
    made: Any = TypeAdapter(annotation)
    found: dict[str, Any] = made.json_schema(schema_generator=SchemaWriter)
    return found


def told(old: object, new: object) -> list[str]:
    return [f"{each.path}: {each.what}" for each in narrowings(schema(old), schema(new))]


WIDER: list[tuple[object, object]] = [
    (int, float),
    (int, int | None),
    (int, Any),
    (int, int | str),
    (int | None, None | str | int),
    (Literal["a"], Literal["a", "b"]),
    (Literal["a", 1], str | int),
    (Literal["a"], Annotated[str, Field(min_length=1, max_length=9)]),
    (Colour, str),
    (list[int], list[float]),
    (list[int], list[int | str]),
    (Annotated[list[int], Field(min_length=2)], list[int]),
    (tuple[int, str], list[int | str]),
    (tuple[int, int], tuple[int | str, float]),
    (set[int], list[int]),
    (dict[str, int], dict[str, float]),
    (Annotated[int, Field(gt=0)], Annotated[int, Field(ge=1)]),
    (Annotated[int, Field(gt=0, le=5)], Annotated[int, Field(ge=0, lt=7)]),
    (Annotated[int, Field(multiple_of=6)], Annotated[int, Field(multiple_of=3)]),
    (Annotated[str, Field(max_length=5)], Annotated[str, Field(max_length=6)]),
    (EmailStr, str),
    (SecretStr, str),
    (str, SecretStr),
    (Cat, Cat | Dog),
    (Dog, Annotated[Cat | Dog, Field(discriminator="kind")]),
    (Annotated[Cat | Dog, Field(discriminator="kind")], Cat | Dog),
    (Node, Node),
    (Node, LooseNode),
    (ClosedSettings, OpenSettings),
    (BigDog, Dog),
    (Tagged, Tagged),
]

NARROWER: list[tuple[object, object, str]] = [
    (float, int, "any number"),
    (int | None, int, "null"),
    (Any, int, "anything"),
    (int | str, int, "any string"),
    (str, Literal["a"], "only 'a'"),
    (Literal["a", "b"], Literal["a"], "no longer takes 'b'"),
    (Literal[1], bool, "no longer takes 1"),
    (Literal[True], Literal[1], "no longer takes True"),
    (Literal["ab"], Annotated[str, Field(min_length=3)], "minLength 3"),
    (Colour, Literal["red"], "no longer takes 'blue'"),
    (list[int], Annotated[list[int], Field(min_length=1)], "minItems 1"),
    (list[int], set[int], "unique"),
    (list[int | str], list[int], "[]: took any string"),
    (list[int], tuple[int, int], "maxItems 2"),
    (tuple[int, str], tuple[int, int], "[1]: took any string"),
    (dict[str, Any], Dog, "kind: is new and required"),
    (dict[str, Any], Cat, "lives: took anything"),
    (dict[str, int], dict[str, str], "[*]: took any integer"),
    (int, Annotated[int, Field(gt=0)], "minimum 1"),
    (Annotated[int, Field(le=5)], Annotated[int, Field(le=4)], "maximum 4, and had 5"),
    (float, Annotated[float, Field(gt=0)], "minimum 0"),
    (Annotated[int, Field(multiple_of=3)], Annotated[int, Field(multiple_of=6)], "multiple of 6"),
    (str, EmailStr, "format 'email'"),
    (str, Decimal, "format 'decimal'"),
    (str, date, "format 'date'"),
    (date, PastDate, "x-amqpjobs-limits"),
    (Decimal, Annotated[Decimal, Field(max_digits=3)], "x-amqpjobs-limits"),
    (str, Annotated[str, Field(pattern="^a")], "pattern '^a'"),
    (Annotated[str, Field(pattern="^a")], Annotated[str, Field(pattern="^b")], "pattern '^b'"),
    (Dog, BigDog, "weight: is new and required"),
    (Cat, Annotated[Cat | Dog, Field(discriminator="kind")], "kind: was optional"),
    (Cat | Dog, Dog, "kind: no longer takes 'cat'"),
    (Tagged, TaggedMore, "pet.weight: is new and required"),
    (Node, StrictNode, "value: has the minimum 0"),
    (OpenSettings, ClosedSettings, "forbids surplus"),
    (OpenSettings, BigDog, "kind: is new and required"),
    (Dog, ClosedSettings, "was removed, and surplus"),
    (HttpUrl, Literal["a"], "only 'a'"),
]


@pytest.mark.parametrize(("old", "new"), WIDER)
def test_what_lets_through_as_much_or_more_is_no_narrowing(old: object, new: object) -> None:
    assert told(old, new) == []


@pytest.mark.parametrize(("old", "new", "words"), NARROWER)
def test_what_lets_through_less_is_told_with_its_place(old: object, new: object, words: str) -> None:
    found = told(old, new)

    assert any(words in each for each in found), found


@pytest.mark.parametrize("annotation", [each for pair in WIDER for each in pair] + [each[1] for each in NARROWER])
def test_a_schema_narrows_nothing_of_itself(annotation: object) -> None:
    assert told(annotation, annotation) == []


class Both(BaseModel):
    # Annotated, since the plugin of mypy wants aliases that it can read.
    to: Annotated[str, Field(validation_alias=AliasChoices("Recipient", "To"))]


def test_an_alias_of_a_field_that_changes_is_told_once() -> None:
    class Before(BaseModel):
        to: str = Field(alias="To")

    class After(BaseModel):
        to: str = Field(alias="Recipient")

    class ByName(BaseModel):
        model_config = ConfigDict(populate_by_name=True)

        to: str = Field(alias="To")

    class Plain(BaseModel):
        to: str

    assert told(Before, After) == ["To: is now called 'Recipient', and To is no longer read"]
    assert told(Before, Both) == []
    assert told(Plain, ByName) == []
    assert told(ByName, Before) == ["To: is now called 'To', and to is no longer read"]


def test_an_optional_field_with_another_alias_is_told_too() -> None:
    class Before(BaseModel):
        to: str = Field("", alias="To")

    class After(BaseModel):
        to: str = Field("", alias="Recipient")

    assert told(Before, After) == ["To: is now called 'Recipient', and To is no longer read"]


def test_a_new_validator_cannot_be_compared() -> None:
    class Before(BaseModel):
        n: int

    class After(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def _even(cls, value: int) -> int:
            return value

    (found,) = narrowings(schema(Before), schema(After))

    assert (found.path, found.certain) == ("n", False)
    assert "_even" in found.what
    assert told(After, Before) == told(After, After) == []


def test_a_keyword_nobody_knows_is_fine_only_while_it_stays() -> None:
    plain, other = {"type": "string"}, {"type": "string", "not": {"const": "a"}}

    (found,) = narrowings(plain, other)

    assert not found.certain
    assert narrowings(other, other) == narrowings(other, plain) == []


def test_a_union_without_a_tag_of_which_only_one_may_fit_cannot_be_compared() -> None:
    (found,) = narrowings({"type": "integer"}, {"oneOf": [{"type": "integer"}, {"type": "number"}]})

    assert not found.certain


def test_references_elsewhere_cannot_be_compared() -> None:
    found = narrowings({"type": "integer"}, {"$ref": "https://example.org/schema"})

    assert [each.certain for each in found] == [False]


# Pairs of models, and payloads of the older one.


class Ignoring(Job[None]):
    pass


class Forbidding(Job[None]):
    model_config = ConfigDict(extra="forbid")


class Keeping(Job[None]):
    model_config = ConfigDict(extra="allow")


BASES: dict[str, type[Job[None]]] = {"ignore": Ignoring, "forbid": Forbidding, "allow": Keeping}


@dataclass(frozen=True)
class Kind:
    """A type, with JSON values that it takes."""

    annotation: Any
    values: st.SearchStrategy[Any]


@dataclass
class Model:
    """What a job class is made of."""

    fields: dict[str, tuple[Kind, bool]] = field(default_factory=dict[str, tuple[Kind, bool]])
    extra: Literal["ignore", "forbid", "allow"] = "ignore"

    def made(self) -> type[Job[None]]:
        made: Callable[..., Any] = create_model
        given = {
            name: (kind.annotation, ...) if needed else (kind.annotation | None, None)
            for name, (kind, needed) in self.fields.items()
        }
        return cast("type[Job[None]]", made("Made", __base__=BASES[self.extra], **given))

    def payloads(self) -> st.SearchStrategy[dict[str, Any]]:
        needed = {name: kind.values for name, (kind, needed) in self.fields.items() if needed}
        optional = {name: kind.values | st.none() for name, (kind, needed) in self.fields.items() if not needed}
        if self.extra != "forbid":
            optional["surplus"] = st.integers(0, 9)
        return st.fixed_dictionaries(needed, optional=optional)


def ints(low: int | None = None, high: int | None = None) -> Kind:
    return Kind(
        Annotated[int, Field(ge=low, le=high)],
        st.integers(-(2**63) if low is None else low, 2**63 if high is None else high),
    )


def texts(low: int, high: int) -> Kind:
    text = st.text(st.characters(exclude_categories=["Cs"]), min_size=low, max_size=high)
    return Kind(Annotated[str, Field(min_length=low, max_length=high)], text)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PETS = st.sampled_from([{"kind": "dog", "name": "x"}, {"kind": "cat"}])
#: Types that one is easily changed into another of.
KIN = [
    [ints(), ints(0), ints(1, 5), ints(0, 9), Kind(Literal[1, 2], st.sampled_from([1, 2]))],
    [Kind(float, st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9)), ints(-9, 9)],
    [
        Kind(Literal["a"], st.just("a")),
        Kind(Literal["a", "b", 1], st.sampled_from(["a", "b", 1])),
        Kind(Colour, st.sampled_from(["red", "blue"])),
        Kind(Literal["red"], st.just("red")),
        Kind(str, TEXT),
        texts(0, 4),
        texts(1, 8),
    ],
    [Kind(Decimal, st.decimals(-9, 9, places=2).map(str)), Kind(date, st.dates().map(str)), Kind(str, TEXT)],
    [
        Kind(Cat, st.sampled_from([{}, {"lives": 3}, {"kind": "cat"}])),
        Kind(Dog, st.just({"kind": "dog", "name": "x"})),
        Kind(Cat | Dog, PETS | st.just({"lives": 1})),
        Kind(Annotated[Cat | Dog, Field(discriminator="kind")], PETS),
        Kind(dict[str, Any], st.dictionaries(st.sampled_from(["kind", "lives"]), st.integers(0, 3))),
    ],
    [
        Kind(Node, st.sampled_from([{"value": -1}, {"value": 1, "following": {"value": -2}}])),
        Kind(LooseNode, st.sampled_from([{"value": 0.5}, {"value": 1, "following": {"value": -2.5}}])),
        Kind(StrictNode, st.sampled_from([{"value": 0}, {"value": 1, "following": {"value": 2}}])),
    ],
    [Kind(bool, st.booleans()), Kind(Any, st.sampled_from([None, 1, "x", [], {}]))],
]
SCALARS = st.sampled_from(KIN).flatmap(st.sampled_from)


def _list(inner: Kind) -> Kind:
    made: Any = list
    return Kind(made[inner.annotation], st.lists(inner.values, max_size=3))


def _mapping(inner: Kind) -> Kind:
    made: Any = dict
    return Kind(made[str, inner.annotation], st.dictionaries(st.sampled_from("xy"), inner.values))


def _pair(one: Kind, two: Kind) -> Kind:
    made: Any = tuple
    values: st.SearchStrategy[Any] = st.tuples(one.values, two.values)
    return Kind(made[one.annotation, two.annotation], values.map(list))


def _either(one: Kind, two: Kind) -> Kind:
    return Kind(one.annotation | two.annotation, one.values | two.values)


def _around(inner: st.SearchStrategy[Kind]) -> st.SearchStrategy[Kind]:
    return st.one_of(
        inner.map(_list), inner.map(_mapping), st.builds(_pair, inner, inner), st.builds(_either, inner, inner)
    )


KINDS = st.recursive(SCALARS, _around, max_leaves=3)
MODELS = st.builds(
    Model,
    st.dictionaries(st.sampled_from("abcd"), st.tuples(SCALARS | KINDS, st.booleans()), min_size=1, max_size=3),
    st.sampled_from(["ignore", "ignore", "forbid", "allow"]),
)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Model, Model]:
    """A model and what somebody made of it."""
    old = draw(MODELS)
    new = Model(dict(old.fields), old.extra)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from("abcd"))
        change = draw(st.sampled_from(["kin", "kin", "kin", "set", "drop", "need", "wrap", "extra"]))
        match change:
            case "kin":
                own = {each: kind for each, (kind, _) in new.fields.items()}
                for each, family in ((each, kin) for each, kind in own.items() for kin in KIN if kind in kin):
                    new.fields[each] = draw(st.sampled_from(family)), new.fields[each][1]
            case "drop":
                new.fields.pop(name, None)
            case "need" if name in new.fields:
                new.fields[name] = new.fields[name][0], draw(st.booleans())
            case "wrap" if name in new.fields:
                kind, needed = new.fields[name]
                new.fields[name] = Kind(kind.annotation | draw(KINDS).annotation, st.nothing()), needed
            case "extra":
                new.extra = draw(st.sampled_from(["ignore", "forbid", "allow"]))
            case _:
                new.fields[name] = draw(KINDS), draw(st.booleans())
    return old, new


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(pair=pairs(), data=st.data())
def test_where_nothing_narrows_no_payload_of_the_old_class_is_refused_by_the_new_one(
    pair: tuple[Model, Model], data: st.DataObject
) -> None:
    old, new = (each.made() for each in pair)
    assume(narrowings(payload_schema(old, "validation"), payload_schema(new, "validation")) == [])

    for _ in range(4):
        raw = dumps(data.draw(pair[0].payloads()))
        as_sent = payload_of(job_from(old, raw))

        job_from(new, raw)
        job_from(new, as_sent)
