"""How a worker tells a child where its app is. The processes themselves are in the scenarios."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from amqpjobs.app import App
from amqpjobs.errors import DefinitionError
from amqpjobs.job import Job
from amqpjobs.worker.introduction import (
    child_starting,
    introduction,
    place_of,
    quarantine_introduction,
    refuse_while_a_child_starts,
)


class Square(Job[int], kind="square"):
    number: int = 0


def square(job: Square) -> int:
    return job.number**2


class Holder:
    app = App("held")


app = App("here")
every = App("every")
every.handler(Square)(square)


def test_an_app_is_found_where_its_handlers_are() -> None:
    assert place_of(app, [__name__]) == f"{__name__}:app"


def test_an_app_is_found_in_any_module(monkeypatch: pytest.MonkeyPatch) -> None:
    home, mine = ModuleType("elsewhere"), App("there")
    monkeypatch.setitem(sys.modules, "elsewhere", home)
    monkeypatch.setattr(home, "service", mine, raising=False)

    assert place_of(mine, [__name__]) == "elsewhere:service"


def test_an_app_is_found_within_what_a_module_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    home, mine = ModuleType("elsewhere"), App("there")
    monkeypatch.setitem(sys.modules, "elsewhere", home)
    monkeypatch.setattr(home, "kept", SimpleNamespace(inner=mine), raising=False)

    assert place_of(Holder.app, [__name__]) == f"{__name__}:Holder.app"
    assert place_of(mine, [__name__]) == "elsewhere:kept.inner"


class Lazy:
    """As a framework's settings are: whoever looks at it makes it, which fails."""

    def __getattribute__(self, name: str) -> object:
        raise RuntimeError(f"not configured, and {name} was asked for")


def test_what_cannot_be_looked_at_does_not_end_the_search_for_an_app(monkeypatch: pytest.MonkeyPatch) -> None:
    home, mine = ModuleType("a_framework"), App("there")
    monkeypatch.setitem(sys.modules, "a_framework", home)
    monkeypatch.setattr(home, "settings", Lazy(), raising=False)
    monkeypatch.setattr(home, "kept", SimpleNamespace(inner=mine), raising=False)

    assert place_of(mine, [__name__]) == "a_framework:kept.inner"


def test_an_app_that_no_module_has_is_a_definition_error() -> None:
    with pytest.raises(DefinitionError, match="no attribute of any module"):
        place_of(App("lost"), [__name__])


def test_a_child_is_told_modules_and_kinds_of_its_own_handlers_only() -> None:
    app.handler(Square, run_in="process")(square)

    told = introduction(app, app.registry)

    assert told["app"] == f"{__name__}:app"
    assert told["modules"] == [__name__]
    assert told["handlers"] == {"square": f"{__name__}.square"}
    assert set(told["prepare"]) == {"sys_argv"}  # the script that runs us is none of its business


def test_no_worker_starts_while_a_child_imports_its_app() -> None:
    refuse_while_a_child_starts()

    with child_starting(), pytest.raises(DefinitionError, match="__main__"):
        refuse_while_a_child_starts()

    refuse_while_a_child_starts()


def test_a_child_for_suspects_is_told_all_handlers() -> None:
    told = quarantine_introduction(every, every.registry)

    assert told["quarantine"] is True
    assert told["app"] == f"{__name__}:every"
    assert told["handlers"] == {"square": f"{__name__}.square"}


def test_a_script_is_not_run_a_second_time_for_suspects(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = App("script")
    monkeypatch.setattr(sys.modules["__main__"], "mine", mine, raising=False)

    with pytest.raises(DefinitionError, match="into a module that the script imports"):
        quarantine_introduction(mine, mine.registry)
