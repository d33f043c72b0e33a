"""Commands whose help looks rich. What shows it takes longer to load than most commands, and is loaded to show it."""

import gc
import sys
from collections.abc import Generator
from contextlib import contextmanager

import click


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


class Command(click.Command):
    """A command; its usage errors are plain text."""

    def get_help(self, ctx: click.Context) -> str:
        return _rich_help(self, ctx)


class Group(click.Group):
    """A group of commands."""

    command_class = Command

    def get_help(self, ctx: click.Context) -> str:
        return _rich_help(self, ctx)


def _rich_help(command: click.Command, ctx: click.Context) -> str:
    with loading("amqpjobs.cli.help"):
        from amqpjobs.cli.help import rich_help
    return rich_help(command, ctx)
