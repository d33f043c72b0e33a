"""What `import amqpjobs` offers: each name once, at home somewhere, documented, and loaded only when used."""

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import cast

import pytest

import amqpjobs

TREE = ast.parse(Path(amqpjobs.__file__).read_text(encoding="utf-8"))


def lazy_homes() -> dict[str, str]:
    """Each name, and the module that it is loaded from."""
    for node in TREE.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES":
            homes = cast("dict[str, list[str]]", ast.literal_eval(node.value))
            return {name: home for home, names in homes.items() for name in names}
    raise AssertionError("amqpjobs/__init__.py has no table _HOMES.")


def homes_for_checkers() -> dict[str, str]:
    """Each name, and the module that type checkers find it in."""
    blocks = [node for node in TREE.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {
        alias.asname or alias.name: (node.module or "").removeprefix("amqpjobs.")
        for node in imports
        for alias in node.names
    }


def own_members(public: type) -> Iterator[tuple[str, object]]:
    for name, member in vars(public).items():
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, classmethod)):
            yield name, cast("object", getattr(public, name))


def test_every_name_has_a_home_and_every_home_its_names() -> None:
    assert sorted(amqpjobs.__all__) == sorted(lazy_homes())


def test_no_name_is_there_twice() -> None:
    assert len(amqpjobs.__all__) == len(set(amqpjobs.__all__))


def test_type_checkers_find_what_the_run_time_finds() -> None:
    assert homes_for_checkers() == lazy_homes()


@pytest.mark.parametrize("name", amqpjobs.__all__)
def test_a_name_can_be_imported_from_the_top_and_from_its_home(name: str) -> None:
    home = import_module(f"amqpjobs.{lazy_homes()[name]}")

    assert getattr(amqpjobs, name) is getattr(home, name)


@pytest.mark.parametrize("name", amqpjobs.__all__)
def test_a_name_is_documented(name: str) -> None:
    public = cast("object", getattr(amqpjobs, name))

    own = vars(public).get("__doc__") if isinstance(public, type) else inspect.getdoc(public)

    assert own


@pytest.mark.parametrize("name", ["App", "JobContext", "RetryPolicy", "Worker"])
def test_what_a_class_can_do_is_documented(name: str) -> None:
    public = cast("type", getattr(amqpjobs, name))

    silent = [member for member, function in own_members(public) if not inspect.getdoc(function)]

    assert silent == []


def test_the_names_are_shown_by_dir() -> None:
    assert set(amqpjobs.__all__) <= set(dir(amqpjobs))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Celery'"):
        _ = cast("object", amqpjobs.Celery)


def test_every_error_is_one_of_ours() -> None:
    errors = [cast("object", getattr(amqpjobs, name)) for name in amqpjobs.__all__ if name.endswith("Error")]

    assert all(isinstance(each, type) and issubclass(each, amqpjobs.AmqpJobsError) for each in errors)


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import sys, amqpjobs; print(*{'aio_pika', 'aiormq', 'pydantic', 'asyncio'} & set(sys.modules))"

    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert ran.stdout.split() == []


@pytest.mark.parametrize("name", ["errors.AmqpJobsError", "retry.exponential", "outcome.Retry"])
def test_a_light_name_does_not_load_the_client_library(name: str) -> None:
    script = f"import sys, amqpjobs; amqpjobs.{name.split('.')[1]}; print('aio_pika' in sys.modules)"

    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert ran.stdout.strip() == "False"
