"""A Celery worker on the project's own broker, with all that it does by default: mingle, gossip, events, control."""

import time
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

from tests.support.broker import PATIENCE
from tests.support.celery_app import CeleryWorker, make_app
from tests.support.embedded import Embedded

#: Without types of their own.
reset_pools: Any = import_module("kombu.pools").reset
REVOKED: Any = import_module("celery.exceptions").TaskRevokedError


@pytest.fixture(params=["3.10", "4.0", "4.3"])
def app(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Whoever sends tasks; a worker runs them."""
    with Embedded(str(request.param)) as broker, CeleryWorker(broker.url), make_app(broker.url) as app:
        yield app
        # What Celery leaves open: where results come in, and the connections of its pools.
        app.backend.result_consumer.stop()
        reset_pools()


def test_a_celery_worker_runs_tasks_late_and_again_and_is_controlled(app: Any) -> None:
    assert app.send_task("add", (1, 2)).get(timeout=2 * PATIENCE) == 3

    assert app.send_task("try_twice").get(timeout=PATIENCE) == 1
    with pytest.raises(ValueError, match="not today"):
        app.send_task("fail").get(timeout=PATIENCE)

    started = time.monotonic()
    assert app.send_task("add", (2, 2), countdown=0.5).get(timeout=PATIENCE) == 4
    assert time.monotonic() - started >= 0.5

    sums = [app.send_task("add", (number, number)) for number in range(50)]
    assert [each.get(timeout=PATIENCE) for each in sums] == [2 * number for number in range(50)]

    assert asked(app, "ping") == {"ok": "pong"}

    hanging = app.send_task("hang")
    until_runs(app, hanging)
    hanging.revoke(terminate=True)
    with pytest.raises(REVOKED):
        hanging.get(timeout=PATIENCE)


def asked(app: Any, command: str) -> Any:
    """What the one worker answers."""
    (answer,) = app.control.broadcast(command, reply=True, limit=1, timeout=PATIENCE)
    (said,) = answer.values()
    return said


def until_runs(app: Any, task: Any) -> None:
    """The worker says that one of its pool's processes has it."""
    deadline = time.monotonic() + PATIENCE
    while task.id not in [each["id"] for each in asked(app, "active")]:
        assert time.monotonic() < deadline
