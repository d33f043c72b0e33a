"""What every test may ask for: a broker, its URL, names that nobody else uses, brokers to break.

The broker is a private node (`tests.support.rabbitmq`), started when a test first asks for it and shared by
the run. With AMQPJOBS_TEST_URL set, tests that only need `url` use that broker instead; tests that stop
and break brokers still start their own. Where no RabbitMQ is installed these tests fail, and say what to
install: a suite that skips them would prove nothing.

`--broker embedded:4.0` gives those that only need `url` the project's own broker instead, which behaves like
that version (3.10, 4.0 or 4.3; plain `embedded` is 4.0): the same tests, with the same assertions.

`--no-fast-lane` lets everything go through the client library, as AMQPJOBS_FAST_LANE=false does.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from itertools import count
from typing import Protocol
from urllib.parse import urlsplit

import hypothesis
import pytest
from _pytest.capture import CaptureManager
from hypothesis import HealthCheck

from tests.support.embedded import Embedded
from tests.support.rabbitmq import Cluster, Node, broker_version

TEST_URL = "AMQPJOBS_TEST_URL"
RABBITMQ, EMBEDDED = "rabbitmq", "embedded"


class MakeNode(Protocol):
    """Start a node of one's own; see `Node` for the arguments."""

    def __call__(self, *, conf: str = ..., advanced: str = ...) -> Node: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="tell the stories at full length (see tests.support.length)")
    parser.addoption("--soak", type=float, metavar="MINUTES", help="soak for so long, and not for some seconds")
    parser.addoption("--broker", default=RABBITMQ, help="rabbitmq, or embedded[:3.10|4.0|4.3] (see tests/conftest.py)")

    parser.addoption("--no-fast-lane", action="store_true", help="let everything go through the client library")


def pytest_configure(config: pytest.Config) -> None:
    # A busy machine is no failure.
    hypothesis.settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    hypothesis.settings.load_profile("any machine")
    # Settings of whoever runs the tests must not change what they show.
    for name in [name for name in os.environ if name.startswith("AMQPJOBS_") and name != TEST_URL]:
        del os.environ[name]
    if config.getoption("--no-fast-lane"):
        os.environ["AMQPJOBS_FAST_LANE"] = "false"


@pytest.fixture(scope="session")
def rabbitmq(pytestconfig: pytest.Config) -> Iterator[Node]:
    """The private node of the whole run. Do not stop it: `make_node` gives you one that you may."""
    with Node() as node:
        announce(pytestconfig, f"RabbitMQ {node.version}, a private node on port {node.port}")
        yield node


@pytest.fixture(scope="session")
def embedded(pytestconfig: pytest.Config) -> Iterator[Embedded]:
    """The project's own broker, in the version that `--broker` names."""
    broker = str(pytestconfig.getoption("--broker"))
    name, _, version = broker.partition(":")
    if name != EMBEDDED:
        raise pytest.UsageError(f"--broker is {broker!r}. Choose rabbitmq, or embedded[:3.10|4.0|4.3].")
    with Embedded(version or "4.0") as running:
        announce(pytestconfig, f"The embedded broker, behaving like RabbitMQ {running.version}")
        yield running


@pytest.fixture(scope="session")
def url(request: pytest.FixtureRequest) -> str:
    """Where a broker answers: the embedded one if asked for, or AMQPJOBS_TEST_URL, or the run's private node."""
    if request.config.getoption("--broker") != RABBITMQ:
        embedded: Embedded = request.getfixturevalue("embedded")
        return embedded.url
    outside = os.environ.get(TEST_URL)
    if outside is None:
        node: Node = request.getfixturevalue("rabbitmq")
        return node.url
    place = urlsplit(outside)
    host, port = place.hostname or "localhost", place.port or 5672
    announce(request.config, f"RabbitMQ {broker_version(host, port)} on {host}:{port}, from {TEST_URL}")
    return outside


@pytest.fixture(scope="session")
def unique() -> Callable[[], str]:
    """Makes names such as `t3f9a-1`, of letters, digits and dashes, new in each call and each run."""
    run, numbers = f"t{secrets.token_hex(3)}", count(1)
    return lambda: f"{run}-{next(numbers)}"


@pytest.fixture
def make_node() -> Iterator[MakeNode]:
    """Starts nodes for one test, which may stop, kill, freeze and configure them; closes them after it."""
    with ExitStack() as nodes:

        def make(*, conf: str = "", advanced: str = "[].") -> Node:
            return nodes.enter_context(Node(conf=conf, advanced=advanced))

        yield make


@pytest.fixture
def make_cluster() -> Iterator[Callable[[], Cluster]]:
    """Starts clusters of three nodes for one test, in 10 to 30 s; closes them after it."""
    with ExitStack() as clusters:
        yield lambda: clusters.enter_context(Cluster())


def announce(config: pytest.Config, line: str) -> None:
    """One line on the terminal, past pytest's capture."""
    capture: object = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if isinstance(capture, CaptureManager) else nullcontext():
        config.get_terminal_writer().line(f"\n{line}")
