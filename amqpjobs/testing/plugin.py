"""The pytest plugin: fixtures `harness` and, to be overridden, `amqpjobs_app`.

It needs no configuration and no plugin of its own kind: `harness` is opened inside the test itself, by whatever runs
async tests there (pytest-asyncio in both modes, anyio), so it is in the loop and in the task of the test.

It is part of every pytest run where amqpjobs is installed. So it imports nothing until a test asks for it.
"""

import functools
import inspect
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from amqpjobs.app import App
    from amqpjobs.testing.harness import Harness


@pytest.fixture
def amqpjobs_app() -> "App[Any]":
    """The app that `harness` runs: the one in `[tool.amqpjobs] apps`, or what a fixture of this name returns."""
    from amqpjobs.cli.common import load_app
    from amqpjobs.settings import load_settings

    targets = load_settings().apps
    if len(targets) != 1:
        raise pytest.UsageError(
            "Which app shall `harness` run? Write a fixture that returns it, as in\n\n"
            "  @pytest.fixture\n  def amqpjobs_app():\n      return app\n\n"
            "or name it in pyproject.toml, as the only one:\n\n"
            '  [tool.amqpjobs]\n  apps = ["services.email"]'
        )
    return load_app(targets[0])


@pytest.fixture
def harness(amqpjobs_app: "App[Any]") -> "Harness[Any]":
    """The app on an embedded broker in virtual time; open while an async test runs. See `amqpjobs.testing`."""
    from amqpjobs.testing.harness import Harness

    return Harness(amqpjobs_app)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Open the harness around the test function, before anybody makes a coroutine of it."""
    asked = cast("dict[str, object]", getattr(item, "funcargs", {})).get("harness")
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj) and _is_to_be_opened(asked):
        plain = item.obj
        item.obj = _inside(cast("Harness[Any]", asked), plain)
        try:
            return (yield)
        finally:
            item.obj = plain
    return (yield)


def _is_to_be_opened(asked: object) -> bool:
    """Not what somebody else calls a harness, and not one that a fixture of theirs has opened."""
    return type(asked).__module__ == "amqpjobs.testing.harness" and not cast("Harness[Any]", asked).is_open


def _inside(harness: "Harness[Any]", test: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(test)
    async def inside(*args: Any, **kwargs: Any) -> Any:
        async with harness:
            return await test(*args, **kwargs)

    return inside
