"""`amqpjobs schedule`: how schedules are, what they would do, and changing them while beats run."""

import click

from amqpjobs.cli.command import Group
from amqpjobs.cli.schedule.add import add
from amqpjobs.cli.schedule.change import pause, remove, resume, trigger
from amqpjobs.cli.schedule.ls import ls
from amqpjobs.cli.schedule.next import next_


@click.group("schedule", cls=Group, short_help="List, preview, trigger, pause, resume, add and remove schedules.")
def command() -> None:
    """Schedules: those that the code declares, and those that were added at runtime and are kept by the broker.

    The beat that leads does what it is told, and says so. If none answers, what you asked waits on the broker for
    the next one that leads; only a trigger is dropped after an hour. A pause outlives beats and deployments.

    \b
      amqpjobs schedule ls services.reports
      amqpjobs schedule next services.reports report -n 3 --timezone Europe/Berlin
      amqpjobs schedule pause services.reports report
      amqpjobs schedule add services.reports weekly --cron '0 9 * * mon' report.send '{"to": "ada@example.org"}'
    """


for each in (ls, next_, trigger, pause, resume, add, remove):
    command.add_command(each)
