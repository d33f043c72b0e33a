"""The embedded broker is told the same random things as RabbitMQ, and must say the same; see docs/embedded-broker.md.

It behaves like the version of the node that comes first on PATH. The runs are the same every time; with `--full`
they are longer, and new every time: hypothesis prints how to have a failing one again.
"""

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import FlakyFailure
from hypothesis.stateful import run_state_machine_as_test

from tests.conftest import announce
from tests.support.broker import PATIENCE
from tests.support.embedded import Embedded
from tests.support.length import is_full
from tests.support.machine import Machine
from tests.support.planted import FAULTS
from tests.support.rabbitmq import broker_version
from tests.support.twins import DifferenceError, Twins

EXAMPLES, STEPS = 1_000 if is_full() else 40, 40
#: Making an example smaller takes minutes, since each difference must last.
PHASES = (Phase.generate, Phase.shrink) if is_full() else (Phase.generate,)
#: Seconds that a difference must last, more than a RabbitMQ stands still that waits for its disk; what is planted does
#: not go away.
STAYS, STAYS_PLANTED = 30.0, 2.0

MakeMachine = Callable[..., type[Machine]]


@pytest.fixture
def version(url: str) -> str:
    """Such as `4.0`."""
    place = urlsplit(url)
    return ".".join(broker_version(place.hostname or "", place.port or 5672).split(".")[:2])


@contextmanager
def machine_of(url: str, embedded: Embedded, prefix: str, *, stays: float) -> Generator[type[Machine]]:
    class Bound(Machine):
        pass

    Bound.twins = Twins(url, embedded.url, within=PATIENCE, patience=stays)
    Bound.prefix, Bound.made = prefix, Counter()
    try:
        yield Bound
    finally:
        Bound.twins.leave()


def run(machine: type[Machine], examples: int, *phases: Phase) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            derandomize=not is_full(),
            database=None,
            deadline=None,
            phases=phases,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
        ),
    )


def test_random_operations_have_the_same_answers_and_deliveries(
    url: str, version: str, unique: Callable[[], str], pytestconfig: pytest.Config
) -> None:
    with Embedded(version) as embedded, machine_of(url, embedded, unique(), stays=STAYS) as machine:
        try:
            run(machine, EXAMPLES, *PHASES)
        finally:
            announce(pytestconfig, summary(machine.made, version))


def summary(made: Counter[str], version: str) -> str:
    lines = [f"{made.total()} steps on RabbitMQ {version} and on the embedded broker:"]
    return "\n".join([*lines, *(f"{number:8} {what}" for what, number in made.most_common())])


@pytest.mark.parametrize("is_used", [False, True])
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_queue_that_nobody_uses_expires_alike(
    url: str, version: str, unique: Callable[[], str], kind: str, is_used: bool
) -> None:
    with Embedded(version) as embedded, machine_of(url, embedded, unique(), stays=STAYS) as machine:
        one = machine()
        try:
            one.expire_queue(kind, held=is_used, consumed=is_used)
        finally:
            one.teardown()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_mistake_is_found(url: str, version: str, unique: Callable[[], str], fault: str) -> None:
    with (
        Embedded(version, fault=fault) as embedded,
        machine_of(url, embedded, unique(), stays=STAYS_PLANTED) as machine,
        pytest.raises((DifferenceError, FlakyFailure)) as found,
    ):
        run(machine, EXAMPLES, Phase.generate)

    if isinstance(found.value, FlakyFailure):  # it was found once, and not again
        assert found.value.subgroup(DifferenceError) is not None
