"""`amqpjobs topology permissions`: what a RabbitMQ user of a role may do, and no more."""

import shlex
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

import click
from rich_click import RichCommand

from amqpjobs.cli.common import load_apps, load_contracts
from amqpjobs.cli.session import vhost_of
from amqpjobs.codec import dumps
from amqpjobs.job import options_of
from amqpjobs.permissions import NOTHING, Permissions, Role, pattern, producer_permissions, worker_permissions
from amqpjobs.settings import Settings, load_settings
from amqpjobs.topology import Topology

#: By vhost and user: setting permissions replaces those that were.
Needed = dict[tuple[str, str], Permissions]


@click.command("permissions", cls=RichCommand)
@click.argument("role", type=click.Choice([role.value for role in Role]))
@click.argument("targets", nargs=-1, metavar="TARGET…")
@click.option("--user", metavar="NAME", help="The RabbitMQ user. [default: the one in AMQPJOBS_URL]")
@click.option(
    "--declare/--no-declare",
    "declares",
    default=None,
    help="With AMQPJOBS_DECLARE on or off. [default: as it is set here]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the three regexes as JSON.")
def permissions(role: str, targets: tuple[str, ...], user: str | None, declares: bool | None, as_json: bool) -> None:
    """Print the RabbitMQ permissions that a process of services needs, as a command that sets them.

    A producer enqueues jobs of the TARGETs, which may be contracts. A worker works on their queues, and enqueues
    too. With declaring on, it is all that is needed on a vhost where nothing was declared yet; with
    AMQPJOBS_DECLARE=false nothing may be configured, and a producer reads nothing.

    \b
      amqpjobs topology permissions producer services.email.jobs --no-declare
      amqpjobs topology permissions worker services.email --user email
    """
    needed = _producer(targets, declares) if role == Role.PRODUCER else _worker(targets, declares)
    found = [
        {
            "role": role,
            "vhost": vhost,
            "user": user or name,
            "configure": pattern(each.configure),
            "write": pattern(each.write),
            "read": pattern(each.read),
        }
        for (vhost, name), each in needed.items()
    ]
    if as_json:
        click.echo(dumps(found))
        return
    for each in found:
        words = (each["vhost"], each["user"], each["configure"], each["write"], each["read"])
        click.echo(f"rabbitmqctl set_permissions -p {shlex.join(words)}")


def _producer(targets: Sequence[str], declares: bool | None) -> Needed:
    needed = Needed()
    for target in targets or load_settings().apps or [""]:
        contracts = load_contracts([target] if target else [])
        settings = contracts[0][0].settings if contracts else load_apps([target])[0].settings
        exchanges = {options_of(job).exchange for _, job in contracts}
        on = settings.declare if declares is None else declares
        _add(needed, settings, producer_permissions(Topology(settings.namespace), exchanges, declares=on))
    return needed


def _worker(targets: Sequence[str], declares: bool | None) -> Needed:
    needed = Needed()
    for app in load_apps(targets):
        on = app.settings.declare if declares is None else declares
        _add(needed, app.settings, worker_permissions(app.topology, app.queues, app.plan(), declares=on))
    return needed


def _add(needed: Needed, settings: Settings, more: Permissions) -> None:
    key = vhost_of(settings), unquote(urlsplit(settings.urls[0]).username or "guest")
    needed[key] = needed.get(key, NOTHING) | more
