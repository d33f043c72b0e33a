"""The command line. Each command's module is imported when it is used, so that `--help` answers at once.

Exit codes: 0 ok, 1 failed, 2 usage, 3 import, 4 broker, 5 topology mismatch, 6 unclean shutdown, 7 nobody answers.
"""

import sys
from importlib import import_module
from typing import NoReturn

import click

from amqpjobs import __version__
from amqpjobs.cli.command import Command, Group, loading

#: Command, the module it lives in, and the line `--help` shows for it.
COMMANDS = {
    "dev": "Work while you write: reloads what changes, and brings a broker if there is none.",
    "run": "Work off the jobs of services.",
    "beat": "Enqueue the jobs of services' schedules.",
    "status": "Whether a worker or beat process is ready, for probes.",
    "send": "Enqueue one job.",
    "check": "Import services, verify the broker, and show what would run.",
    "contracts": "What job classes promise on the wire: write it down, and compare it.",
    "topology": "Exchanges, queues and bindings.",
    "broker": "A broker in memory, for development: behaves like RabbitMQ, needs no installation.",
    "schedule": "List, preview, trigger, pause, resume, add and remove schedules.",
    "dead": "List, show, requeue, edit, purge, export and import dead letters.",
}


class LazyGroup(Group):
    """A group that knows its commands by name and imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        if "--help" in sys.argv[1:2] or len(sys.argv) == 1:  # the list needs no more than the lines above
            return Command(name=cmd_name, short_help=COMMANDS[cmd_name])
        module = f"amqpjobs.cli.{cmd_name}"
        with loading(module):
            command: click.Command = import_module(module).command
        return command


@click.group(
    cls=LazyGroup,
    epilog="TARGET is a module with an `app` in it (services.email), a package whose submodule `app` has it, or "
    "module:attribute. Without one, [tool.amqpjobs] apps in pyproject.toml says which.",
)
@click.version_option(__version__, prog_name="amqpjobs")
def cli() -> None:
    """Typed jobs on RabbitMQ, and nothing beside it.

    Settings come from the environment (AMQPJOBS_URL, AMQPJOBS_NAMESPACE, …) or from [tool.amqpjobs] in
    pyproject.toml.
    """


def main() -> NoReturn:
    """The entry point: runs a command and turns what went wrong into words and an exit code."""
    try:
        result: object = cli(prog_name="amqpjobs", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.message)  # as `--help` prints it
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except Exception as error:
        from amqpjobs.cli.common import told_and_coded

        sys.exit(told_and_coded(error))
    sys.exit(result if isinstance(result, int) else 0)
