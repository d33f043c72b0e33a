"""What is written on dead letters, and which of them go in circles."""

from itertools import pairwise

import pytest

from amqpjobs.devbroker.queue import Queue
from amqpjobs.devbroker.returns import Return
from amqpjobs.devbroker.table import Field, Table, array, read_array, text
from amqpjobs.devbroker.table import table as inner
from tests.unit.devbroker.rig import VERSIONS, Rig, Value, deaths, properties, said, table


def chain(rig: Rig, *names: str, ttl: int = 100) -> list[Queue]:
    """Queues that each dead-letter into the next after their TTL; the last one keeps."""
    return [
        rig.queue(name, x_message_ttl=ttl, x_dead_letter_exchange="", x_dead_letter_routing_key=target)
        for name, target in pairwise(names)
    ] + [rig.queue(names[-1])]


def facts(death: Table) -> tuple[object, ...]:
    return tuple(said(death, name) for name in ("queue", "reason", "count", "exchange"))


@pytest.mark.parametrize("version", VERSIONS)
def test_each_queue_on_the_way_is_recorded_the_latest_first(version: str) -> None:
    rig = Rig(version)
    chain(rig, "one", "two", "end")

    rig.publish("one", "a", raw=properties(expiration="40", headers=table(keep="me")))
    rig.timers.advance(1)

    (message,) = rig.messages("end")
    headers = message.properties.headers()
    assert [facts(death) for death in deaths(message)] == [("two", "expired", 1, ""), ("one", "expired", 1, "")]
    assert [said(death, "original-expiration") for death in deaths(message)] == [None, "40"]
    assert said(headers, "x-first-death-queue") == "one"
    assert said(headers, "x-last-death-queue") == (None if version == "3.10" else "two")
    assert said(headers, "keep") == "me"
    assert message.ttl is None
    assert message.properties.raw.count(b"\x0240") == 1  # in x-death only, not as its expiration


def test_time_is_that_of_the_death_and_its_type_a_timestamp() -> None:
    rig = Rig()
    chain(rig, "one", "end")
    rig.publish("one", "a")

    rig.timers.advance(50)

    field = deaths(rig.messages("end")[0])[0].look("time")
    assert field is not None
    assert (field.letter, field.value) == ("T", 1_000_000)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_circle_without_a_client_in_it_ends(version: str) -> None:
    rig = Rig(version)
    for name, target in (("one", "two"), ("two", "one")):
        rig.queue(name, x_message_ttl=100, x_dead_letter_exchange="", x_dead_letter_routing_key=target)
    rig.publish("one", "a")

    rig.timers.advance(0.15)
    assert rig.bodies("two") == ["a"]
    rig.timers.advance(10)

    assert rig.bodies("one") == rig.bodies("two") == []


@pytest.mark.parametrize("version", VERSIONS)
def test_a_circle_that_a_client_rejects_in_goes_on_and_counts(version: str) -> None:
    rig = Rig(version)
    work = rig.queue("work", x_dead_letter_exchange="", x_dead_letter_routing_key="wait")
    rig.queue("wait", x_message_ttl=100, x_dead_letter_exchange="", x_dead_letter_routing_key="work")
    rig.publish("work", "a")

    for _ in range(3):
        entry = work.get(is_silent=False)
        assert entry is not None
        work.discard([entry], Return.REFUSED)
        rig.timers.advance(1)

    (message,) = rig.messages("work")
    assert [facts(death) for death in deaths(message)] == [("wait", "expired", 3, ""), ("work", "rejected", 3, "")]


@pytest.mark.parametrize(("version", "arrives"), [("3.10", False), ("4.0", True), ("4.3", True)])
def test_deaths_that_a_publisher_claims_count_in_old_versions(version: str, arrives: bool) -> None:
    rig = Rig(version)
    chain(rig, "one", "end")
    claimed = array([inner(table(queue="end", reason="expired", count=1))])

    rig.publish("one", "a", raw=properties(headers=table(x_death=claimed)))
    rig.timers.advance(1)

    assert rig.bodies("end") == (["a"] if arrives else [])


def test_an_x_death_that_is_no_array_is_written_anew() -> None:
    rig = Rig("3.10")
    chain(rig, "one", "end")

    rig.publish("one", "a", raw=properties(headers=table(x_death="mine")))
    rig.timers.advance(1)

    (message,) = rig.messages("end")
    assert [facts(death) for death in deaths(message)] == [("one", "expired", 1, "")]
    assert said(message.properties.headers(), "x-first-death-queue") is None


@pytest.mark.parametrize(("version", "stays"), [("3.10", False), ("4.0", True), ("4.3", True)])
def test_a_key_of_the_queues_own_ends_copies_and_old_versions_forget_them(version: str, stays: bool) -> None:
    rig = Rig(version)
    chain(rig, "one", "end")
    copies = Field("A", b"S\x00\x00\x00\x04copy")

    rig.publish("one", "a", raw=properties(headers=table(CC=copies)))
    rig.timers.advance(1)

    (message,) = rig.messages("end")
    assert message.keys == ("end",)
    assert (b"CC" in message.properties.headers()) is stays


def test_without_a_key_of_the_queues_own_copies_go_on() -> None:
    rig = Rig()
    rig.exchange("dead", "direct")
    rig.queue("q", x_message_ttl=1, x_dead_letter_exchange="dead")
    rig.queue("end")
    rig.bind("dead", "end", "copy")

    rig.publish("q", "a", raw=properties(headers=table(CC=Field("A", b"S\x00\x00\x00\x04copy"))))
    rig.timers.advance(1)

    assert rig.bodies("end") == ["a"]
    assert rig.messages("end")[0].exchange == "dead"


def test_other_headers_keep_their_types() -> None:
    rig = Rig()
    chain(rig, "one", "end")
    odd = {name: Field(name, raw) for name, raw in (("b", b"\xff"), ("u", b"\xff\xff"), ("d", bytes(8)), ("x", b"\0"))}

    rig.publish("one", "a", raw=properties(headers=table(**odd)))
    rig.timers.advance(1)

    headers = rig.messages("end")[0].properties.headers()
    assert {name: headers.look(name) for name in odd} == odd


def test_what_overflows_is_a_dead_letter_too() -> None:
    rig = Rig()
    rig.queue("dead")
    limits: dict[str, Value] = {"x_max_length": 1, "x_dead_letter_exchange": "", "x_dead_letter_routing_key": "dead"}
    rig.declare(limits, "dropping")
    rig.declare({"x_overflow": "reject-publish-dlx", **limits}, "refusing")

    assert rig.publish("dropping", "a", "b") == [True, True]
    assert rig.publish("refusing", "c", "d") == [True, False]

    assert rig.bodies("dead") == ["a", "d"]
    assert [said(death, "reason") for message in rig.messages("dead") for death in deaths(message)] == ["maxlen"] * 2


def test_a_long_chain_of_queues_is_no_deep_chain_of_calls() -> None:
    rig = Rig()
    chain(rig, *(f"q{n}" for n in range(300)), ttl=0)

    rig.publish("q0", "a")

    assert rig.bodies("q299") == ["a"]


def test_a_key_that_is_hidden_as_a_copy_is_told_as_the_routing_key() -> None:
    rig = Rig("4.3")
    rig.queue("dead")
    rig.queue("q", x_message_ttl=0, x_dead_letter_exchange="", x_dead_letter_routing_key="dead")
    copies = Table({b"BCC": array([text("q")])})
    rig.publish("q", "a", raw=properties(headers=copies))

    keys = deaths(rig.messages("dead")[0])[0].look("routing-keys")
    assert keys is not None
    assert [item.raw for item in read_array(keys.raw)] == [b"q"]
