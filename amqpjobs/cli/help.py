"""The help of commands, shown by rich-click."""

from typing import Any

import click
from rich_click import RichCommand, RichContext, RichGroup


class _Listed(RichGroup):
    """Its commands in the order in which they were given."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def rich_help(command: click.Command, ctx: click.Context) -> str:
    """What `--help` says of a command, in colour on a terminal."""
    ctx.color = True  # where colours are unwanted rich has left them out: click need not ask again
    shown = _shown(command, ctx)
    return shown.get_help(RichContext(shown, parent=ctx.parent, info_name=ctx.info_name))


def _shown(command: click.Command, ctx: click.Context) -> RichCommand:
    parts: dict[str, Any] = {
        "name": command.name,
        "params": command.params,
        "help": command.help,
        "epilog": command.epilog,
        "short_help": command.short_help,
    }
    if not isinstance(command, click.Group):
        return RichCommand(**parts)
    commands = {name: command.get_command(ctx, name) for name in command.list_commands(ctx)}
    return _Listed(commands={name: each for name, each in commands.items() if each is not None}, **parts)
