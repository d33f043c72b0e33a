"""Which arguments a queue may have, in RabbitMQ's words."""

import pytest

from amqpjobs.devbroker.errors import RefusedError
from amqpjobs.devbroker.queue import Attributes
from tests.unit.devbroker.rig import VERSIONS, Rig, Value

REFUSED: list[tuple[dict[str, Value], str]] = [
    ({"x_message_ttl": -1}, "'x-message-ttl' for queue 'q' in vhost '/': {value_negative,-1}"),
    ({"x_message_ttl": "5"}, "'x-message-ttl' for queue 'q' in vhost '/': \"expected integer, got longstr\""),
    ({"x_message_ttl": 315_360_000_001}, "{value_too_large,315360000001}"),
    ({"x_expires": 0}, "'x-expires' for queue 'q' in vhost '/': {value_zero,0}"),
    ({"x_dead_letter_routing_key": "k"}, "routing_key_but_no_dlx_defined"),
    ({"x_max_length": -2}, "{value_negative,-2}"),
    ({"x_max_priority": 256}, "{max_value_exceeded,256}"),
    ({"x_overflow": "spill"}, "invalid_overflow"),
    ({"x_queue_type": "heap"}, "\"unsupported queue type 'heap'\""),
    ({"x_single_active_consumer": "true"}, "{unacceptable_type,longstr}"),
    ({"x_queue_type": "quorum", "x_dead_letter_strategy": "always"}, "invalid_dlx_strategy"),
    ({"x_queue_type": "quorum", "x_max_priority": 3}, "of queue type rabbit_quorum_queue"),
    ({"x_delivery_limit": 3}, "'x-delivery-limit' for queue 'q' in vhost '/' of queue type rabbit_classic_queue"),
    ({"x_max_age": "1D"}, "of queue type rabbit_classic_queue"),
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_a_wrong_argument_is_refused(version: str, arguments: dict[str, Value], words: str) -> None:
    with pytest.raises(RefusedError) as caught:
        Rig(version).declare(arguments)

    assert caught.value.text.startswith("PRECONDITION_FAILED - invalid arg ")
    assert words in caught.value.text


BY_VERSION: list[tuple[dict[str, Value], set[str]]] = [
    ({"x_queue_mode": "hasty"}, {"4.3"}),
    ({"x_queue_version": 1}, {"3.10", "4.0"}),
    ({"x_queue_leader_locator": "balanced"}, {"4.0", "4.3"}),
    ({"x_queue_type": "quorum", "x_consumer_timeout": -1}, {"3.10", "4.0"}),
    ({"x_unknown": 1}, {"3.10", "4.0", "4.3"}),
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("arguments", "versions"), BY_VERSION)
def test_some_arguments_depend_on_the_version(version: str, arguments: dict[str, Value], versions: set[str]) -> None:
    rig = Rig(version)
    if version in versions:
        rig.declare(arguments)
    else:
        with pytest.raises(RefusedError, match="invalid arg"):
            rig.declare(arguments)


@pytest.mark.parametrize(("version", "is_same"), [("3.10", True), ("4.0", True), ("4.3", False)])
def test_another_consumer_timeout_is_another_queue_since_4_3(version: str, is_same: bool) -> None:
    rig = Rig(version)
    rig.quorum(x_consumer_timeout=1000)
    if is_same:
        rig.quorum(x_consumer_timeout=2000)
    else:
        with pytest.raises(RefusedError, match="inequivalent arg 'x-consumer-timeout'"):
            rig.quorum(x_consumer_timeout=2000)


@pytest.mark.parametrize(
    ("attributes", "property_"),
    [
        (Attributes(is_auto_delete=True), "auto-delete"),
        (Attributes(is_durable=False), "non-durable"),
        (Attributes(owner=object()), "exclusive-owner"),
    ],
)
def test_a_quorum_queue_is_durable_and_everybodys(attributes: Attributes, property_: str) -> None:
    with pytest.raises(RefusedError, match=f"invalid property '{property_}' for queue 'q' in vhost '/'"):
        Rig().queue("q", attributes, x_queue_type="quorum")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x_queue_type": "quorum", "x_delayed_retry_type": "all"}, "x-delayed"),
    ],
)
def test_what_it_does_not_do_it_refuses_loudly(arguments: dict[str, Value], words: str) -> None:
    with pytest.raises(RefusedError, match=f"NOT_IMPLEMENTED - .*{words}"):
        Rig("4.3").declare(arguments)
