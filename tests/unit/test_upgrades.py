"""Payloads of older versions: how they become the present one, and which definitions are refused."""

from collections.abc import Sequence
from functools import partial
from types import new_class
from typing import Any, cast

import pytest
from pydantic import ConfigDict

from amqpjobs.codec import job_from
from amqpjobs.errors import DefinitionError, InvalidArgumentsError
from amqpjobs.job import Job, Upgrade, options_of, upgrade, upgrades_of


class Charge(Job[None], kind="shop.charge", aliases=["shop.bill"], version=3):
    model_config = ConfigDict(extra="forbid")

    cents: int
    currency: str

    @upgrade(from_version=1)
    @staticmethod
    def in_cents(payload: dict[str, Any]) -> dict[str, Any]:
        return {"cents": round(payload["euros"] * 100)}

    @upgrade(from_version=2)
    @staticmethod
    def with_currency(payload: dict[str, Any]) -> dict[str, Any]:
        return payload | {"currency": "EUR"}


class Refund(Charge):
    pass


class Hostile(Job[None], version=2):
    number: int = 0

    @upgrade(from_version=1)
    @staticmethod
    def anything(payload: dict[str, Any]) -> dict[str, Any]:
        match payload["do"]:
            case "raise":
                raise ValueError(payload["secret"])
            case "object":
                return {"number": object()}
            case "list":
                return cast("dict[str, Any]", [payload["secret"]])
            case _:
                return payload


@pytest.mark.parametrize(
    ("version", "payload"),
    [(1, b'{"euros": 1.5}'), (2, b'{"cents": 150}'), (3, b'{"cents": 150, "currency": "EUR"}')],
)
def test_a_payload_of_any_version_becomes_the_same_job(version: int, payload: bytes) -> None:
    assert job_from(Charge, payload, version) == Charge(cents=150, currency="EUR")


def test_without_a_version_a_payload_is_of_the_current_one() -> None:
    assert job_from(Charge, b'{"cents": 1, "currency": "USD"}').currency == "USD"
    with pytest.raises(InvalidArgumentsError, match="currency: Field required"):
        job_from(Charge, b'{"cents": 1}')


def test_an_upgraded_payload_is_validated_like_any_other() -> None:
    with pytest.raises(InvalidArgumentsError, match="cents: Input should be a valid integer"):
        job_from(Charge, b'{"cents": "many"}', 2)


def test_a_subclass_that_inherits_the_version_inherits_the_upgrades() -> None:
    assert options_of(Refund).version == 3
    assert job_from(Refund, b'{"euros": 2}', 1).cents == 200


def test_a_subclass_may_begin_again_or_replace_an_upgrade() -> None:
    class Afresh(Charge, version=1):
        pass

    class Pounds(Charge):
        @upgrade(from_version=2)
        @staticmethod
        def in_pounds(payload: dict[str, Any]) -> dict[str, Any]:
            return payload | {"currency": "GBP"}

    assert dict(upgrades_of(Afresh)) == {}
    assert job_from(Pounds, b'{"euros": 2}', 1).currency == "GBP"


def test_an_upgrade_can_be_tried_by_itself() -> None:
    assert Charge.in_cents({"euros": 0.5}) == {"cents": 50}


def test_the_order_of_the_two_decorators_does_not_matter() -> None:
    class Other(Job[None], version=2):
        n: int

        @staticmethod
        @upgrade(from_version=1)
        def named(payload: dict[str, Any]) -> dict[str, Any]:
            return {"n": payload["number"]}

    assert job_from(Other, b'{"number": 4}', 1).n == 4


def test_without_upgrades_an_older_payload_is_read_as_it_is() -> None:
    class Widened(Job[None], version=2):
        n: int
        more: str = ""

    assert job_from(Widened, b'{"n": 1}', 1) == Widened(n=1)


def test_what_is_older_than_the_oldest_version_is_refused() -> None:
    class Young(Job[None], version=3, oldest_version=2):
        n: int

        @upgrade(from_version=2)
        @staticmethod
        def same(payload: dict[str, Any]) -> dict[str, Any]:
            return payload

    assert job_from(Young, b'{"n": 1}', 2).n == 1
    with pytest.raises(InvalidArgumentsError, match="version 1 is older than 2"):
        job_from(Young, b'{"n": 1}', 1)


@pytest.mark.parametrize(
    ("do", "words"),
    [
        ("raise", "the upgrade of Hostile from version 1 failed with ValueError at test_upgrades.py:"),
        ("object", "failed with TypeError"),
        ("list", "returned list, and no dict"),
    ],
)
def test_an_upgrade_that_fails_is_told_without_values(do: str, words: str) -> None:
    with pytest.raises(InvalidArgumentsError, match=words) as raised:
        job_from(Hostile, b'{"do": "%s", "secret": "pa55"}' % do.encode(), 1)

    assert "pa55" not in f"{raised.value} {raised.value.problems}"
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_refused_before_any_upgrade(payload: bytes) -> None:
    with pytest.raises(InvalidArgumentsError, match="does not fit Charge"):
        job_from(Charge, payload, 1)


def test_whole_numbers_of_any_size_survive_an_upgrade() -> None:
    assert job_from(Charge, b'{"cents": %d}' % 10**30, 2).cents == 10**30


def from_version(version: int) -> object:
    """An upgrade as it stands in the body of a class."""

    @upgrade(from_version=version)
    def same(payload: dict[str, Any]) -> dict[str, Any]:
        return payload

    return staticmethod(same)


def defined(versions: Sequence[int], **options: object) -> type[Job[Any]]:
    """A job class with these upgrades, which may be wrong."""
    body = {f"upgrade_{place}": from_version(version) for place, version in enumerate(versions)}
    return cast("type[Job[Any]]", new_class("Faulty", (Job[None],), dict(options), lambda names: names.update(body)))


@pytest.mark.parametrize(
    ("versions", "options", "words"),
    [
        ([1], {"version": 3}, "no upgrade from version 2"),
        ([2], {"version": 3}, "no upgrade from version 1.*oldest_version=2"),
        ([1, 3], {"version": 4}, "no upgrade from version 2"),
        ([1, 1], {"version": 2}, "both upgrade from version 1"),
        ([1], {}, "upgrades from version 1, but Faulty has version 1"),
        ([1, 2], {"version": 2}, "upgrades from version 2"),
        ([1, 2], {"version": 3, "oldest_version": 2}, "reads payloads from version 2 on"),
        ([], {"version": 2, "oldest_version": 3}, "oldest_version of Faulty must be from 1 to its version 2"),
        ([], {"oldest_version": 0}, "oldest_version"),
        ([], {"oldest_version": "1"}, "oldest_version of Faulty must be a whole number"),
    ],
)
def test_a_chain_with_a_fault_is_refused_at_import(versions: list[int], options: dict[str, object], words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        defined(versions, **options)


def test_a_chain_may_begin_at_the_oldest_version() -> None:
    made = defined([3, 4], version=5, oldest_version=3)

    assert list(upgrades_of(made)) == [3, 4]


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "1"])
def test_a_version_that_is_none_is_refused(version: Any) -> None:
    with pytest.raises(DefinitionError, match="from_version"):
        upgrade(from_version=version)


def test_an_upgrade_that_is_no_static_method_is_refused() -> None:
    def in_body(payload: dict[str, Any]) -> dict[str, Any]:
        return payload

    async def later(payload: dict[str, Any]) -> Any:
        return payload

    faulty: list[object] = [
        upgrade(from_version=1)(in_body),
        classmethod(cast("Any", upgrade(from_version=1)(in_body))),
        staticmethod(upgrade(from_version=1)(cast("Upgrade", later))),
    ]

    for each in faulty:
        with pytest.raises(DefinitionError, match="must be a @staticmethod and not async"):
            new_class("Faulty", (Job[None],), {"version": 2}, partial(_put, each))


def _put(each: object, names: dict[str, Any]) -> None:
    names["faulty"] = each
