"""The size of a header table is told from here, and its bytes are made in two other places."""

from collections import OrderedDict
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import encode as pamqp_encode

from amqpjobs.amqp.table import encode_table
from amqpjobs.wire import HeaderValue, Properties, make_properties, make_publication, table_size

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PLAIN: st.SearchStrategy[HeaderValue] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    TEXT,
    st.integers(0, 2**32 - 1).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    st.decimals(-(10**6), 10**6, places=2),
    st.binary(max_size=60).map(bytearray),
)
ODD: st.SearchStrategy[HeaderValue] = st.one_of(
    PLAIN,
    st.binary(max_size=60),
    st.integers(-(2**200), 2**200),
    st.decimals(-(10**40), 10**40, allow_nan=False),
    st.complex_numbers(),
)


def nested(leaves: st.SearchStrategy[HeaderValue]) -> st.SearchStrategy[dict[str, HeaderValue]]:
    values = st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4)),
        max_leaves=12,
    )
    return st.dictionaries(NAMES, values, max_size=6)


@given(nested(PLAIN))
def test_the_size_of_a_table_is_never_too_small(headers: dict[str, HeaderValue]) -> None:
    size = table_size(headers)

    assert size >= len(encode_table(headers))


@given(nested(PLAIN))
def test_the_size_of_a_table_is_at_most_a_little_too_large(headers: dict[str, HeaderValue]) -> None:
    size = table_size(headers)

    assert size <= 9 * len(encode_table(headers))


@given(nested(ODD))
def test_values_that_are_written_as_text_are_counted_as_text(headers: dict[str, HeaderValue]) -> None:
    size = table_size(headers)

    assert size >= len(encode_table(headers))


@pytest.mark.parametrize(
    "value",
    [
        10**100,
        -(10**100),
        tuple(range(1000)),
        OrderedDict({"key": "value" * 100}),
        Decimal("1" * 60),
        Decimal("NaN"),
        {"a", "b", "c", "d"},
    ],
    ids=["large", "small", "tuple", "mapping", "decimal", "nan", "set"],
)
def test_no_value_hides_its_size(value: HeaderValue) -> None:
    headers = {"x": value}

    size = table_size(headers)

    assert size >= len(encode_table(headers))


@given(nested(st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), TEXT)))
def test_the_size_is_not_too_small_for_the_librarys_own_encoder(headers: dict[str, HeaderValue]) -> None:
    size = table_size(headers)

    assert size >= len(pamqp_encode.field_table(headers))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  (its type is narrower than what it takes)


@pytest.mark.parametrize(("headers", "size"), [({}, 4), ({"a": ""}, 11), ({"é": "é"}, 14), ({"a": {}}, 11)])
def test_a_tables_size_is_told_in_bytes(headers: dict[str, HeaderValue], size: int) -> None:
    assert table_size(headers) == size


def test_what_a_maker_makes_is_what_the_class_makes_and_as_frozen() -> None:
    made = make_properties(kind="mail", message_id="1")

    assert type(made) is Properties
    assert made == Properties(kind="mail", message_id="1")
    with pytest.raises(FrozenInstanceError):
        made.kind = "other"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]  (what is tested)


def test_what_a_maker_makes_has_its_defaults_for_itself() -> None:
    one, other = make_properties(), make_properties()

    assert one.headers == {}
    assert one.headers is not other.headers


def test_a_maker_asks_for_what_the_class_asks_for() -> None:
    with pytest.raises(TypeError, match="body"):
        make_publication(exchange="", routing_key="", properties=Properties())  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  (what is tested)
