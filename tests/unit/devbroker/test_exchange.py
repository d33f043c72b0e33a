"""Which queues a message reaches. The expected sets were seen on RabbitMQ 3.10, 4.0 and 4.3."""

import pytest

from amqpjobs.devbroker.errors import RefusedError
from amqpjobs.devbroker.exchange import Binding, Exchange, check_binding
from amqpjobs.devbroker.message import published
from amqpjobs.devbroker.table import Field, Table
from tests.unit.devbroker.rig import Rig, Value, properties, table

PATTERNS = ("a.b", "a.*", "a.#", "#", "*", "*.b", "#.b", "a.#.c", "", "a..b", "*.*", "#.#", "a.", "#.a.#")
TOPICS = {
    "a": {"a.#", "#", "*", "#.#", "#.a.#"},
    "a.b": {"a.b", "a.*", "a.#", "#", "*.b", "#.b", "*.*", "#.#", "#.a.#"},
    "": {"#", "", "#.#"},
    "a.b.c": {"a.#", "#", "a.#.c", "#.#", "#.a.#"},
    "a.c": {"a.*", "a.#", "#", "a.#.c", "*.*", "#.#", "#.a.#"},
    "a..b": {"a.#", "#", "#.b", "a..b", "#.#", "#.a.#"},
    "b": {"#", "*", "#.b", "#.#"},
    "a.": {"a.*", "a.#", "#", "*.*", "#.#", "a.", "#.a.#"},
    "b.a.c": {"#", "#.#", "#.a.#"},
    "#": {"#", "*", "#.#"},
}


@pytest.mark.parametrize("key", TOPICS)
def test_a_topic_pattern_matches_words(key: str) -> None:
    exchange = Exchange[str]("x", "topic")
    for pattern in PATTERNS:
        exchange.bind(Binding(pattern, (), pattern))

    assert set(exchange.matching([key], Table())) == TOPICS[key]


def test_a_pattern_that_was_unbound_matches_nothing() -> None:
    exchange = Exchange[str]("x", "topic")
    first, second = Binding("a.#.b", (), "first"), Binding("a.#", (), "second")
    exchange.bind(first)
    exchange.bind(second)

    assert exchange.unbind(first)
    assert not exchange.unbind(first)

    assert list(exchange.matching(["a.b"], Table())) == ["second"]


BINDINGS: dict[str, dict[str, Value]] = {
    "all": {"x_match": "all", "a": 1, "b": "s"},
    "any": {"x_match": "any", "a": 1, "b": "s"},
    "void": {"a": Field("V", b"")},
    "all with x": {"x_match": "all-with-x", "x_k": 1},
    "any with x": {"x_match": "any-with-x", "x_k": 1, "q": 2},
    "all without x": {"x_match": "all", "x_k": 1},
    "any without x": {"x_match": "any", "x_k": 1},
    "none": {},
    "true": {"t": True},
}
ALWAYS = {"all without x", "none"}
HEADERS: list[tuple[dict[str, Value], set[str]]] = [
    ({"a": 1, "b": "s"}, {"all", "any", "void"}),
    ({"a": 1}, {"any", "void"}),
    ({"a": "1"}, {"void"}),
    ({"a": Field("b", b"\x01")}, {"any", "void"}),
    ({"x_k": 1}, {"all with x", "any with x"}),
    ({"x_k": 2}, set()),
    ({"q": 2}, {"any with x"}),
    ({"t": True}, {"true"}),
    ({"t": 1}, set()),
    ({}, set()),
]


@pytest.mark.parametrize(("given", "expected"), HEADERS)
def test_a_headers_binding_compares_values_whatever_their_size(given: dict[str, Value], expected: set[str]) -> None:
    exchange = Exchange[str]("x", "headers")
    for name, arguments in BINDINGS.items():
        exchange.bind(Binding("", tuple(sorted(table(**arguments).items(), key=lambda item: item[0])), name))

    assert set(exchange.matching([""], table(**given))) == expected | ALWAYS


@pytest.mark.parametrize(("is_exact", "matches"), [(False, True), (True, False)])
def test_old_versions_take_a_number_with_a_fraction_of_none_for_a_whole_one(is_exact: bool, matches: bool) -> None:
    exchange = Exchange[str]("x", "headers", is_exact=is_exact)
    exchange.bind(Binding("", tuple(table(a=1).items()), "q"))

    found = list(exchange.matching([""], table(a=Field("d", b"\x3f\xf0" + bytes(6)))))

    assert bool(found) is matches


@pytest.mark.parametrize("value", ["some", 3])
def test_a_headers_binding_with_an_unknown_match_is_refused(value: Value) -> None:
    with pytest.raises(RefusedError, match="Invalid x-match field"):
        check_binding("headers", table(x_match=value))


def test_a_message_reaches_a_queue_once_however_many_ways_lead_there() -> None:
    rig = Rig()
    rig.queue("q")
    for name, kind in (("a", "direct"), ("b", "topic"), ("c", "fanout")):
        rig.exchange(name, kind)
    rig.bind("a", "b", "k")
    rig.bind("a", "c", "k")
    rig.bind("b", "a", "#")  # a circle
    rig.bind("b", "q", "k")
    rig.bind("c", "q")

    rig.publish("k", "one", exchange="a")

    assert rig.bodies("q") == ["one"]


def test_an_alternate_exchange_gets_what_matches_nothing() -> None:
    rig = Rig()
    rig.queue("q")
    rig.queue("lost")
    rig.exchange("other", "fanout")
    rig.exchange("x", "direct", alternate_exchange="other")
    rig.bind("other", "lost")
    rig.bind("x", "q", "k")

    rig.publish("k", "found", exchange="x")
    rig.publish("z", "lost", exchange="x")

    assert (rig.bodies("q"), rig.bodies("lost")) == (["found"], ["lost"])


def test_a_new_binding_counts_at_once_for_a_key_that_was_routed_before() -> None:
    rig = Rig()
    rig.queue("first")
    rig.queue("second")
    rig.exchange("x", "direct")
    rig.bind("x", "first", "k")
    rig.publish("k", "1", exchange="x")

    rig.bind("x", "second", "k")
    rig.publish("k", "2", exchange="x")
    rig.vhost.remove_queue(rig.vhost.queues["first"])
    rig.publish("k", "3", exchange="x")

    assert rig.bodies("second") == ["2", "3"]


def test_a_queue_that_is_gone_gets_nothing_from_a_key_that_was_routed_before() -> None:
    rig = Rig()
    queue = rig.queue("q")
    rig.publish("q", "1")

    rig.vhost.remove_queue(queue)

    assert rig.vhost.publish(published("", "q", properties(), b"2"))[0] == 0
    assert rig.memory.held == 0


def test_copies_go_by_further_keys_and_only_hidden_ones_are_not_told() -> None:
    rig = Rig()
    for name in "abc":
        rig.queue(name)
    keys = {name: Field("A", b"S\x00\x00\x00\x01" + key) for name, key in (("CC", b"b"), ("BCC", b"c"))}

    rig.publish("a", "one", raw=properties(headers=table(**keys)))

    for name in "abc":
        (message,) = rig.messages(name)
        assert message.keys[0] == "a"
        assert list(message.properties.headers()) == [b"CC"]


def test_an_auto_delete_exchange_goes_with_its_last_binding() -> None:
    rig = Rig()
    rig.queue("q")
    rig.vhost.declare_exchange(Exchange("x", "direct", is_auto_delete=True))
    rig.bind("x", "q", "one")
    rig.bind("x", "q", "two")

    rig.vhost.unbind(rig.vhost.exchange("x"), rig.vhost.queues["q"], "one", Table())
    assert "x" in rig.vhost.exchanges
    rig.vhost.remove_queue(rig.vhost.queues["q"])

    assert "x" not in rig.vhost.exchanges
