"""`amqpjobs topology`: exchanges, queues and bindings, planned, compared, declared, and as other tools take them."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.text import Text

from amqpjobs.app import App
from amqpjobs.cli.command import Command, Group
from amqpjobs.cli.common import FAILED, TOPOLOGY, load_apps, run_async
from amqpjobs.cli.console import out
from amqpjobs.cli.permissions import permissions
from amqpjobs.cli.prune import prune
from amqpjobs.cli.session import connected, vhost_of, whole
from amqpjobs.codec import dumps
from amqpjobs.comparison import Comparison, Drift
from amqpjobs.definitions import definitions, together
from amqpjobs.errors import TopologyMismatchError
from amqpjobs.permissions import infrastructure
from amqpjobs.settings import masked
from amqpjobs.topology import Arguments, Binding, Plan

#: Names of one sort that a line shows; `--json` has them all.
SHOWN = 6


@click.group("topology", cls=Group, short_help="Exchanges, queues and bindings.")
def command() -> None:
    """Exchanges, queues and bindings of services."""


command.add_command(permissions)
command.add_command(prune)


# Show


@command.command("show", cls=Command)
@click.argument("targets", nargs=-1, metavar="TARGET…")
@click.option("--all", "is_all", is_flag=True, help="Also what all services share: the delay levels and the like.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def show(targets: tuple[str, ...], is_all: bool, as_json: bool) -> None:
    """Show the exchanges, queues and bindings that services want. Does not connect.

    \b
      amqpjobs topology show services.email
    """
    apps = load_apps(targets)
    if as_json:
        click.echo(dumps([_described(app) for app in apps]))
        return
    for app in apps:
        _show(app, is_all)


def _described(app: App[Any]) -> dict[str, object]:
    vhost = vhost_of(app.settings)
    return {
        "app": app.name,
        "namespace": app.settings.namespace,
        "own": definitions({vhost: app.plan()}),
        "shared": definitions({vhost: infrastructure(app.topology)}),
    }


def _show(app: App[Any], is_all: bool) -> None:
    shared = infrastructure(app.topology)
    out.print(Text.assemble("App ", (app.name, "bold"), f", namespace {app.settings.namespace}"))
    _show_plan(app.plan())
    if is_all:
        out.print("Shared by all services of the namespace")
        _show_plan(shared)
    else:
        counts = f"{len(shared.exchanges)} exchanges, {len(shared.queues)} queues, {len(shared.bindings)} bindings"
        out.print(f"  and what all services of the namespace share: {counts} (--all shows them)")


def _show_plan(plan: Plan) -> None:
    for exchange in plan.exchanges:
        out.print(Text.assemble("  exchange ", (exchange.name, "bold"), f"  {exchange.type}"))
        _show_details(exchange.name, exchange.arguments, [each for each in plan.bindings if each.to_exchange])
    for queue in plan.queues:
        out.print(Text.assemble("  queue ", (queue.name, "bold"), f"  {queue.arguments['x-queue-type']}"))
        _show_details(queue.name, queue.arguments, [each for each in plan.bindings if not each.to_exchange])


def _show_details(name: str, arguments: Arguments, bindings: Iterable[Binding]) -> None:
    if shown := _arguments(arguments):
        out.print(Text(f"    {shown}", "dim"))
    keys = dict[str, list[str]]()
    for binding in bindings:
        if binding.destination == name:
            keys.setdefault(binding.source, []).append(binding.key)
    for source, some in keys.items():
        if len(some) > SHOWN:  # a shard's slots
            out.print(Text(f"    bound to {source} by {len(some)} keys, {_key(some[0])} and others"))
        else:
            for key in some:
                out.print(Text(f"    bound to {source} by {_key(key)}"))


def _arguments(arguments: Arguments) -> str:
    return " ".join(f"{name}={value}" for name, value in arguments.items() if name != "x-queue-type")


def _key(key: str) -> str:
    """Many stars in a row as a number of them."""
    return re.sub(r"(\*\.){3,}", lambda found: f"({len(found[0]) // 2} stars).", key) or "any key"


# Check


@command.command("check", cls=Command)
@click.argument("targets", nargs=-1, metavar="TARGET…")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def check(targets: tuple[str, ...], as_json: bool) -> int:
    """Compare the broker with what services want, without declaring anything.

    Exchanges and queues are compared with all their properties. AMQP has no way to list bindings: one is known
    to be missing when an end of it is, and of the others nobody can tell; `apply` binds them again. Takes
    configure on what it compares.

    Exit code 0 when all fits, 1 when something is only missing, 5 when something differs and must not, 4 for the
    broker. What is safe to leave as it is, such as a delivery limit, is told and is no error.

    \b
      amqpjobs topology check services.email
    """
    found = [(app, *run_async(_compared(app))) for app in load_apps(targets)]
    if as_json:
        click.echo(dumps([_compared_as_data(app, broker, each) for app, broker, each in found]))
    else:
        for app, broker, each in found:
            _tell(app, broker, each)
    if any(each.unsafe for _, _, each in found):
        return TOPOLOGY
    if all(each.is_complete for _, _, each in found):
        return 0
    if not as_json:
        out.print(f"To declare what is missing: amqpjobs topology apply {' '.join(targets)}".rstrip())
    return FAILED


async def _compared(app: App[Any]) -> tuple[str, Comparison]:
    async with connected(app) as (session, declarer):
        return session.broker, await declarer.compare(session, whole(app))


def _compared_as_data(app: App[Any], broker: str, found: Comparison) -> dict[str, object]:
    return {
        "app": app.name,
        "namespace": app.settings.namespace,
        "url": masked(app.settings.urls[0]),
        "version": broker,
        "fits": found.is_complete and not found.unsafe,
        "missing": {"exchanges": found.missing_exchanges, "queues": found.missing_queues},
        "drift": [
            {
                each.what: each.name,
                "argument": each.argument,
                "ours": each.ours,
                "theirs": each.theirs,
                "is_safe": each.is_safe,
            }
            for each in found.drifts
        ],
        "uncompared": found.uncompared,
        "bindings": {
            "missing": definitions({vhost_of(app.settings): Plan(bindings=found.missing_bindings)})["bindings"],
            "unknown": len(whole(app).bindings) - len(found.missing_bindings),
        },
    }


def _tell(app: App[Any], broker: str, found: Comparison) -> None:
    out.print(_heading(app, broker))
    for what, names in _told_apart(app.plan(), found):
        out.print(Text(f"  missing {what}: {_some(names)}", "yellow"))
    for drift in found.drifts:
        out.print(Text(f"  {_drifted(drift)}", "yellow" if drift.is_safe else "red"))
    if found.uncompared:
        out.print(Text(f"  there, but not compared for want of configure: {_some(found.uncompared)}", "yellow"))
    if found.is_complete and not found.drifts and not found.uncompared:
        out.print(Text("  all exchanges and queues are there and fit", "green"))
    missing, count = len(found.missing_bindings), len(whole(app).bindings)
    if missing:
        out.print(Text(f"  missing bindings: {missing} for certain, as an end of them is missing", "yellow"))
    if count > missing:
        out.print(f"  AMQP cannot tell of {count - missing} bindings whether they are there; apply binds them again")


def _told_apart(plan: Plan, found: Comparison) -> Iterable[tuple[str, Sequence[str]]]:
    """What is missing, an app's own apart from what all services share."""
    own = {each.name for each in plan.exchanges} | {each.name for each in plan.queues}
    for what, names in (("exchanges", found.missing_exchanges), ("queues", found.missing_queues)):
        if mine := [name for name in names if name in own]:
            yield what, mine
        if shared := [name for name in names if name not in own]:
            yield f"{what} that all services share", shared


def _heading(app: App[Any], broker: str) -> Text:
    place = f"{broker} at {masked(app.settings.urls[0])}, namespace {app.settings.namespace}"
    return Text.assemble("App ", (app.name, "bold"), f" on {place}")


def _drifted(drift: Drift) -> str:
    how = "differs, but safely" if drift.is_safe else "differs"
    return f"{how}: {drift.what} {drift.name} has {drift.argument} = {drift.theirs!r}, ours is {drift.ours!r}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# Apply


@command.command("apply", cls=Command)
@click.argument("targets", nargs=-1, metavar="TARGET…")
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
def apply(targets: tuple[str, ...], dry_run: bool) -> None:
    """Declare what services need, without starting a worker: a step before a deployment.

    Prints what it will do, then does it. Idempotent. Declares exchanges, the delay levels, queues, dead-letter
    queues and bindings, and removes bindings of kinds that have moved to another queue of the same service.
    Changes nothing, with exit code 5, when something exists with properties that do not fit.

    \b
      amqpjobs topology apply services.email
      amqpjobs topology apply services.email --dry-run
    """
    for app in load_apps(targets):
        run_async(_apply(app, dry_run))


async def _apply(app: App[Any], dry_run: bool) -> None:
    plan = app.plan()
    async with connected(app) as (session, declarer):
        found = await declarer.compare(session, whole(app))
        if found.unsafe:
            raise TopologyMismatchError("\n".join(str(drift.error()) for drift in found.unsafe))
        out.print(_heading(app, session.broker))
        _announce(app, plan, found, "would" if dry_run else "will")
        if dry_run:
            out.print("Nothing was changed.")
            return
        await declarer.infrastructure(session, again=True)
        await declarer.plan(session, plan)
    for subscription in app.registry.subscriptions():
        out.print(Text.assemble(("bound ", "green"), f"{subscription.kind} to queue {subscription.queue}"))
    out.print(Text(f"{session.broker} at {masked(app.settings.urls[0])} has all that {app.name} needs."))


def _announce(app: App[Any], plan: Plan, found: Comparison, will: str) -> None:
    for drift in found.drifts:
        out.print(Text(f"  {_drifted(drift)}", "yellow"))
    for what, names in _told_apart(plan, found):
        out.print(f"  {will} declare {what}: {_some(names)}")
    if found.is_complete:
        out.print("  all exchanges and queues are there")
    for subscription in app.registry.subscriptions():
        out.print(f"  {will} bind {subscription.kind} to queue {subscription.queue}, unless it is bound")
    for binding in plan.stale:
        # Each has a twin at `due`, for delayed jobs; another number of shards is nobody's business most often.
        if binding.source != app.topology.due and binding not in plan.moved:
            out.print(f"  {will} unbind {binding.key} from {binding.destination}, if it is bound")


# Export


@command.command("export", cls=Command)
@click.argument("targets", nargs=-1, metavar="TARGET…")
def export(targets: tuple[str, ...]) -> None:
    """Print RabbitMQ definitions of all that services need, for a broker on which they may declare nothing.

    Exchanges, queues and bindings with the vhost of AMQPJOBS_URL, which must exist; no users, no permissions.
    Importing makes what is missing and leaves alone what is there. The services then run with
    AMQPJOBS_DECLARE=false.

    \b
      amqpjobs topology export services.email > definitions.json
      rabbitmqctl import_definitions definitions.json
    """
    plans = dict[str, Plan]()
    for app in load_apps(targets):
        vhost = vhost_of(app.settings)
        plans[vhost] = together([plans.get(vhost, Plan()), whole(app)])
    click.echo(dumps(definitions(plans)))
