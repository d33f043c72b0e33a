"""Keys and slots, and what a job class says of them."""

from collections import Counter
from typing import Annotated
from zlib import crc32

import pytest
from pydantic import Field, SecretStr

from amqpjobs.clock import SystemClock
from amqpjobs.codec import SHARD_HEADER, as_it_came, decode, encode, lasting, within_budget
from amqpjobs.draft import Drafts, written
from amqpjobs.errors import DefinitionError
from amqpjobs.job import Job, options_of, payload_of
from amqpjobs.registry import Registry
from amqpjobs.settings import load_settings
from amqpjobs.sharding import KEYS, SHARD_COUNTS, SLOTS, key_in, key_of, slot_word
from amqpjobs.topology import Queue, Topology
from tests.unit.making import delivery, envelope


class Order(Job[None], shard_by="customer"):
    customer: str
    number: int = 0


class Aliased(Job[None], shard_by="customer"):
    customer: Annotated[str, Field(alias="customerId")]


class Older(Aliased, kind="older"):
    pass


class Spread(Job[None], shard_by="job_id"):
    number: int = 0


def test_a_key_is_the_crc_of_the_values_json() -> None:
    assert key_of("jürgen") == crc32('"jürgen"'.encode()) % 2**31
    assert key_of(42) == crc32(b"42") % 2**31
    assert key_of({"a": [1, None]}) == crc32(b'{"a":[1,null]}') % 2**31


@pytest.mark.parametrize("shards", SHARD_COUNTS)
def test_numbers_and_ids_spread_evenly(shards: int) -> None:
    for values in (range(4096), [f"user-{n}" for n in range(4096)]):
        counts = Counter(key_of(value) % SLOTS % shards for value in values)

        assert len(counts) == shards
        assert max(counts.values()) < 2 * 4096 / shards


def test_a_slots_word_is_one_word_that_no_level_can_match() -> None:
    words = {slot_word(key) for key in range(1000)}

    assert len(words) == SLOTS
    assert not any("." in word for word in words)
    assert slot_word(KEYS - 1) == "amqpjobs-slot-63"


def test_the_field_is_found_in_the_payload_by_its_name_there() -> None:
    job = Aliased.model_validate({"customerId": "ann"})

    assert options_of(Aliased).shard_by == options_of(Older).shard_by == "customerId"
    assert key_in(payload_of(job), "customerId", "an id") == key_of("ann")


def test_the_id_of_the_job_is_no_field() -> None:
    assert options_of(Spread).shard_by == "job_id"
    assert key_in(b"{}", "job_id", "an id") == key_of("an id")


@pytest.mark.parametrize("payload", [b"{}", b"[]", b"7"])
def test_a_payload_without_the_field_has_the_key_of_nothing(payload: bytes) -> None:
    assert key_in(payload, "customer", "an id") == key_of(None)


def test_a_misspelt_field_is_told() -> None:
    with pytest.raises(
        DefinitionError, match=r"one of its fields, or 'job_id', not 'custommer'\. Did you mean 'customer'"
    ):

        class Wrong(Job[None], shard_by="custommer"):  # pyright: ignore[reportUnusedClass]
            customer: str


def test_a_field_that_is_called_job_id_could_be_meant_or_not() -> None:
    with pytest.raises(DefinitionError, match="could be the id of the job or its field"):

        class Wrong(Job[None], shard_by="job_id"):  # pyright: ignore[reportUnusedClass]
            job_id: str


def test_a_secret_is_not_hashed_into_a_header() -> None:
    with pytest.raises(DefinitionError, match="holds a secret"):

        class Wrong(Job[None], shard_by="token"):  # pyright: ignore[reportUnusedClass]
            token: SecretStr


def test_a_field_that_is_not_in_the_payload_is_told() -> None:
    with pytest.raises(DefinitionError, match="not in the payload"):

        class Wrong(Job[None], shard_by="cache"):  # pyright: ignore[reportUnusedClass]
            cache: Annotated[str, Field(exclude=True)] = ""


def test_an_enqueue_stamps_the_key_of_a_job_and_of_one_whose_class_is_unknown() -> None:
    settings = load_settings()
    drafts = Drafts(app="shop", settings=settings, topology=Topology("shop"), clock=SystemClock())
    job = Order(customer="ann")

    made = [drafts.publication(drafts.envelope(each, {})).properties.headers for each in (job, written(job))]

    for headers in made:
        assert headers[SHARD_HEADER] == key_of("ann")
        assert headers["BCC"] == [slot_word(key_of("ann"))]


def test_other_jobs_are_stamped_with_nothing() -> None:
    headers = encode(envelope("plain"), SystemClock().now()).headers

    assert not {SHARD_HEADER, "BCC", "CC"} & headers.keys()


def test_a_retry_says_the_slot_again_though_the_broker_took_it_away() -> None:
    came = decode(delivery(headers={SHARD_HEADER: 7, "amqpjobs-id": "an id"}))

    headers = encode(came, SystemClock().now()).headers

    assert came.shard_key == 7
    assert headers["BCC"] == ["amqpjobs-slot-07"]


def test_whatever_is_republished_as_it_is_says_its_slot_again_and_no_other_copies() -> None:
    headers = {SHARD_HEADER: 64 + 7, "BCC": ["elsewhere"], "CC": ["elsewhere"], "x-death": []}

    assert lasting(headers) == {SHARD_HEADER: 64 + 7, "BCC": ["amqpjobs-slot-07"]}
    assert as_it_came(delivery(headers=headers)).headers["BCC"] == ["amqpjobs-slot-07"]


@pytest.mark.parametrize("key", ["7", -1, KEYS, True, None, 7.0])
def test_a_key_that_is_none_is_no_slot(key: object) -> None:
    assert "BCC" not in lasting({SHARD_HEADER: key})


def test_a_slot_is_never_cut_for_want_of_room() -> None:
    small = {f"h{n}": "x" for n in range(10_000)}

    headers = within_budget({**small, SHARD_HEADER: 7, "BCC": ["amqpjobs-slot-07"]})

    assert headers["BCC"] == ["amqpjobs-slot-07"]
    assert len(headers) < len(small)


class Plain(Job[None], kind="plain"):
    customer: str = ""


def test_a_class_that_does_not_say_by_what_is_refused_on_a_sharded_queue() -> None:
    registry = Registry("shop", declared=[Queue("orders", shards=4)])

    async def handle(job: Plain) -> None: ...

    with pytest.raises(DefinitionError, match=r'class Plain\(Job\[…\], shard_by="…"\)'):
        registry.add(Plain, handle, {"queue": "orders"})
    registry.add(Plain, handle, {})


@pytest.mark.parametrize("shards", [0, 3, 128, -1])
def test_a_queue_has_a_power_of_two_of_shards(shards: int) -> None:
    with pytest.raises(DefinitionError, match="must be one of 1, 2, 4, 8, 16, 32, 64"):
        Queue("orders", shards=shards)


def test_priorities_and_an_order_do_not_go_together() -> None:
    with pytest.raises(DefinitionError, match="max_priority"):
        Queue("orders", type="classic", shards=2, max_priority=5)
