"""`amqpjobs dead`: what waits for a person, and the way back."""

import click

from amqpjobs.cli.command import Group
from amqpjobs.cli.dead.edit import edit
from amqpjobs.cli.dead.ls import ls
from amqpjobs.cli.dead.purge import purge
from amqpjobs.cli.dead.requeue import requeue
from amqpjobs.cli.dead.show import show
from amqpjobs.cli.dead.transfer import export, import_


@click.group("dead", cls=Group, short_help="List, show, requeue, edit, purge, export and import dead letters.")
def command() -> None:
    """Dead letters: jobs that ended without success, kept with their reason until you decide.

    Two other places are looked into with the same commands: `--place unroutable` (delayed jobs that no queue
    wanted when they were due) and `--place parked` (jobs that wait for a first worker of their kind).

    Every command reads the whole queue once, since a queue has no index: some seconds for 10,000. Looking
    changes nothing, not even the order. What is moved is confirmed in its new place before it leaves the old
    one: whatever kills the command, nothing is lost, and it may be run again. Run one at a time on a queue.

    \b
      amqpjobs dead ls services.email --group
      amqpjobs dead show services.email 0197a3e2-7c51-7b1f-9d3e-0f5a6b7c8d9e
      amqpjobs dead requeue services.email --exception ConnectionError --newer-than 2h
    """


for each in (ls, show, requeue, purge, edit, export, import_):
    command.add_command(each)
