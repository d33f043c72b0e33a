"""Permissions as sets of names, and the regexes that match just these."""

import re

from hypothesis import given
from hypothesis import strategies as st

from amqpjobs.permissions import (
    Permissions,
    beat_permissions,
    calling_permissions,
    declaring,
    deployer_permissions,
    infrastructure,
    observer_permissions,
    operator_permissions,
    pattern,
    producer_permissions,
    scheduler_permissions,
    worker_permissions,
)
from amqpjobs.topology import LEVELS, Plan, Queue, Subscription, Topology

NAMES = st.from_regex(r"[a-z0-9_-]{1,4}(\.[a-z0-9_-]{1,4}){0,3}", fullmatch=True)
TOPOLOGY = Topology("ns")
QUEUES = [Queue("shop"), Queue("fast", type="classic")]
PLAN = TOPOLOGY.app(
    QUEUES,
    [Subscription(kind="order", queue="shop"), Subscription(kind="ship", queue="fast", exchange="orders")],
)


@given(st.sets(NAMES), NAMES)
def test_a_pattern_matches_its_names_and_no_other(names: set[str], other: str) -> None:
    regex = re.compile(pattern(names))

    assert all(regex.search(name) for name in names)
    assert bool(regex.search(other)) == (other in names)


def test_a_pattern_takes_dots_for_dots_and_nothing_for_nothing() -> None:
    assert pattern([]) == "^$"
    assert pattern(["a"]) == "^(a)$"
    assert pattern(["b.d", "a", "b.c"]) == r"^(a|b\.(c|d))$"
    assert re.search(pattern(["a.b"]), "axb") is None


def test_who_declares_nothing_configures_nothing() -> None:
    producer = producer_permissions(TOPOLOGY, [""], declares=False)
    worker = worker_permissions(TOPOLOGY, QUEUES, PLAN, declares=False)

    assert producer.configure == worker.configure == frozenset()
    assert producer.read == frozenset()
    assert worker.read == {"ns.queue.shop", "ns.queue.fast", "ns.parked.v1"}


def test_a_producer_may_write_to_its_exchanges_and_to_all_levels() -> None:
    producer = producer_permissions(TOPOLOGY, ["", "orders"], declares=False)

    levels = {TOPOLOGY.level(number) for number in range(LEVELS)}
    assert producer.write == {"ns", "ns.queues", "orders", "ns.ready.v1"} | levels


def test_who_declares_may_configure_all_of_the_plan_and_no_more() -> None:
    worker = worker_permissions(TOPOLOGY, QUEUES, PLAN, declares=True)

    shared = infrastructure(TOPOLOGY)
    exchanges = [each.name for each in (*shared.exchanges, *PLAN.exchanges)]
    queues = [each.name for each in (*shared.queues, *PLAN.queues)]
    assert worker.configure == {*exchanges, *queues}


def test_nobody_may_read_dead_letters_or_write_past_the_namespace() -> None:
    worker = worker_permissions(TOPOLOGY, QUEUES, PLAN, declares=True)

    assert not any(name.startswith("ns.dead.") for name in worker.read)
    assert {name for name in worker.write | worker.read if not name.startswith("ns")} == {"orders"}


def test_a_worker_reads_the_runs_of_its_beats_and_writes_nothing_more_for_them() -> None:
    alone = worker_permissions(TOPOLOGY, QUEUES, PLAN, declares=False)
    beside = worker_permissions(TOPOLOGY, QUEUES, PLAN, declares=False, beats=["shop"])

    assert beside.read == alone.read | {"ns.beat.runs.v1.shop"}
    assert (beside.configure, beside.write) == (alone.configure, alone.write)


def test_a_beat_reads_its_lease_its_register_and_its_runs_and_no_job() -> None:
    beat = beat_permissions(TOPOLOGY, "shop", [""], declares=False)
    producer = producer_permissions(TOPOLOGY, [""], declares=False)

    assert beat.configure == frozenset()
    shared = ("lease", "register", "control", "runs")
    assert beat.read == {f"ns.beat.{each}.v1.shop" for each in shared}
    assert beat.write == producer.write | {"ns.beat.v1"}


def test_a_producer_may_not_write_into_leases_and_registers() -> None:
    beat = beat_permissions(TOPOLOGY, "shop", [""], declares=True)
    producer = producer_permissions(TOPOLOGY, [""], declares=True)

    assert {name for name in producer.write | producer.configure | producer.read if "beat" in name} == set()
    assert {name for name in beat.configure if "beat" in name} == {
        "ns.beat.v1",
        "ns.beat.lease.v1.shop",
        "ns.beat.register.v1.shop",
        "ns.beat.runs.v1.shop",
        "ns.beat.control.v1.shop",
    }


def test_a_scheduler_reads_what_beats_remember_and_enqueues_nothing() -> None:
    scheduler = scheduler_permissions(TOPOLOGY, "shop", declares=False)

    assert scheduler.configure == frozenset()
    assert scheduler.read == {"ns.beat.register.v1.shop"}
    assert "ns.beat.v1" in scheduler.write
    assert not scheduler.write & {"ns", "ns.queues", TOPOLOGY.level(0)}


def test_an_observer_reads_the_places_and_nothing_else() -> None:
    observer = observer_permissions(TOPOLOGY, QUEUES)

    assert observer == Permissions(read=frozenset({"ns.unroutable.v1", "ns.parked.v1", "ns.dead.shop", "ns.dead.fast"}))


def test_an_operator_reads_the_places_and_no_work_and_configures_nothing() -> None:
    operator = operator_permissions(TOPOLOGY, QUEUES, ["orders"])

    levels = {TOPOLOGY.level(number) for number in range(LEVELS)}
    assert operator.configure == frozenset()
    assert operator.read == {"ns.dead.shop", "ns.dead.fast", "ns.unroutable.v1", "ns.parked.v1"}
    assert operator.write == {"ns", "ns.queues", "orders", "ns.unroutable.v1"} | levels


def test_a_deployer_declares_as_a_worker_does_and_enqueues_nothing() -> None:
    deployer = deployer_permissions(TOPOLOGY, PLAN)
    worker = worker_permissions(TOPOLOGY, QUEUES, PLAN, declares=True)

    assert deployer.configure == worker.configure
    assert deployer | worker == worker
    assert not deployer.write & {"ns", "orders"}
    assert not deployer.read & {"ns.dead.shop", "ns.parked.v1"}


def test_who_calls_has_queues_of_its_own_and_no_others() -> None:
    calling = calling_permissions(TOPOLOGY)

    mine = TOPOLOGY.reply_queue("0f3a")
    allowed = [re.compile(pattern(names)) for names in (calling.configure, calling.write, calling.read)]
    assert all(regex.search(mine) for regex in allowed)
    assert calling.read == {TOPOLOGY.reply_queue("*"), TOPOLOGY.queues}
    others = [
        "ns.queue.shop",
        "ns.dead.shop",
        "ns.replies.v1",
        "ns.replies.v1.",
        "ns.replies.v1.a.b",
        "nsxreplies.v1.a",
    ]
    assert not any(regex.search(other) for regex in allowed for other in others)
    assert not any(regex.search(TOPOLOGY.queues) for regex in allowed[:2])


def test_an_empty_plan_takes_no_permissions() -> None:
    assert declaring(Plan()) == Permissions()
