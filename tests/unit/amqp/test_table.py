import struct
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType

import pytest
from hypothesis import given
from pamqp import decode
from pamqp.header import ContentHeader

from amqpjobs.amqp.table import ExactProperties, encode_table
from amqpjobs.wire import HeaderValue
from tests.unit.test_wire import NAMES, ODD, PLAIN, nested


def there_and_back(value: HeaderValue) -> object:
    raw = encode_table({"x": value})
    consumed, table = decode.field_table(raw)
    assert consumed == len(raw)
    return table["x"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -1,
        2**31 - 1,
        -(2**31),
        2**31,
        2**63 - 1,
        -(2**63),
        0.1,
        -1.5e300,
        5e-324,
        float("inf"),
        "",
        "text",
        "żółw 🐢",
        "nul\0",
        b"\xff\xfe no text",
        bytearray(b"\x00\xff"),
        datetime(2026, 1, 1, 12, 30, 5, tzinfo=UTC),
        Decimal("1.25"),
        Decimal("0"),
        Decimal(2**31 - 1),
        Decimal("0.0000001"),
        [],
        [1, "two", [3.5, None], {"four": 4}],
        {},
        {"a": {"b": {"c": [1]}}},
    ],
    ids=repr,
)
def test_a_value_comes_back_from_the_library_as_it_was(value: HeaderValue) -> None:
    back = there_and_back(value)

    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"text in bytes", "text in bytes"),
        ((1, 2), [1, 2]),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (2**63, "9223372036854775808"),
        (Decimal("1e10"), "1E+10"),
        (Decimal("12345678901.5"), "12345678901.5"),
        (Decimal("NaN"), "NaN"),
        (Decimal("-Infinity"), "-Infinity"),
        (1 + 2j, "(1+2j)"),
        (datetime(1960, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)),
    ],
    ids=repr,
)
def test_a_value_amqp_does_not_have_becomes_the_nearest_one(value: HeaderValue, expected: object) -> None:
    assert there_and_back(value) == expected


def test_doubles_are_exact() -> None:
    raw = encode_table({"": 0.1})

    assert raw == b"\x00\x00\x00\x0a\x00d" + struct.pack(">d", 0.1)


def test_a_negative_decimal_is_written_as_amqp_says() -> None:
    raw = encode_table({"": Decimal("-1.5")})

    assert raw == b"\x00\x00\x00\x07\x00D" + struct.pack(">Bi", 1, -15)


def test_not_a_number_stays_none() -> None:
    back = there_and_back(float("nan"))

    assert back != back  # only a NaN is not itself


@given(nested(PLAIN.filter(lambda value: value == value and not isinstance(value, Decimal | datetime))))
def test_a_table_comes_back_from_the_library_as_it_was(table: dict[str, HeaderValue]) -> None:
    raw = encode_table(table)

    assert decode.field_table(raw) == (len(raw), table)


@given(nested(ODD))
def test_any_table_can_be_read_by_the_library(table: dict[str, HeaderValue]) -> None:
    raw = encode_table(table)

    consumed, back = decode.field_table(raw)
    assert consumed == len(raw)
    assert back.keys() == table.keys()


@given(nested(ODD))
def test_what_the_library_read_is_written_the_same_way_again(table: dict[str, HeaderValue]) -> None:
    # A negative decimal is the library's own mistake: it reads it without its sign.
    first = encode_table(table)
    _, back = decode.field_table(first)
    second = encode_table(back)
    _, again = decode.field_table(second)

    assert repr(again) == repr(back)


@given(NAMES)
def test_a_long_name_is_cut_where_amqp_cuts_it(name: str) -> None:
    raw = encode_table({"x" * 300: name})

    _, back = decode.field_table(raw)
    assert list(back) == ["x" * 255]


def test_a_long_name_is_cut_between_two_characters() -> None:
    raw = encode_table({"x" + "é" * 200: 1})

    consumed, _ = decode.field_table(raw)
    assert consumed == len(raw)


def test_only_the_headers_of_the_properties_are_written_by_us() -> None:
    properties = ExactProperties(headers={"share": 0.1}, message_type="mail", priority=5, delivery_mode=2)

    header = ContentHeader()
    header.unmarshal(ContentHeader(body_size=3, properties=properties).marshal())

    assert header.properties.headers == {"share": 0.1}
    assert (header.properties.message_type, header.properties.priority) == ("mail", 5)
