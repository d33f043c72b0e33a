"""What all commands have in common: how their help looks, and how a module is loaded.

Help is shown by click alone: in rich's frames it took as long to load as all else that a command does.
"""

import gc
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import click

#: Columns of help, in a terminal that is as wide.
WIDEST = 100


@contextmanager
def loading(module: str) -> Generator[None]:
    """While a module is loaded: what it makes stays, and to look it through for garbage takes a sixth of the time.

    Nor is it looked through later. Once a module, so that what a long process makes in between is not kept for ever.
    """
    if module in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class _Formatter(click.HelpFormatter):
    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        super().write_usage(prog, args, click.style("Usage: ", bold=True) if prefix is None else prefix)

    def write_heading(self, heading: str) -> None:
        super().write_heading(click.style(heading, bold=True))


class _Context(click.Context):
    formatter_class = _Formatter

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"max_content_width": WIDEST, **kwargs})


class Command(click.Command):
    """A command of ours."""

    context_class = _Context


class Group(click.Group):
    """A group of commands, listed in the order in which they were given."""

    context_class = _Context
    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)
