"""The embedded broker is told the same random things as RabbitMQ, and must say the same."""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.conftest import announce
from tests.support.broker import PATIENCE
from tests.support.embedded import Embedded
from tests.support.length import is_full
from tests.support.machine import Machine
from tests.support.rabbitmq import broker_version
from tests.support.twins import DifferenceError, Twins

EXAMPLES = 1_000 if is_full() else 80
STEPS = 40


def test_the_embedded_broker_says_what_rabbitmq_says(
    url: str, unique: Callable[[], str], pytestconfig: pytest.Config
) -> None:
    from urllib.parse import urlsplit

    place = urlsplit(url)
    version = ".".join(broker_version(place.hostname, place.port).split(".")[:2])
    with Embedded(version) as embedded:

        class Bound(Machine):
            twins = Twins(url, embedded.url, within=PATIENCE, patience=5)
            prefix = unique()

        run_state_machine_as_test(
            Bound,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                derandomize=not is_full(),
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
            ),
        )
        announce(pytestconfig, f"{sum(Bound.made.values())} steps: {Bound.made}")
