import json
import math
import warnings
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any, Generic, TypeVar, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, Secret, SecretBytes, SecretStr, ValidationError

from amqpjobs.codec import job_from
from amqpjobs.errors import DefinitionError
from amqpjobs.job import Job, Traceable, check_exchange, check_name, hint, options_of, payload_of, traceable_fields
from amqpjobs.retry import fixed
from tests.unit.making import job_class

R = TypeVar("R")
K = TypeVar("K")
T = TypeVar("T")


class Receipt(BaseModel):
    number: int


class Send(Job[Receipt], kind="mail.send", max_attempts=3, timeout=timedelta(minutes=1), delay=5, queue="bulk"):
    to: str


class SendUrgently(Send, priority=9):
    pass


class Timed(Job[R], Generic[R]):
    at: int = 0


class TimedReceipt(Timed[Receipt]):
    pass


class Many(Job[list[R]], Generic[R]):
    pass


class ManyReceipts(Many[Receipt]):
    pass


class Import(Job[None], Generic[T]):
    item: T


class ImportReceipt(Import[Receipt]):
    pass


class Pair(Job[R], Generic[K, R]):
    key: K


class StringToReceipt(Pair[str, Receipt]):
    pass


class Either(Job[Receipt | None]):
    pass


class FieldsOfAllNames(Job[None], version=2, kind="fields"):
    version: str
    queue: str
    kind: str
    timeout: float = 0
    headers: dict[str, str] = Field(default_factory=dict[str, str])
    retry: bool = False


class Nested(BaseModel):
    token: SecretStr


class Login(Job[None]):
    user: str
    password: SecretStr
    key: SecretBytes = SecretBytes(b"bytes")
    nested: list[Nested] = Field(default_factory=list[Nested])
    by_name: dict[str, SecretStr] = Field(default_factory=dict[str, SecretStr])
    maybe: SecretStr | None = None


class PinCode(Job[None]):
    pin: Secret[int]


class Aliased(Job[None]):
    to: str = Field(alias="To")
    password: SecretStr = SecretStr("hidden")

    model_config = ConfigDict(populate_by_name=True)


class RawBytes(Job[None]):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    raw: bytes
    password: SecretStr


class Strict(Job[None]):
    model_config = ConfigDict(extra="forbid")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("SendEmail", "send_email"),
        ("Send", "send"),
        ("HTTPPing", "http_ping"),
        ("SyncUserV2", "sync_user_v2"),
        ("Sync2Disk", "sync2_disk"),
        ("already_snake", "already_snake"),
    ],
)
def test_a_kind_is_the_class_name_in_snake_case(name: str, kind: str) -> None:
    made = job_class(name)

    assert options_of(made).kind == kind


def test_options_stand_behind_the_base_class() -> None:
    options = options_of(Send)

    assert (options.kind, options.max_attempts, options.timeout) == ("mail.send", 3, 60.0)
    assert (options.delay, options.queue, options.version) == (5, "bulk", 1)


def test_a_subclass_inherits_options_but_not_its_name() -> None:
    options = options_of(SendUrgently)

    assert options.kind == "send_urgently"
    assert (options.priority, options.max_attempts, options.queue) == (9, 3, "bulk")
    assert options_of(Send).priority is None


def test_aliases_are_not_inherited() -> None:
    class Old(Job[None], aliases=["older"]):
        pass

    class New(Old):
        pass

    found = options_of(Old).aliases, options_of(New).aliases

    assert found == (("older",), ())


def test_a_job_may_have_fields_named_like_options() -> None:
    job = FieldsOfAllNames(version="1.2", queue="tickets", kind="fax")

    assert (job.version, job.queue, job.kind) == ("1.2", "tickets", "fax")
    assert options_of(FieldsOfAllNames).version == 2
    assert options_of(FieldsOfAllNames).kind == "fields"


@pytest.mark.parametrize("field", ["job_type", "result_type"])
def test_a_field_that_hides_what_job_needs_is_refused(field: str) -> None:
    warnings.simplefilter("ignore")  # pydantic's own, about what is refused here; pytest restores the rest

    with pytest.raises(DefinitionError, match=field):
        type("Hiding", (Job[None],), {"__annotations__": {field: str}, "__module__": __name__})


@pytest.mark.parametrize(
    ("misspelt", "meant"), [("tiemout", "timeout"), ("max_atempts", "max_attempts"), ("kinds", "kind")]
)
def test_a_misspelt_option_is_told_with_what_it_may_mean(misspelt: str, meant: str) -> None:
    with pytest.raises(DefinitionError, match=f"{misspelt}.*Did you mean '{meant}'"):
        job_class("Misspelt", **{misspelt: 1})


def test_an_option_like_no_other_is_told_with_all_there_are() -> None:
    told = hint("xyzzy", ["kind", "aliases"])

    assert told == " Known: aliases, kind."


@pytest.mark.parametrize(
    "options",
    [
        {"kind": ""},
        {"kind": "a b"},
        {"kind": "a..b"},
        {"kind": "a.*"},
        {"kind": "a.#"},
        {"kind": "naïve"},
        {"kind": "x" * 101},
        {"kind": "kind\n"},
        {"aliases": ["fine", "not fine"]},
        {"queue": "a/b"},
        {"exchange": "amq.topic"},
        {"exchange": "with space"},
        {"exchange": "x" * 81},
        {"version": 0},
        {"version": True},
        {"version": 1.5},
        {"max_attempts": 0},
        {"max_attempts": -1},
        {"timeout": 0},
        {"timeout": timedelta(seconds=-1)},
        {"expires": 0},
        {"delay": -1},
        {"priority": -1},
        {"priority": 256},
    ],
)
def test_an_option_that_cannot_be_is_refused_at_import(options: dict[str, object]) -> None:
    with pytest.raises(DefinitionError):
        job_class("Wrong", **options)


@pytest.mark.parametrize("options", [{"timeout": "soon"}, {"timeout": math.nan}, {"kind": 5}, {"retry": "often"}])
def test_an_option_of_a_wrong_type_is_refused_in_our_words(options: dict[str, object]) -> None:
    with pytest.raises(DefinitionError):
        job_class("Wrong", **options)


def test_aliases_given_as_one_string_are_not_taken_apart_into_letters() -> None:
    try:
        aliases: Sequence[str] = options_of(job_class("Renamed", aliases="old")).aliases
    except DefinitionError:
        aliases = ("old",)

    assert tuple(aliases) == ("old",)


@pytest.mark.parametrize("name", ["a.0", "1", "0.b", "a.1.b"])
def test_no_word_of_a_name_is_a_bit(name: str) -> None:
    with pytest.raises(DefinitionError, match="delay levels"):
        check_name(name, "Queue")


@pytest.mark.parametrize("name", ["a", "A-b_c.d9", "a0.b1.10.01", "x" * 100])
def test_other_names_pass(name: str) -> None:
    assert check_name(name, "Queue") == name


@pytest.mark.parametrize("name", ["orders", "my.exchange:v1", "a_b-c", "0"])
def test_exchanges_of_others_may_be_named_more_freely(name: str) -> None:
    assert check_exchange(name) == name


@pytest.mark.parametrize(
    ("job", "result"),
    [
        (Send, Receipt),
        (SendUrgently, Receipt),
        (TimedReceipt, Receipt),
        (Either, Receipt | None),
        (Login, None),
        (ImportReceipt, None),
        (StringToReceipt, Receipt),
        (ManyReceipts, list[Receipt]),
    ],
)
def test_the_result_type_is_what_stands_in_brackets_behind_job(job: type[Job[Any]], result: object) -> None:
    found = cast("object", job.result_type())

    assert (None if found is type(None) else found) == result


def test_the_job_type_is_the_class() -> None:
    assert SendUrgently.job_type() is SendUrgently


def test_job_itself_has_no_options() -> None:
    with pytest.raises(DefinitionError, match="Derive one"):
        options_of(Job[None])


def test_a_payload_is_the_jobs_own_json() -> None:
    payload = payload_of(Send(to="a@example.org"))

    assert json.loads(payload) == {"to": "a@example.org"}


def test_secrets_are_written_out_and_come_back() -> None:
    job = Login(
        user="u",
        password=SecretStr("pa55"),
        nested=[Nested(token=SecretStr("t0k"))],
        by_name={"a": SecretStr("n4me")},
        maybe=SecretStr("p3rhaps"),
    )

    back = job_from(Login, payload_of(job))

    assert back == job
    assert back.nested[0].token.get_secret_value() == "t0k"
    assert back.by_name["a"].get_secret_value() == "n4me"


def test_secrets_are_masked_where_people_look() -> None:
    job = Login(user="u", password=SecretStr("pa55"), nested=[Nested(token=SecretStr("t0k"))])

    shown = f"{job!r} {job} {job.model_dump_json()}"

    assert "pa55" not in shown
    assert "t0k" not in shown


def test_a_secret_of_any_type_is_written_out() -> None:
    job = PinCode(pin=Secret[int](1234))

    back = job_from(PinCode, payload_of(job))

    assert back.pin.get_secret_value() == 1234


def test_secrets_change_nothing_about_how_the_other_fields_are_written() -> None:
    job = RawBytes(raw=b"\xff\x00", password=SecretStr("pa55"))

    back = job_from(RawBytes, payload_of(job))

    assert back == job


def test_aliases_of_fields_are_what_travels() -> None:
    payload = payload_of(Aliased.model_validate({"To": "a"}))

    assert json.loads(payload) == {"To": "a", "password": "hidden"}


def test_surplus_fields_are_ignored_unless_the_class_forbids_them() -> None:
    assert job_from(Send, b'{"to": "a", "more": 1}').to == "a"
    with pytest.raises(ValidationError):
        Strict.model_validate_json(b'{"more": 1}')


def test_a_retry_policy_is_an_option() -> None:
    policy = fixed(3)

    made = job_class("Retried", retry=policy)

    assert options_of(made).retry is policy


class Everything(Job[None]):
    text: str
    number: int
    share: float
    price: Decimal
    span: timedelta
    maybe: str | None = None


@given(
    st.builds(
        Everything,
        text=st.text(st.characters(exclude_categories=["Cs"])),
        share=st.floats(allow_nan=False),
        price=st.decimals(-(10**9), 10**9, allow_nan=False, places=2),
        span=st.timedeltas(timedelta(days=-9999), timedelta(days=9999)),
        maybe=st.none(),
    )
)
def test_what_was_enqueued_is_what_arrives(job: Everything) -> None:
    back = job_from(Everything, payload_of(job))

    assert back == job


def test_an_infinite_number_once_arrived_as_null_and_without_a_trace() -> None:
    class Limit(Job[None], kind="limit"):
        most: float | None

    class SecretLimit(Limit, kind="limit.secret"):
        token: SecretStr = SecretStr("t")

    for job in (Limit(most=float("inf")), SecretLimit(most=float("-inf"))):
        payload = payload_of(job)

        assert json.loads(payload, parse_constant=pytest.fail)["most"] == str(job.most).replace("inf", "Infinity")
        assert job_from(type(job), payload) == job


def test_traces_may_show_just_the_fields_that_are_marked() -> None:
    class Order(Job[None]):
        number: Annotated[int, Traceable()]
        shop: Annotated[str, Traceable, Field(alias="from")]
        note: str

    assert traceable_fields(Order) == {"number": "number", "shop": "from"}


def test_a_secret_cannot_be_shown_in_traces() -> None:
    def define() -> type[Job[None]]:
        class Login(Job[None]):
            token: Annotated[SecretStr | None, Traceable()] = None

        return Login

    with pytest.raises(DefinitionError, match="token of Login holds a secret"):
        define()


def test_how_runs_relate_to_their_enqueue_is_one_of_three_words() -> None:
    class Placed(Job[None], trace_relation="link"):
        pass

    assert options_of(Placed).trace_relation == "link"
    with pytest.raises(DefinitionError, match="'auto', 'child', 'link', not 'sibling'"):
        job_class("Wrong", trace_relation="sibling")
