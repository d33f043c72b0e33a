import pytest

from amqpjobs.definitions import definitions, together
from amqpjobs.devbroker.definitions import Definitions, import_definitions
from amqpjobs.devbroker.errors import RefusedError
from amqpjobs.topology import Plan, Queue, Subscription, Topology
from tests.unit.devbroker.rig import Rig


def ours() -> Definitions:
    topology = Topology("shop")
    app = topology.app([Queue("orders")], [Subscription(kind="order.paid", queue="orders")])
    return definitions({"/": together([topology.infrastructure(), Plan(exchanges=[topology.marker]), app])})


def test_what_is_imported_routes_and_delays() -> None:
    rig = Rig()
    import_definitions({"/": rig.vhost}, ours())

    route = Topology("shop").delayed(0.5, kind="order.paid")
    rig.publish("order.paid", "now", exchange="shop")
    rig.publish(route.key, "later", exchange=route.exchange)
    before = rig.bodies("shop.queue.orders")
    rig.timers.advance(0.5)

    assert (before, rig.bodies("shop.queue.orders")) == (["now"], ["now", "later"])


def test_what_is_there_has_to_be_the_same() -> None:
    rig = Rig()
    import_definitions({"/": rig.vhost}, ours())
    other = ours()
    other["queues"][0]["arguments"]["x-dead-letter-exchange"] = "other"

    import_definitions({"/": rig.vhost}, ours())
    with pytest.raises(RefusedError, match="x-dead-letter-exchange"):
        import_definitions({"/": rig.vhost}, other)


def test_a_vhost_that_is_not_there_is_refused() -> None:
    with pytest.raises(RefusedError, match="no vhost '/'"):
        import_definitions({}, ours())
