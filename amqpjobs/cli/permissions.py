"""`amqpjobs topology permissions`: what a RabbitMQ user of a role may do, and no more."""

import shlex
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import click

from amqpjobs.app import App
from amqpjobs.cli.command import Command
from amqpjobs.cli.common import load_apps, load_contracts
from amqpjobs.cli.session import vhost_of
from amqpjobs.codec import dumps
from amqpjobs.job import options_of
from amqpjobs.permissions import (
    NOTHING,
    Permissions,
    Role,
    beat_permissions,
    calling_permissions,
    deployer_permissions,
    observer_permissions,
    operator_permissions,
    pattern,
    producer_permissions,
    scheduler_permissions,
    worker_permissions,
)
from amqpjobs.settings import Settings, load_settings
from amqpjobs.topology import Topology

#: By vhost and user: setting permissions replaces those that were.
Needed = dict[tuple[str, str], Permissions]


@click.command("permissions", cls=Command)
@click.argument("role", type=click.Choice([role.value for role in Role]))
@click.argument("targets", nargs=-1, metavar="TARGET…")
@click.option("--user", metavar="NAME", help="The RabbitMQ user. [default: the one in AMQPJOBS_URL]")
@click.option(
    "--declare/--no-declare",
    "declares",
    default=None,
    help="A producer, worker, beat or scheduler with AMQPJOBS_DECLARE on or off. [default: as it is set here]",
)
@click.option("--calls", is_flag=True, help="A producer or worker that awaits results, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the three regexes as JSON.")
def permissions(
    role: str, targets: tuple[str, ...], user: str | None, declares: bool | None, calls: bool, as_json: bool
) -> None:
    """Print the RabbitMQ permissions that somebody needs for services, as a command that sets them.

    A producer enqueues jobs of the TARGETs, which may be contracts. A worker works on their queues, and enqueues
    too. With declaring on, it is all that is needed on a vhost where nothing was declared yet; with
    AMQPJOBS_DECLARE=false nothing may be configured, and a producer reads nothing. Either may await results (`call`,
    `reply=True`) with --calls: each process then has a queue of its own, which it always declares itself.

    A beat publishes the ticks of their schedules; a worker with --beat needs what both do. A scheduler uses `amqpjobs
    schedule` on them, or the same from Python, and enqueues nothing by itself.

    An operator uses `amqpjobs dead` on their queues, on unroutable and on parked jobs, `amqpjobs schedule` on their
    schedules if they have any, and may configure nothing. An
    observer lists, shows and exports them, and may write nowhere. A deployer uses `amqpjobs topology check` and
    `apply`, and may read no job; `topology prune` takes configure on what it deletes, which no TARGET names.

    \b
      amqpjobs topology permissions producer services.email.jobs --no-declare
      amqpjobs topology permissions worker services.email --user email
      amqpjobs topology permissions operator services.email --user ada
    """
    needed = _needed(Role(role), targets, declares, calls)
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


def _needed(role: Role, targets: Sequence[str], declares: bool | None, calls: bool) -> Needed:
    if declares is not None and role not in (Role.PRODUCER, Role.WORKER, Role.BEAT, Role.SCHEDULER):
        raise click.UsageError(
            "An operator or observer declares nothing and a deployer everything: leave out --[no-]declare."
        )
    if calls and role not in (Role.PRODUCER, Role.WORKER):
        raise click.UsageError("Results are awaited by producers and workers: leave out --calls.")
    return _producer(targets, declares, calls) if role is Role.PRODUCER else _of_apps(role, targets, declares, calls)


def _producer(targets: Sequence[str], declares: bool | None, calls: bool) -> Needed:
    needed = Needed()
    for target in targets or load_settings().apps or [""]:
        contracts = load_contracts([target] if target else [])
        settings = contracts[0][0].settings if contracts else load_apps([target])[0].settings
        exchanges = {options_of(job).exchange for _, job in contracts}
        on = settings.declare if declares is None else declares
        topology = Topology(settings.namespace)
        calling = calling_permissions(topology) if calls else NOTHING
        _add(needed, settings, producer_permissions(topology, exchanges, declares=on) | calling)
    return needed


def _of_apps(role: Role, targets: Sequence[str], declares: bool | None, calls: bool) -> Needed:
    needed = Needed()
    for app in load_apps(targets):
        calling = calling_permissions(app.topology) if calls else NOTHING
        own = _of_app(role, app, app.settings.declare if declares is None else declares)
        _add(needed, app.settings, own | calling)
    return needed


def _of_app(role: Role, app: App[Any], declares: bool) -> Permissions:
    plan = app.plan()
    if role is Role.BEAT:
        exchanges = {each.job_options.exchange for each in app.schedules}
        return beat_permissions(app.topology, app.name, exchanges, declares=declares)
    if role is Role.SCHEDULER:
        return scheduler_permissions(app.topology, app.name, declares=declares)
    if role is Role.OPERATOR:
        changing = scheduler_permissions(app.topology, app.name, declares=False) if app.has_beats else NOTHING
        exchanges = {each.name for each in plan.exchanges} - {app.topology.beats}
        return operator_permissions(app.topology, app.queues, exchanges) | changing
    if role is Role.OBSERVER:
        return observer_permissions(app.topology, app.queues)
    if role is Role.DEPLOYER:
        return deployer_permissions(app.topology, plan)
    beats = [app.name] if app.schedules else []
    return worker_permissions(app.topology, app.queues, app.work_plan(), declares=declares, beats=beats)


def _add(needed: Needed, settings: Settings, more: Permissions) -> None:
    key = vhost_of(settings), unquote(urlsplit(settings.urls[0]).username or "guest")
    needed[key] = needed.get(key, NOTHING) | more
