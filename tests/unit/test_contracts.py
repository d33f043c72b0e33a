"""The document of contracts, and what its comparison tells."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from amqpjobs.contracts import Contracts, Finding, Severity, compared, exported, read
from amqpjobs.errors import DefinitionError, DuplicateKindError
from amqpjobs.job import Job, upgrade
from tests.unit.making import job_class


class Receipt(BaseModel):
    number: int


class Charge(Job[Receipt], kind="charge", aliases=["pay", "bill"], exchange="orders"):
    """Take money."""

    order: int
    note: str = ""
    token: SecretStr = SecretStr("pa55")


class Later(Job[None], kind="later"):
    at: int = 0


class Opaque:
    pass


def document(*jobs: type[Job[Any]]) -> Contracts:
    return exported(jobs)


def against(old: type[Job[Any]], new: type[Job[Any]]) -> list[Finding]:
    return compared(document(old), document(new))


def severities(found: list[Finding]) -> list[str]:
    return [str(each.severity) for each in found]


def test_the_document_says_what_is_promised_on_the_wire() -> None:
    later, charge = sorted(document(Later, Charge).contracts, key=lambda each: each.kind, reverse=True)

    assert (charge.kind, charge.aliases, charge.exchange, charge.version) == ("charge", ("bill", "pay"), "orders", 1)
    assert charge.payload["description"] == "Take money."
    assert charge.payload["required"] == ["order"]
    assert charge.sends["required"] == ["note", "order", "token"]
    assert charge.result["properties"] == {"number": {"type": "integer"}}
    assert later.result == {"type": "null"}


def test_the_order_of_classes_and_fields_changes_nothing() -> None:
    class Turned(Job[Receipt], kind="charge", aliases=["bill", "pay"], exchange="orders"):
        """Take money."""

        token: SecretStr = SecretStr("another")
        note: str = ""
        order: int

    def text(document: Contracts) -> str:
        return json.dumps(document.model_dump(mode="json"), sort_keys=True).replace("Turned", "Charge")

    assert text(document(Charge, Later)) == text(document(Later, Turned, Turned))


def test_a_secret_is_a_password_without_its_default() -> None:
    (charge,) = document(Charge).contracts

    assert charge.payload["properties"]["token"] == {"type": "string", "format": "password", "writeOnly": True}


def test_a_document_is_read_back_as_it_was() -> None:
    made = document(Charge, Later)

    assert read(made.model_dump_json(), "contracts.json") == made


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"amqpjobs": "contracts/9", "contracts": []}', '{"openapi": "3"}'])
def test_what_is_no_document_is_told_by_its_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"other\.json is no document"):
        read(text, "other.json")


def test_two_classes_of_one_kind_are_refused() -> None:
    with pytest.raises(DuplicateKindError, match="'pay'"):
        document(Charge, job_class("Other", kind="pay"))


def test_a_payload_that_json_schema_cannot_describe_is_told_with_its_class() -> None:
    class Odd(Job[None]):
        model_config = ConfigDict(arbitrary_types_allowed=True)

        what: Opaque

    with pytest.raises(DefinitionError, match=r"Odd has no JSON Schema.*WithJsonSchema"):
        document(Odd)


def test_a_result_that_json_schema_cannot_describe_may_be_anything() -> None:
    class Odd(Job[Opaque]):
        pass

    (contract,) = document(Odd).contracts

    assert contract.result == {"$comment": "a type without a JSON Schema"}


def test_what_has_not_changed_has_no_findings() -> None:
    assert compared(document(Charge, Later), document(Later, Charge)) == []


def test_a_kind_that_is_gone_breaks_and_a_new_one_does_not() -> None:
    gone, new = compared(document(Later), document(job_class("Latr", kind="latr")))

    assert (gone.severity, gone.kind, gone.what) == (Severity.BREAKING, "later", "has no job class any more")
    assert "aliases=['later']" in gone.advice
    assert "Did you mean 'latr'?" in gone.advice
    assert (new.severity, new.kind) == (Severity.NOTE, "latr")


def test_a_renamed_kind_with_its_old_name_as_an_alias_is_fine() -> None:
    class Renamed(Job[None], kind="sometime", aliases=["later"]):
        at: int = 0

    assert against(Later, Renamed) == []


def test_an_alias_that_is_gone_breaks() -> None:
    class Fewer(Charge, kind="charge", aliases=["pay"]):
        """Take money."""

    (found,) = against(Charge, Fewer)

    assert (found.severity, found.what) == (Severity.BREAKING, "is no longer read under its alias 'bill'")


def test_another_exchange_breaks() -> None:
    found = against(Later, job_class("Moved", kind="later", exchange="orders"))

    assert severities(found) == ["breaking"]
    assert "moved from exchange 'of jobs' to 'orders'" in found[0].what


class Second(Job[None], kind="v", version=2):
    n: int

    @upgrade(from_version=1)
    @staticmethod
    def named(payload: dict[str, Any]) -> dict[str, Any]:
        return {"n": payload["number"]}


class Third(Job[None], kind="v", version=3):
    n: int
    more: int

    @upgrade(from_version=1)
    @staticmethod
    def named(payload: dict[str, Any]) -> dict[str, Any]:
        return {"n": payload["number"]}

    @upgrade(from_version=2)
    @staticmethod
    def with_more(payload: dict[str, Any]) -> dict[str, Any]:
        return payload | {"more": 0}


class ThirdAlone(Job[None], kind="v", version=3):
    n: int
    more: int


class ThirdOnly(Job[None], kind="v", version=3, oldest_version=3):
    n: int
    more: int


class SecondAndMore(Job[None], kind="v", version=2):
    n: int
    more: int

    @upgrade(from_version=1)
    @staticmethod
    def named(payload: dict[str, Any]) -> dict[str, Any]:
        return {"n": payload["number"], "more": 0}


class SecondAlone(Job[None], kind="v", version=2):
    n: int


class ThirdYoung(Job[None], kind="v", version=3, oldest_version=2):
    n: int

    @upgrade(from_version=2)
    @staticmethod
    def same(payload: dict[str, Any]) -> dict[str, Any]:
        return payload


@pytest.mark.parametrize(
    ("old", "new", "severity", "words"),
    [
        (Second, Third, "note", "older ones go through the upgrade"),
        (Second, ThirdAlone, "breaking", "is new and required"),
        (Second, ThirdOnly, "breaking", "payloads of version 2 are no longer read"),
        (Second, SecondAndMore, "breaking", "is new and required"),
        (Second, SecondAlone, "breaking", "upgrades from version 1 on are gone"),
        (Second, ThirdYoung, "warning", "versions 1 to 1 are no longer read"),
        (Third, Second, "breaking", "went down from version 3 to 2"),
    ],
)
def test_versions_and_upgrades_decide_what_a_changed_payload_means(
    old: type[Job[Any]], new: type[Job[Any]], severity: str, words: str
) -> None:
    found = against(old, new)

    assert severities(found)[0] == severity
    assert any(words in each.what for each in found if each.severity == severity), found


def test_a_higher_version_says_that_older_workers_let_the_jobs_wait() -> None:
    found = against(Second, Third)

    assert any("let jobs of version 3 wait" in each.what for each in found)


def test_what_older_workers_would_refuse_is_a_warning_unless_the_version_rises() -> None:
    class Closed(Job[None], kind="closed"):
        model_config = ConfigDict(extra="forbid")

        n: int

    class Wider(Closed, kind="closed"):
        more: str = ""

    class WiderAndHigher(Wider, kind="closed", version=2):
        pass

    (warning,) = against(Closed, Wider)
    (note,) = against(Closed, WiderAndHigher)

    assert (warning.severity, warning.path) == (Severity.WARNING, "more")
    assert "older workers may refuse" in warning.what
    assert note.severity is Severity.NOTE


def test_a_default_for_a_field_is_no_warning_since_we_always_send_it() -> None:
    class Needed(Job[None], kind="a"):
        n: int

    class Given(Job[None], kind="a"):
        n: int = 0

    assert against(Needed, Given) == []


def test_a_result_that_older_callers_do_not_expect_is_a_warning() -> None:
    class Number(Job[int], kind="a"):
        pass

    class Perhaps(Job[int | None], kind="a"):
        pass

    assert severities(against(Number, Perhaps)) == ["warning"]
    assert against(Perhaps, Number) == []


def test_what_nobody_can_tell_says_so() -> None:
    class Loose(Job[None], kind="a"):
        text: str = Field(pattern="^a")

    class Other(Job[None], kind="a"):
        text: str = Field(pattern="^[a]")

    found = against(Loose, Other)

    assert severities(found) == ["cannot tell", "warning"]
