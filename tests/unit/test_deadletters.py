"""The pure parts of the dead-letter tools: what a message tells, which are meant, lines of a file."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amqpjobs.codec import milliseconds
from amqpjobs.deadletters import (
    PARKED,
    PREVIEW,
    UNROUTABLE,
    DeadLetter,
    Filter,
    Groups,
    LetterError,
    Place,
    dead_of,
    from_json,
    letter_from,
    letter_of,
    line_of,
    to_json,
)
from amqpjobs.errors import DefinitionError
from amqpjobs.topology import Queue, Topology
from amqpjobs.wire import Properties

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PLACE = dead_of("work")


def letter(
    body: bytes = b"{}",
    place: Place = PLACE,
    *,
    age: float = 60,
    position: int = 1,
    keep_body: bool = True,
    kind: str | None = "email.send",
    message_id: str | None = "m-1",
    **headers: Any,
) -> DeadLetter:
    ours: dict[str, object] = {
        "amqpjobs-id": "job-1",
        "amqpjobs-dead-reason": "attempts_exhausted",
        "amqpjobs-dead-error": "ConnectionError: it broke: badly",
        "amqpjobs-dead-at": milliseconds(NOW - timedelta(seconds=age)),
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    properties = Properties(headers=ours, kind=kind, message_id=message_id)
    return letter_of(properties, body, place, position, keep_body=keep_body)


def died_by_the_broker(reason: str) -> DeadLetter:
    deaths = [
        {"reason": reason, "time": NOW, "queue": "amqpjobs.queue.work"},
        {"reason": "expired", "time": NOW - timedelta(hours=1), "queue": "amqpjobs.delay.v1.03"},
    ]
    return letter_of(Properties(headers={"x-death": deaths}, kind="a"), b"{}", PLACE, 1)


def test_a_letter_tells_what_its_headers_say() -> None:
    found = letter(b'{"to": 1}', amqpjobs_attempt=5, amqpjobs_dead_host="h", position=3)

    assert (found.job_id, found.kind, found.attempt, found.position) == ("job-1", "email.send", 5, 3)
    assert (found.reason, found.exception) == ("attempts_exhausted", "ConnectionError")
    assert (found.dead_at, found.host, found.queue) == (NOW - timedelta(seconds=60), "h", "work")
    assert (found.size, found.preview, found.body) == (9, '{"to": 1}', b'{"to": 1}')


def test_a_letter_keeps_a_body_only_when_asked_to() -> None:
    found = letter(b"x" * 10_000, keep_body=False)

    assert found.body is None
    assert found.size == 10_000
    assert len(found.preview) == PREVIEW


@pytest.mark.parametrize(
    ("reason", "shown"), [("rejected", "rejected"), ("delivery_limit", "worker_lost"), ("expired", "expired")]
)
def test_what_the_broker_dead_lettered_itself_has_its_reason_from_x_death(reason: str, shown: str) -> None:
    found = died_by_the_broker(reason)

    assert (found.reason, found.dead_at, found.queue) == (shown, NOW, "work")


def test_what_is_unroutable_or_parked_has_no_reason_though_it_came_through_the_delay_levels() -> None:
    headers: dict[str, object] = {"x-death": [{"reason": "expired", "time": NOW}]}

    for place in (UNROUTABLE, PARKED):
        found = letter_of(Properties(headers=headers, kind="a", timestamp=NOW), b"{}", place, 1)
        assert (found.reason, found.dead_at, found.since) == (None, None, NOW)


def test_headers_of_wrong_types_are_nothing_and_never_fail() -> None:
    wrong: list[object] = [None, 1.5, -1, True, b"\xff", [], {}, [[1]], "", 2**62, Decimal(1), datetime(2026, 1, 1)]  # noqa: DTZ001

    for value in wrong:
        names = ("id", "attempt", "dead-reason", "dead-error", "dead-at", "first-at", "expires-at", "dead-host")
        headers = {f"amqpjobs-{name}": value for name in names} | {"x-death": value, "amqpjobs.requeues": value}
        found = letter_of(Properties(headers=headers), b"\xff\x00", PLACE, 1)
        assert found.attempt >= 1
        assert Filter(older_than=1).wants(found, NOW) is (found.since is not None and found.since < NOW)


MATCHES: list[tuple[Filter, bool]] = [
    (Filter(), True),
    (Filter(ids=frozenset({"job-1"})), True),
    (Filter(ids=frozenset({"m-1", "other"})), True),
    (Filter(ids=frozenset({"other"})), False),
    (Filter(kind="email.*"), True),
    (Filter(kind="email"), False),
    (Filter(kind="EMAIL.send"), False),
    (Filter(reason="attempts_exhausted"), True),
    (Filter(reason="not_retryable"), False),
    (Filter(exception="ConnectionError"), True),
    (Filter(exception="*Error"), True),
    (Filter(exception="Connection"), False),
    (Filter(older_than=59), True),
    (Filter(older_than=timedelta(seconds=60)), False),
    (Filter(newer_than=60), True),
    (Filter(newer_than=59), False),
    (Filter(limit=1), True),
    (Filter(kind="email.*", reason="unreadable"), False),
]


@pytest.mark.parametrize(("where", "wanted"), MATCHES)
def test_a_filter_wants_what_fits_all_its_conditions(where: Filter, wanted: bool) -> None:
    assert where.wants(letter(), NOW) is wanted


def test_a_letter_of_unknown_age_is_neither_older_nor_newer() -> None:
    found = letter_of(Properties(), b"", PLACE, 1)

    assert not Filter(older_than=0).wants(found, NOW)
    assert not Filter(newer_than=10**9).wants(found, NOW)
    assert not Filter(kind="*").wants(found, NOW)


def test_letters_are_grouped_by_reason_and_exception_with_the_oldest_and_the_newest() -> None:
    groups = Groups()
    for each in (letter(age=10), letter(age=30, kind="b"), letter(amqpjobs_dead_reason="unreadable")):
        groups.add(each)

    first, second = groups

    assert (first.reason, first.count, first.kinds) == ("attempts_exhausted", 2, {"email.send", "b"})
    assert (first.oldest, first.newest) == (NOW - timedelta(seconds=30), NOW - timedelta(seconds=10))
    assert (second.reason, second.count) == ("unreadable", 1)


EXACT: dict[str, Any] = {
    "text": "héllo $ \x1b[31m",
    "bytes": b"\xff\x00",
    "array": bytearray(b"\x01"),
    "time": datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2))),
    "decimal": Decimal("1.50"),
    "none": None,
    "bool": True,
    "int": 1,
    "large": 2**62,
    "float": 0.1,
    "infinite": float("inf"),
    "surrogate": "a\udcff",
    "nested": {"list": [1, [b"x", {"$bytes": "not a tag"}], {}], "": None},
}


def test_an_exported_line_brings_back_the_same_message() -> None:
    properties = Properties(
        headers=EXACT, kind="a", message_id="m", priority=3, timestamp=NOW, reply_to="r", content_type="x"
    )
    for body in (b'{"a": "\xc3\xa9"}', b"", b"\xff\xfe\x00"):
        for place in (PLACE, UNROUTABLE, PARKED):
            line = line_of(letter_of(properties, body, place, 1, keep_body=True))

            found = letter_from(line)

            assert "\n" not in line
            assert (found.properties, found.body, found.place) == (properties, body, place)
            assert {name: type(each) for name, each in found.headers.items()} == {
                name: type(each) for name, each in EXACT.items()
            }


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.binary().map(bytearray)
    | st.decimals(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
)


@given(values)
def test_any_header_value_survives_json(value: object) -> None:
    from amqpjobs.codec import dumps, loads

    again = from_json(loads(dumps(to_json(value))))

    assert again == value
    assert type(again) is type(value)


BROKEN = [
    "no json",
    "[]",
    "{}",
    '{"amqpjobs": 2}',
    line_of(letter()).replace('"place":"dead"', '"place":"nowhere"'),
    line_of(letter()).replace('"body":"{}"', '"body_base64":"?"'),
    line_of(letter()).replace('"headers":{', '"headers":{"x":{"$odd":1},'),
]


@pytest.mark.parametrize("line", BROKEN)
def test_a_line_that_is_no_letter_is_named(line: str) -> None:
    with pytest.raises(LetterError, match="Line 7 is no exported dead letter"):
        letter_from(line, 7)


def test_dead_letters_are_kept_for_ever_unless_a_retention_is_given() -> None:
    plan = Topology("n").app([Queue("a"), Queue("b", dead_retention=timedelta(days=1))], [])

    kept = {spec.name: spec.arguments.get("x-message-ttl") for spec in plan.queues}

    assert kept == {"n.queue.a": None, "n.dead.a": None, "n.queue.b": None, "n.dead.b": 86_400_000}


@pytest.mark.parametrize("span", [0, -1, 0.5, 10**9, float("nan"), timedelta(days=4000)])
def test_a_retention_that_cannot_be_is_refused_at_import(span: float | timedelta) -> None:
    with pytest.raises(DefinitionError, match="dead_retention of queue 'a'"):
        Queue("a", dead_retention=span)
