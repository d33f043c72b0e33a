"""Test jobs on an embedded broker, in a time that moves when the test says so.

    async with Harness(app) as harness:
        await app.enqueue(Flaky(fail_times=1))
        await harness.drain()
        assert harness.outcomes(Flaky) == [Retrying(delay=2.0), Completed()]

With pytest nothing is to be set up: a fixture `amqpjobs_app` returns the app, and tests ask for `harness`.

Names are loaded when they are first used: the pytest plugin is part of every run, also of those without jobs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amqpjobs.testing.clock import FakeClock
    from amqpjobs.testing.harness import Harness

_HOMES = {"FakeClock": "clock", "Harness": "harness"}

__all__ = ["FakeClock", "Harness"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
