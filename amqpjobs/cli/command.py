"""Commands whose help looks rich. What shows it takes longer to load than most commands, and is loaded to show it."""

import click


class Command(click.Command):
    """A command; its usage errors are plain text."""

    def get_help(self, ctx: click.Context) -> str:
        from amqpjobs.cli.help import rich_help

        return rich_help(self, ctx)


class Group(click.Group):
    """A group of commands."""

    command_class = Command

    def get_help(self, ctx: click.Context) -> str:
        from amqpjobs.cli.help import rich_help

        return rich_help(self, ctx)
