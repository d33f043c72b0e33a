"""Plans are only data, so a few lines of AMQP's own routing rules can walk a message through them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amqpjobs.errors import DefinitionError
from amqpjobs.topology import (
    DELIVERY_LIMIT,
    LEASE_LENGTH,
    LEVELS,
    LONGEST_DELAY,
    UNIT,
    Binding,
    ExchangeSpec,
    Plan,
    Queue,
    QueueSpec,
    QueueType,
    Route,
    Subscription,
    Topology,
    few_hops,
)

TOPOLOGY = Topology("amqpjobs")
SPANS = st.one_of(st.floats(0.001, LONGEST_DELAY), st.floats(0.001, 100.0))
WORDS = st.text("ab01-_", min_size=1, max_size=3).filter(lambda word: word not in ("0", "1"))
NAMES = st.lists(WORDS, min_size=1, max_size=3).map(".".join)
FOREIGN = st.text("ab.:01", min_size=1, max_size=5)


def matches(pattern: str, key: str) -> bool:
    """AMQP's topic rule: * is one word, # any number of them."""
    return _matches(tuple(pattern.split(".")), tuple(key.split(".")))


@cache
def _matches(pattern: tuple[str, ...], words: tuple[str, ...]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return _matches(pattern[1:], words) or (bool(words) and _matches(pattern, words[1:]))
    return bool(words) and pattern[0] in ("*", words[0]) and _matches(pattern[1:], words[1:])


@dataclass
class Walk:
    """Where a message was held, for how many units, and where it came to rest."""

    held: list[str]
    units: int
    ends: set[str]


class Broker:
    """Just the routing of a broker that has these plans."""

    def __init__(self, *plans: Plan) -> None:
        self.types = {each.name: each for plan in plans for each in plan.exchanges}
        self.queues = {each.name: each for plan in plans for each in plan.queues}
        self.bindings = [each for plan in plans for each in plan.bindings]

    def walk(self, route: Route) -> Walk:
        walk = Walk([], 0, set())
        current = self._routed(route.exchange, route.key)
        while current:
            holding = [name for name in current if "x-message-ttl" in self.queues[name].arguments]
            walk.ends |= current - set(holding)
            assert len(holding) <= 1, "a message is held in two levels at once"
            if not holding:
                break
            arguments = self.queues[holding[0]].arguments
            walk.held.append(holding[0])
            walk.units += int(arguments["x-message-ttl"]) // 100
            current = self._routed(str(arguments["x-dead-letter-exchange"]), route.key)
        return walk

    def _routed(self, exchange: str, key: str) -> set[str]:
        found = set[str]()
        for binding in self.bindings:
            if binding.source == exchange and self._fits(binding, key):
                found |= self._routed(binding.destination, key) if binding.to_exchange else {binding.destination}
        instead = self.types[exchange].arguments.get("alternate-exchange")
        return found if found or instead is None else self._routed(str(instead), key)

    def _fits(self, binding: Binding, key: str) -> bool:
        match self.types[binding.source].type:
            case "fanout":
                return True
            case "direct":
                return binding.key == key
            case _:
                return matches(binding.key, key)


def units_of(seconds: float) -> int:
    """The delay a route really makes, in units, read from its key."""
    return int(TOPOLOGY.delayed(seconds, kind="k").key[: 2 * LEVELS].replace(".", ""), 2)


def broker_for(queues: Sequence[str], wanted: Sequence[Subscription]) -> Broker:
    plan = TOPOLOGY.app([Queue(name) for name in queues], wanted)
    return Broker(TOPOLOGY.infrastructure(), plan)


@pytest.mark.parametrize(
    ("pattern", "key", "fits"),
    [
        ("a.b", "a.b", True),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("*.b.#", "a.b", True),
        ("#", "", True),
        ("a", "b", False),
    ],
)
def test_the_simulated_topic_rule_is_amqps(pattern: str, key: str, fits: bool) -> None:
    assert matches(pattern, key) == fits


@given(SPANS)
def test_a_delay_is_never_early_and_at_most_one_unit_late(seconds: float) -> None:
    real = units_of(seconds) * UNIT

    assert seconds - 1e-6 <= real < seconds + UNIT + 1e-6


@pytest.mark.parametrize(
    ("seconds", "units"),
    [(0.0, 1), (0.05, 1), (0.1, 1), (0.3, 3), (0.7, 7), (0.75, 8), (1.0, 10), (60, 600), (3600, 36_000)],
)
def test_whole_units_are_not_rounded_up(seconds: float, units: int) -> None:
    assert units_of(seconds) == units


@given(st.integers(1, 2**LEVELS - 1))
def test_the_key_begins_with_the_bits_of_the_delay(units: int) -> None:
    route = TOPOLOGY.delayed(units * UNIT, queue="work")

    words = route.key.split(".")
    assert words[:LEVELS] == list(f"{units:032b}")
    assert words[LEVELS:] == ["queue", "work"]
    assert route.exchange == TOPOLOGY.level(units.bit_length() - 1)


def test_the_longest_delay_is_taken_and_a_longer_one_refused() -> None:
    assert units_of(LONGEST_DELAY) == 2**LEVELS - 1
    with pytest.raises(ValueError, match=r"13\.6 years"):
        TOPOLOGY.delayed(LONGEST_DELAY + UNIT, kind="k")


@given(st.floats(0.001, 2.0**28))
def test_few_hops_are_at_most_five_and_at_most_a_sixteenth_longer(seconds: float) -> None:
    rounded = few_hops(seconds)

    assert units_of(rounded).bit_count() <= 5
    assert seconds - 1e-6 <= rounded <= (seconds + UNIT) * 1.0625 + 1e-6


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.0, 0.0), (0.1, 0.1), (2.0, 2.0), (3.1, 3.1), (3.3, 3.4), (3600, 3686.4)]
)
def test_few_hops_round_up_to_five_significant_bits(seconds: float, expected: float) -> None:
    assert few_hops(seconds) == pytest.approx(expected)


@pytest.mark.parametrize("seconds", [LONGEST_DELAY, 1e30, float("inf")])
def test_no_retry_waits_longer_than_the_levels_can(seconds: float) -> None:
    rounded = few_hops(seconds)

    assert 13 * 365 * 86_400 < rounded <= LONGEST_DELAY


def test_the_names_are_those_of_the_design() -> None:
    names = Topology("shop")

    assert (names.jobs, names.queues, names.due) == ("shop", "shop.queues", "shop.due.v1")
    assert (names.unroutable, names.parked) == ("shop.unroutable.v1", "shop.parked.v1")
    assert (names.work_queue("mail"), names.dead_queue("mail")) == ("shop.queue.mail", "shop.dead.mail")
    assert (names.level(0), names.level(31)) == ("shop.delay.v1.00", "shop.delay.v1.31")
    assert names.marker.name == "shop.ready.v1"


def test_what_the_beats_of_an_app_share_is_bound_to_an_exchange_of_its_own() -> None:
    plan = TOPOLOGY.beat("mail")

    lease, register, control, runs = (queue.name for queue in plan.queues)
    assert [each.name for each in plan.exchanges] == ["amqpjobs.beat.v1"]
    assert (lease, register) == ("amqpjobs.beat.lease.v1.mail", "amqpjobs.beat.register.v1.mail")
    assert control == "amqpjobs.beat.control.v1.mail"
    assert TOPOLOGY.to_beat_lease("mail") == Route(exchange="amqpjobs.beat.v1", key=lease)
    assert TOPOLOGY.to_beat_register("mail") == Route(exchange="amqpjobs.beat.v1", key=register)
    assert TOPOLOGY.to_beat_control("mail") == Route(exchange="amqpjobs.beat.v1", key=control)
    assert [(each.source, each.destination, each.key) for each in plan.bindings] == [
        ("amqpjobs.beat.v1", lease, lease),
        ("amqpjobs.beat.v1", register, register),
        ("amqpjobs.beat.v1", control, control),
        ("amqpjobs.queues", runs, runs),
    ]


def test_what_workers_tell_beats_goes_where_workers_may_write_anyway() -> None:
    assert TOPOLOGY.to_beat_runs("mail") == Route(exchange="amqpjobs.queues", key="amqpjobs.beat.runs.v1.mail")
    assert TOPOLOGY.beat("mail").queues[-1].name == "amqpjobs.beat.runs.v1.mail"


def test_a_lease_is_replicated_and_bounded_and_registers_and_runs_are_small_streams() -> None:
    lease, register, control, runs = (queue.arguments for queue in TOPOLOGY.beat("mail").queues)

    assert (lease["x-queue-type"], lease["x-single-active-consumer"]) == ("quorum", True)
    assert (lease["x-delivery-limit"], lease["x-max-length"]) == (DELIVERY_LIMIT, LEASE_LENGTH)
    for stream in (register, runs):
        assert stream["x-queue-type"] == "stream"
        assert int(stream["x-stream-max-segment-size-bytes"]) < int(stream["x-max-length-bytes"])
    assert (control["x-queue-type"], control["x-overflow"]) == ("quorum", "reject-publish")


def test_routes_lead_where_they_say() -> None:
    assert TOPOLOGY.by_kind("mail") == Route(exchange="amqpjobs", key="mail")
    assert TOPOLOGY.by_kind("mail", "orders") == Route(exchange="orders", key="mail")
    assert TOPOLOGY.to_queue("q") == Route(exchange="amqpjobs.queues", key="amqpjobs.queue.q")
    assert TOPOLOGY.to_dead("q") == Route(exchange="amqpjobs.queues", key="amqpjobs.dead.q")
    assert TOPOLOGY.to_parked() == Route(exchange="amqpjobs.queues", key="amqpjobs.parked.v1")


@given(
    st.lists(NAMES, max_size=4),
    st.lists(st.builds(Subscription, kind=NAMES, queue=NAMES, exchange=FOREIGN | st.just("")), max_size=4),
)
def test_all_that_is_bound_exists_in_the_plan_or_the_infrastructure(
    names: list[str], wanted: list[Subscription]
) -> None:
    shared = TOPOLOGY.infrastructure()
    queues = [*dict.fromkeys([*names, *(each.queue for each in wanted)])]

    own = TOPOLOGY.app([Queue(name) for name in queues], wanted)

    exchanges = {each.name for plan in (shared, own) for each in plan.exchanges}
    known_queues = {each.name for plan in (shared, own) for each in plan.queues}
    for binding in (*shared.bindings, *own.bindings, *own.stale):
        assert binding.source in exchanges
        assert binding.destination in (exchanges if binding.to_exchange else known_queues)
    for queue in (*shared.queues, *own.queues):
        assert queue.arguments.get("x-dead-letter-exchange", TOPOLOGY.jobs) in exchanges


@pytest.mark.parametrize(
    "queue", [*TOPOLOGY.infrastructure().queues, *TOPOLOGY.app([Queue("a")], []).queues], ids=lambda q: q.name
)
def test_every_queue_is_replicated_and_has_a_finite_delivery_limit(queue: QueueSpec) -> None:
    assert queue.arguments["x-queue-type"] == "quorum"
    assert queue.arguments["x-queue-leader-locator"] == "balanced"
    assert queue.arguments["x-delivery-limit"] == DELIVERY_LIMIT
    assert "x-max-length" not in queue.arguments


def test_what_dead_letters_from_a_quorum_queue_does_so_at_least_once() -> None:
    plans = (TOPOLOGY.infrastructure(), TOPOLOGY.app([Queue("a")], []))

    moving = [each.arguments for plan in plans for each in plan.queues if "dead." not in each.name]

    for arguments in moving:
        if "x-dead-letter-exchange" in arguments:
            assert arguments["x-dead-letter-strategy"] == "at-least-once"
            assert arguments["x-overflow"] == "reject-publish"


def test_a_classic_queue_has_its_priorities_and_no_quorum_arguments() -> None:
    plan = TOPOLOGY.app([Queue("a", type="classic", max_priority=5)], [])

    assert plan.queues[0].arguments == {
        "x-queue-type": "classic",
        "x-max-priority": 5,
        "x-dead-letter-exchange": "amqpjobs.queues",
        "x-dead-letter-routing-key": "amqpjobs.dead.a",
    }
    assert plan.queues[1].arguments["x-queue-type"] == "quorum"


def test_kinds_are_unbound_from_the_queues_that_no_longer_handle_them() -> None:
    wanted = [Subscription(kind="mail", queue="bulk"), Subscription(kind="fax", queue="a", exchange="orders")]

    plan = TOPOLOGY.app([Queue("a"), Queue("bulk")], wanted)

    keys = [(each.source, each.destination, each.key.replace("*.", "")) for each in plan.stale]
    assert keys == [
        ("amqpjobs", "amqpjobs.queue.a", "mail"),
        ("amqpjobs.due.v1", "amqpjobs.queue.a", "kind.mail"),
        ("orders", "amqpjobs.queue.bulk", "fax"),
        ("amqpjobs.due.v1", "amqpjobs.queue.bulk", "exchange.orders.fax"),
    ]


@given(st.lists(st.builds(Subscription, kind=NAMES, queue=NAMES, exchange=FOREIGN | st.just("")), max_size=5))
def test_no_binding_is_both_wanted_and_stale(wanted: list[Subscription]) -> None:
    queues = [Queue(name) for name in dict.fromkeys(each.queue for each in wanted)]

    plan = TOPOLOGY.app(queues, wanted)

    assert not {*plan.bindings} & {*plan.stale}


def test_exchanges_of_others_are_taken_as_they_are() -> None:
    wanted = [Subscription(kind=kind, queue="a", exchange="orders") for kind in ("b", "c")]

    plan = TOPOLOGY.app([Queue("a")], wanted)

    assert plan.exchanges == [ExchangeSpec(name="orders", adopted=True)]


@settings(max_examples=50)
@given(st.integers(1, 2**LEVELS - 1), NAMES)
def test_a_delayed_kind_visits_the_levels_of_its_bits_and_ends_in_its_queue(units: int, kind: str) -> None:
    broker = broker_for(["work", "other"], [Subscription(kind=kind, queue="work")])

    walk = broker.walk(TOPOLOGY.delayed(units * UNIT, kind=kind))

    bits = [number for number in reversed(range(LEVELS)) if units >> number & 1]
    assert walk.held == [TOPOLOGY.level(number) for number in bits]
    assert walk.units == units
    assert walk.ends == {TOPOLOGY.work_queue("work")}


@settings(max_examples=50)
@given(st.integers(1, 2**LEVELS - 1), st.sampled_from(["a", "a.b", "b"]))
def test_a_job_delayed_for_a_queue_ends_in_just_that_queue(units: int, name: str) -> None:
    wanted = [Subscription(kind="a", queue="a.b"), Subscription(kind="a.b", queue="b")]
    broker = broker_for(["a", "a.b", "b"], wanted)

    walk = broker.walk(TOPOLOGY.delayed(units * UNIT, queue=name))

    assert (walk.units, walk.ends) == (units, {TOPOLOGY.work_queue(name)})


@settings(max_examples=100)
@given(
    st.lists(st.tuples(FOREIGN, NAMES), min_size=2, max_size=4, unique=True),
    st.integers(1, 1000),
)
def test_exchanges_and_kinds_named_alike_are_not_mixed_up(pairs: list[tuple[str, str]], units: int) -> None:
    wanted = [
        Subscription(kind=kind, queue=f"q{number}", exchange=exchange) for number, (exchange, kind) in enumerate(pairs)
    ]
    broker = broker_for([each.queue for each in wanted], wanted)

    walks = [broker.walk(TOPOLOGY.delayed(units * UNIT, kind=kind, exchange=name)) for name, kind in pairs]

    assert [walk.ends for walk in walks] == [{TOPOLOGY.work_queue(each.queue)} for each in wanted]


def test_an_exchange_a_with_a_kind_b_c_is_not_an_exchange_a_b_with_a_kind_c() -> None:
    wanted = [
        Subscription(kind="b.c", queue="one", exchange="a"),
        Subscription(kind="c", queue="two", exchange="a.b"),
    ]
    broker = broker_for(["one", "two"], wanted)

    walk = broker.walk(TOPOLOGY.delayed(1, kind="c", exchange="a.b"))

    assert walk.ends == {TOPOLOGY.work_queue("two")}


def test_a_delayed_job_that_nobody_wants_waits_as_unroutable() -> None:
    broker = broker_for(["work"], [Subscription(kind="wanted", queue="work")])

    walk = broker.walk(TOPOLOGY.delayed(0.5, kind="unwanted"))

    assert (walk.units, walk.ends) == (5, {TOPOLOGY.unroutable})


def test_two_queues_bound_to_one_kind_each_get_a_copy() -> None:
    wanted = [Subscription(kind="a", queue="one"), Subscription(kind="a", queue="two")]
    broker = broker_for(["one", "two"], wanted)

    at_once = broker.walk(TOPOLOGY.by_kind("a"))
    later = broker.walk(TOPOLOGY.delayed(5, kind="a"))

    assert at_once.ends == later.ends == {TOPOLOGY.work_queue("one"), TOPOLOGY.work_queue("two")}


@pytest.mark.parametrize("route", [TOPOLOGY.to_queue("a"), TOPOLOGY.to_dead("a"), TOPOLOGY.to_parked()])
def test_a_queue_is_reached_by_its_own_name(route: Route) -> None:
    broker = broker_for(["a", "b"], [])

    walk = broker.walk(route)

    assert walk.ends == {route.key}


def test_routing_keys_of_the_longest_names_fit_amqp() -> None:
    route = TOPOLOGY.delayed(LONGEST_DELAY, kind="k" * 100, exchange="e" * 80)

    assert len(route.key.encode()) <= 255


@pytest.mark.parametrize(
    "options",
    [
        {"name": "a b"},
        {"name": "1"},
        {"name": "a", "type": "stream"},
        {"name": "a", "max_priority": 5},
        {"name": "a", "type": "classic", "max_priority": 0},
        {"name": "a", "type": "classic", "max_priority": 256},
        {"name": "a", "weight": 0},
        {"name": "a", "prefetch": 0},
        {"name": "a", "prefetch": 65_536},
        {"name": "a", "consumer_timeout": 0.5},
        {"name": "a", "consumer_timeout": 10**8},
        {"name": "a", "consumer_timeout": float("nan")},
    ],
)
def test_a_queue_that_cannot_be_is_refused_at_import(options: dict[str, object]) -> None:
    with pytest.raises(DefinitionError):
        Queue(**options)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  (what is tested)


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_only_a_queue_that_asks_for_it_has_a_consumer_timeout_of_its_own(kind: QueueType) -> None:
    queues = [Queue("a", type=kind), Queue("b", type=kind, consumer_timeout=timedelta(hours=2))]

    found = {spec.name: spec.arguments.get("x-consumer-timeout") for spec in TOPOLOGY.app(queues, []).queues}

    assert found.pop("amqpjobs.queue.b") == 7_200_000
    assert set(found.values()) == {None}


def test_a_queue_shows_its_name_and_type() -> None:
    assert repr(Queue("a")) == "Queue('a', type='quorum')"


def test_a_sharded_queue_leads_to_its_slots_and_what_finds_none_to_the_first_shard_or_to_unroutable() -> None:
    plan = TOPOLOGY.app([Queue("work", shards=4)], [Subscription(kind="k", queue="work")])
    broker = Broker(TOPOLOGY.infrastructure(), plan)
    slots = [each for each in plan.bindings if each.key.startswith("amqpjobs-slot-")]

    for route in (TOPOLOGY.by_kind("k"), TOPOLOGY.to_queue("work"), TOPOLOGY.delayed(3, kind="k")):
        assert broker.walk(route).ends == {TOPOLOGY.work_queue("work")}
    assert {each.destination for each in slots} == set(TOPOLOGY.parts(Queue("work", shards=4)))
    assert len(slots) == 64
    broker.bindings = [each for each in broker.bindings if not each.destination.startswith("amqpjobs.queue.")]
    assert broker.walk(TOPOLOGY.delayed(3, queue="work")).ends == {TOPOLOGY.unroutable}


def test_another_number_of_shards_is_unbound_before_and_after_this_one_is_bound() -> None:
    plan = TOPOLOGY.app([Queue("work", shards=4)], [])

    assert {each.destination for each in plan.moved} == {TOPOLOGY.slots("work", n) for n in (1, 2, 8, 16, 32, 64)}
    assert set(plan.moved) <= set(plan.stale)
    assert not set(plan.moved) & set(plan.bindings)


def test_a_queue_in_one_piece_has_nothing_of_a_sharded_one() -> None:
    plan = TOPOLOGY.app([Queue("work")], [Subscription(kind="k", queue="work")])

    assert (plan.exchanges, plan.moved, plan.stale) == ([], [], [])
    assert [each.name for each in plan.queues] == [TOPOLOGY.work_queue("work"), TOPOLOGY.dead_queue("work")]
