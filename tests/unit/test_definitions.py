"""Plans put together, and as RabbitMQ's definitions."""

import pytest

from amqpjobs import DefinitionError
from amqpjobs.codec import dumps, loads
from amqpjobs.definitions import definitions, together
from amqpjobs.topology import Queue, Subscription, Topology

TOPOLOGY = Topology("ns")


def test_what_two_plans_want_is_there_once() -> None:
    shared = TOPOLOGY.infrastructure()

    both = together([shared, shared])

    assert list(both.queues) == list(shared.queues)
    assert list(both.exchanges) == list(shared.exchanges)
    assert list(both.bindings) == list(shared.bindings)


def test_two_plans_that_want_a_queue_differently_are_an_error() -> None:
    quorum, classic = TOPOLOGY.app([Queue("bulk")], []), TOPOLOGY.app([Queue("bulk", type="classic")], [])

    with pytest.raises(DefinitionError, match=r"'ns\.queue\.bulk' is wanted with different properties"):
        together([quorum, classic])


def test_what_one_binds_is_not_stale_for_another() -> None:
    here, there = Subscription(kind="order", queue="a"), Subscription(kind="order", queue="b")
    first = TOPOLOGY.app([Queue("a"), Queue("b")], [here])
    second = TOPOLOGY.app([Queue("b")], [there])

    both = together([first, second])

    assert first.stale
    assert not both.stale


def test_definitions_name_the_vhost_everywhere_and_nobody() -> None:
    made = definitions({"jobs": TOPOLOGY.app([Queue("a")], [Subscription(kind="order", queue="a")])})

    assert set(made) == {"exchanges", "queues", "bindings"}
    assert {each["vhost"] for each in (*made["exchanges"], *made["queues"], *made["bindings"])} == {"jobs"}
    assert loads(dumps(made).decode()) == made
    assert {(each["source"], each["routing_key"]) for each in made["bindings"]} >= {("ns", "order")}


def test_definitions_tell_bindings_to_exchanges_from_those_to_queues() -> None:
    made = definitions({"/": TOPOLOGY.infrastructure()})

    kinds = {each["destination_type"] for each in made["bindings"]}
    assert kinds == {"queue", "exchange"}
