"""What a child is told when it starts: where it finds the app and its handlers again.

All of it comes from our own registry and our own modules, nothing from the broker. What a
fresh process could not find is a DefinitionError when the worker starts.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from types import ModuleType
from typing import cast

from amqpjobs.errors import DefinitionError
from amqpjobs.registry import Handler, Registry
from amqpjobs.worker.crossing import Head


def introduction(app: object, registry: Registry) -> Head:
    """What a child for process handlers is told: where its app and handlers are. Raises DefinitionError."""
    handlers = [each for each in registry.handlers if each.run_in == "process"]
    modules = _modules_of(handlers)
    place = place_of(app, modules)
    from multiprocessing import spawn  # for who has process handlers

    prepared = spawn.get_preparation_data("amqpjobs")
    names = [name for name in ("init_main_from_name", "init_main_from_path") if name in prepared]
    main: dict[str, object] = {name: prepared[name] for name in names}
    needs_main = "__main__" in (*modules, place.partition(":")[0])
    if needs_main and not main:
        raise DefinitionError(
            f"{handlers[0].name} shall run in a process, but it or its app lives in an interactive session, which a "
            "fresh process cannot import. Put it into a module."
        )
    return _told(app, place, handlers, main if needs_main else {}, quarantine=False)


def quarantine_introduction(app: object, registry: Registry) -> Head:
    """What a child for suspects is told: it may have to run any handler. Raises DefinitionError."""
    modules = _modules_of(registry.handlers)
    place = place_of(app, modules)
    # Nobody asked for processes here, so nobody was told what may not stand at the top of a script.
    if "__main__" in (*modules, place.partition(":")[0]):
        raise DefinitionError(
            f"App {getattr(app, 'name', app)!r} or a handler of it lives in the script itself, which is not run a "
            "second time unasked. Put both into a module that the script imports."
        )
    return _told(app, place, registry.handlers, {}, quarantine=True)


def _told(
    app: object, place: str, handlers: Sequence[Handler], main: Mapping[str, object], *, quarantine: bool
) -> Head:
    return {
        "say": "start",
        "parent": os.getpid(),
        "prepare": {"sys_argv": list(sys.argv), **main},
        "app": place,
        "modules": _modules_of(handlers),
        "handlers": {each.kind: each.name for each in handlers},
        "levels": _levels(),
        "quarantine": quarantine,
        "observed": getattr(app, "is_observed", False),
    }


def place_of(app: object, modules: Iterable[str]) -> str:
    """`module:attribute`, where a fresh process finds this very app again. Raises DefinitionError."""
    # A script itself only when nothing else has it, and not by the second name that multiprocessing gives it.
    loaded = sorted((name for name in sys.modules if name != "__mp_main__"), key="__main__".__eq__)
    for name in (*modules, *loaded):
        for attribute, value in _contents(sys.modules.get(name)):
            if value is app:
                return f"{name}:{attribute}"
    for name in (*modules, *loaded):
        for attribute, value in _contents(sys.modules.get(name)):
            for inner, kept in _contents(value) if _may_hold(value) else ():
                if kept is app:
                    return f"{name}:{attribute}.{inner}"
    raise DefinitionError(
        f"Handlers of app {getattr(app, 'name', app)!r} shall run in a process, and a fresh process would not find the "
        "app: it is no attribute of any module. Keep it in one, as in `app = App(…)` at the top of a module."
    )


_is_child_starting = False


@contextlib.contextmanager
def child_starting() -> Generator[None]:
    """While a child imports its app."""
    global _is_child_starting
    _is_child_starting = True
    try:
        yield
    finally:
        _is_child_starting = False


def refuse_while_a_child_starts() -> None:
    """A module that starts its worker when it is imported would start another one in each child."""
    if _is_child_starting:
        raise DefinitionError(
            "A process for handlers imports the module that starts the worker, and so would start one more. Put what "
            "starts it below `if __name__ == '__main__':`, or the app into a module of its own."
        )


def _modules_of(handlers: Iterable[Handler]) -> list[str]:
    return sorted({_module_of(each) for each in handlers})


def _module_of(handler: Handler) -> str:
    return str(getattr(handler.function, "__module__", None) or handler.job.__module__)


def _contents(holder: object) -> list[tuple[str, object]]:
    # Not asked of the object itself: some are made when they are first looked at, and may fail (Django's settings).
    try:
        found = object.__getattribute__(holder, "__dict__")
    except AttributeError:
        return []
    return list(cast("Mapping[str, object]", found).items())


def _may_hold(value: object) -> bool:
    return not issubclass(type(value), ModuleType)


def _levels() -> dict[str, int]:
    """The levels somebody has set, so that a child does not send lines nobody wants."""
    known = logging.Logger.manager.loggerDict
    loggers = [logging.getLogger(), *(each for each in known.values() if isinstance(each, logging.Logger))]
    return {("" if each is logging.getLogger() else each.name): each.level for each in loggers if each.level}
