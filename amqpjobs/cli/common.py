"""What commands share: finding apps, exit codes, words for errors."""

import asyncio
import os
import sys
import traceback
from collections.abc import Coroutine, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, TypeGuard, TypeVar

import click

from amqpjobs.app import App
from amqpjobs.errors import (
    AmqpJobsError,
    BrokerError,
    BrokerUnavailableError,
    DefinitionError,
    EnqueueTimeoutError,
    SettingsError,
    TopologyMismatchError,
)
from amqpjobs.job import Job, hint, options_of
from amqpjobs.logs import printable, quiet_libraries
from amqpjobs.settings import DEFAULT_URL, load_settings, masked

T = TypeVar("T")
Contract = tuple[App[Any], type[Job[Any]]]

_HERE = os.path.dirname(__file__)

FAILED, USAGE, IMPORT, BROKER, TOPOLOGY, UNCLEAN = 1, 2, 3, 4, 5, 6

NO_BROKER = """\
Nobody said where the broker is, so the default address was tried. For development, without any installation:
  amqpjobs dev TARGET                                      works, on a broker of its own where there is none
  amqpjobs broker                                          that broker alone, for several terminals
To get a RabbitMQ:
  docker run -d -p 5672:5672 rabbitmq:4                    with Docker
  apt-get install rabbitmq-server                          on Debian and Ubuntu
or say where yours is:
  export AMQPJOBS_URL=amqp://user:password@host:5672/vhost"""


class TargetError(Exception):
    """A TARGET could not be imported, or has no app."""


def load_apps(targets: Sequence[str]) -> list[App[Any]]:
    """The apps of these TARGETs, or of the settings' `apps` when none is named."""
    names = names_of(targets)
    find_modules_here()
    return [load_app(name) for name in names]


def names_of(targets: Sequence[str]) -> list[str]:
    """Each of these TARGETs once, or of the settings' `apps` when none is named. Raises UsageError."""
    names = list(targets) or load_settings().apps
    if not names:
        raise click.UsageError(
            "Name a TARGET, as in `services.email`, or list yours in pyproject.toml:\n\n"
            '  [tool.amqpjobs]\n  apps = ["services.email"]'
        )
    return list(dict.fromkeys(names))


def load_contracts(targets: Sequence[str]) -> list[Contract]:
    """All job classes of these TARGETs, each with an app to enqueue it by.

    A TARGET may also be a module with job classes and no app in it.
    """
    if len(targets) == 1 and ":" not in targets[0]:
        find_modules_here()
        found: list[object] = list(vars(_imported(targets[0], targets[0])).values())
        jobs = [each for each in found if _is_job_class(each)]
        if jobs and not any(_is_app(each) for each in found):
            return [(App("send"), job) for job in jobs]
    return [(app, handler.job) for app in load_apps(targets) for handler in app.registry.handlers]


def contract_of(kind: str, contracts: Sequence[Contract], otherwise: str = "") -> Contract:
    """The one that answers to this kind. Raises UsageError, which ends with what can be done otherwise."""
    for app, job in contracts:
        if kind in (options_of(job).kind, *options_of(job).aliases):
            return app, job
    known = hint(kind, [options_of(job).kind for _, job in contracts])
    raise click.UsageError(f"No job class of kind {kind!r}.{known}{otherwise}")


def load_app(target: str) -> App[Any]:
    """The app of one TARGET. Raises TargetError, or what the import of user code raised."""
    module_name, _, attribute = target.partition(":")
    module = _imported(module_name, target)
    if not attribute and not _is_app(getattr(module, "app", None)) and _exists(f"{module_name}.app"):
        module = _imported(f"{module_name}.app", target)
    found: object = module
    for part in (attribute or "app").split("."):
        found = getattr(found, part, None)
    if _is_app(found):
        return found
    where = f"{module.__name__}:{attribute or 'app'}"
    raise TargetError(
        f"{where} is {'missing' if found is None else f'a {type(found).__name__}, and no App'}. A TARGET is a module "
        'that has `app = App("…")` in it, or in its submodule `app`, or module:attribute.'
    )


def _is_job_class(found: object) -> TypeGuard[type[Job[Any]]]:
    return isinstance(found, type) and "__amqpjobs__" in vars(found)  # Job[Receipt] itself has no options


def find_modules_here() -> None:
    """As `python -m` does."""
    folder = os.path.abspath(os.curdir)
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _is_app(found: object) -> TypeGuard[App[Any]]:
    return isinstance(found, App)


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine, on uvloop where it is installed."""
    quiet_libraries()
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def told_and_coded(error: Exception) -> int:
    """Say on stderr what went wrong and what to do; the exit code."""
    if not isinstance(error, AmqpJobsError | TargetError):
        _show_traceback(error)
        return FAILED
    _complain(str(error))
    if _is_broker_away(error) and not load_settings().names_broker:
        _print(NO_BROKER)
    match error:
        case TargetError() | DefinitionError():
            return IMPORT
        case SettingsError():
            return USAGE
        case TopologyMismatchError():
            return TOPOLOGY
        case BrokerError() | EnqueueTimeoutError():
            return BROKER
        case _:
            return FAILED


def _is_broker_away(error: Exception) -> bool:
    away = isinstance(error, BrokerUnavailableError | EnqueueTimeoutError)
    return away and masked(DEFAULT_URL) in str(error)


def _complain(text: str) -> None:
    from rich.text import Text  # see _print

    _print(Text.assemble(("Error: ", "bold red"), "\n".join(printable(line) for line in text.splitlines())))


def _imported(name: str, target: str) -> ModuleType:
    try:
        return import_module(name)
    except DefinitionError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise TargetError(
                f"There is no module {error.name!r} (for TARGET {target!r}), seen from {os.curdir!r} "
                f"= {os.path.abspath(os.curdir)}. Run this where `python -c 'import {name}'` works."
            ) from None
        _show_traceback(error)
        raise TargetError(f"TARGET {target!r} could not be imported: {error}") from None
    except Exception as error:
        _show_traceback(error)
        raise TargetError(f"TARGET {target!r} could not be imported: {type(error).__name__}: {error}") from None


def _exists(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def _show_traceback(error: BaseException) -> None:
    """The user's own part of a traceback: ours and the import machinery left out."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if "importlib" not in frame.filename and _HERE not in frame.filename]
    lines = traceback.format_list(theirs) + traceback.format_exception_only(error)
    _print("".join(lines).rstrip())


def _print(words: object) -> None:
    # Loaded by who has something to say: a worker that starts well does not wait for it.
    from amqpjobs.cli.console import err

    err.print(words, markup=False)
