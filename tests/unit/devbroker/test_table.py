"""Tables and properties that pass through as the bytes they are."""

import pytest

from amqpjobs.devbroker.errors import RefusedError
from amqpjobs.devbroker.message import parsed_expiration, published
from amqpjobs.devbroker.properties import EXPIRATION, HEADERS, PRIORITY, TYPE, Properties
from amqpjobs.devbroker.table import Field, Table, long, text
from tests.unit.devbroker.rig import properties, table

#: Each type once, nested ones too.
EVERYTHING = (
    b"\x01aS\x00\x00\x00\x02hi\x01bb\xff\x01cB\xff\x01ds\xff\xff\x01eu\xff\xff\x01fI\xff\xff\xff\xff\x01gi\xff\xff\xff\xff"
    b"\x01hl\xff\xff\xff\xff\xff\xff\xff\xff\x01iL\xff\xff\xff\xff\xff\xff\xff\xff\x01jf\x3f\x80\x00\x00"
    b"\x01kd\x3f\xf0\x00\x00\x00\x00\x00\x00\x01lT\x00\x00\x00\x00\x00\x00\x00\x01\x01mt\x01\x01nV\x01oD\x02\x00\x00\x00\x05"
    b"\x01px\x00\x00\x00\x01\xff\x01qF\x00\x00\x00\x03\x01zV\x01rA\x00\x00\x00\x03t\x00V"
)


def test_a_table_is_written_as_it_was_read() -> None:
    given = Table.of(EVERYTHING)

    assert given.written()[4:] == EVERYTHING


def test_values_are_known_by_their_types() -> None:
    given = Table.of(EVERYTHING)
    values = {name.decode(): field.value for name, field in given.items()}

    assert [values[name] for name in "bcdefghi"] == [-1, 255, -1, 65535, -1, 2**32 - 1, -1, -1]
    assert (values["j"], values["k"], values["l"], values["m"], values["n"]) == (1.0, 1.0, 1, True, None)
    assert (values["o"], values["p"]) == ((2, 5), b"\xff")
    assert values["q"] == {b"z": Field("V", b"")}
    assert values["r"] == (Field("t", b"\x00"), Field("V", b""))


@pytest.mark.parametrize("cut", range(1, len(EVERYTHING)))
def test_a_table_that_was_cut_off_is_read_to_a_fields_end_or_refused(cut: int) -> None:
    whole = Table.of(EVERYTHING)
    try:
        part = Table.of(EVERYTHING[:cut])
    except RefusedError:
        return
    assert list(part.items()) == list(whole.items())[: len(part)]


def test_of_a_name_given_twice_the_first_counts() -> None:
    assert Table.of(b"\x01at\x01\x01at\x00").look("a") == Field("t", b"\x01")


def test_a_changed_property_leaves_the_others_as_they_were() -> None:
    given = Properties(properties(headers=Table.of(EVERYTHING), priority=3, expiration="60"))

    changed = given.replaced({EXPIRATION: None, TYPE: b"\x04kind"})

    assert changed.part(HEADERS) == EVERYTHING
    assert (changed.octet(PRIORITY), changed.part(EXPIRATION), changed.part(TYPE)) == (3, None, b"kind")
    assert Properties(changed.raw).part(TYPE) == b"kind"


def test_a_header_that_is_added_leaves_the_others_as_they_were() -> None:
    message = published("", "k", properties(headers=Table.of(EVERYTHING)), b"body")

    header = message.header_with(Table({b"x-delivery-count": long(2)}))

    headers = Properties(header[12:]).headers()
    assert headers.pop(b"x-delivery-count") == long(2)
    assert headers.written()[4:] == EVERYTHING
    assert message.properties.headers().written()[4:] == EVERYTHING


BROKEN = [
    b"",
    b"\x80",
    b"\x80\x00\x05ab",
    b"\x00\x01\x00\x00",
    b"\x00\x00zz",
    b"\x20\x00\x00\x00\x00\x05\x01aZ\x00\x00",
    b"\x20\x00\x00\x00\x00\x05\x01aI\x00\x00",
    b"\x20\x00\x00\x00\x00\x09\x01aA\x00\x00\x00\x02I\x00",
]


@pytest.mark.parametrize("raw", BROKEN)
def test_properties_that_cannot_be_read_are_refused(raw: bytes) -> None:
    with pytest.raises(RefusedError, match="INTERNAL_ERROR"):
        Properties(raw)


def test_tables_within_tables_as_deep_as_a_frame_pass_through() -> None:
    deep = b""
    for _ in range(15_000):
        deep = b"\x01aF" + len(deep).to_bytes(4, "big") + deep
        if len(deep) > 100_000:
            break

    raw = b"\x20\x00" + len(deep).to_bytes(4, "big") + deep
    assert Properties(raw).part(HEADERS) == deep


EXPIRATIONS = [
    (b"abc", "invalid expiration 'abc': no_integer"),
    (b"", "invalid expiration '': no_integer"),
    (b"12x", "leftover_string"),
    (b"-1", "value_negative,-1"),
    (b"315360000001", "value_too_large"),
]


@pytest.mark.parametrize(("raw", "words"), EXPIRATIONS)
def test_an_expiration_that_is_none_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        parsed_expiration(raw)


def test_an_expiration_is_milliseconds() -> None:
    assert [parsed_expiration(raw) for raw in (b"0", b"60000", b"+5", b"007")] == [0, 60_000, 5, 7]


def test_copies_must_be_a_list() -> None:
    with pytest.raises(RefusedError, match="unacceptable_type_in_header"):
        published("", "k", properties(headers=table(CC="x")), b"")


def test_text_that_is_no_utf8_is_kept() -> None:
    given = Table({b"\xff": text(b"\xfe")})

    assert Table.of(given.written()[4:]) == given
