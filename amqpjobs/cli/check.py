"""`amqpjobs check`: what would run, and whether the broker is fit for it."""

from collections.abc import Sequence
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from amqpjobs.amqp.connection import open_session
from amqpjobs.amqp.declare import Declarer
from amqpjobs.app import App
from amqpjobs.cli.command import Command
from amqpjobs.cli.common import load_apps, run_async
from amqpjobs.cli.console import out
from amqpjobs.codec import dumps
from amqpjobs.events import TopologyDrifted
from amqpjobs.job import options_of
from amqpjobs.settings import masked


@click.command("check", cls=Command, short_help="Import services, verify the broker, and show what would run.")
@click.argument("targets", nargs=-1, metavar="TARGET…")
@click.option("--no-broker", is_flag=True, help="Only import and register; do not connect.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(targets: tuple[str, ...], no_broker: bool, as_json: bool) -> None:
    """Import services, register their handlers, verify the broker, and print what would run.

    Nothing is declared. What is missing on the broker is what a worker's start, or `amqpjobs topology
    apply`, would make. Exit code 3 for a faulty definition, 4 for the broker, 5 when a queue exists with
    properties that do not fit.

    \b
      amqpjobs check services.email
    """
    apps = load_apps(targets)
    for app in apps:
        app.registry.check_timeouts(app.queues, app.settings)
    found = [describe(app) for app in apps]
    if not no_broker:
        for app, described in zip(apps, found, strict=True):
            described["broker"] = run_async(_examined(app))
    if as_json:
        out.print(dumps(found).decode())
        return
    for described in found:
        show(described)


def describe(app: App[Any]) -> dict[str, Any]:
    """What would run, as JSON has it."""
    settings = app.settings
    return {
        "app": app.name,
        "namespace": settings.namespace,
        "concurrency": settings.concurrency,
        "queues": [
            {"name": each.name, "type": each.type, "prefetch": each.prefetch, "shards": each.shards}
            for each in app.queues
        ],
        "handlers": [
            {
                "kind": handler.kind,
                "aliases": list(options_of(handler.job).aliases),
                "version": handler.version,
                "queue": handler.queue,
                "handler": handler.name,
                "runs_in": "event loop" if handler.run_in == "loop" else handler.run_in,
                "max_attempts": handler.max_attempts or settings.max_attempts,
                "timeout": handler.timeout or settings.timeout,
                "batch": handler.batch and {"size": handler.batch.size, "seconds": handler.batch.seconds},
            }
            for handler in app.registry.handlers
        ],
        "schedules": [
            {"name": each.name, "kind": each.job_options.kind, "schedule": each.definition} for each in app.schedules
        ],
    }


async def _examined(app: App[Any]) -> dict[str, Any]:
    url = app.settings.urls[0]
    drifts = list[TopologyDrifted]()
    app.on(TopologyDrifted)(drifts.append)
    declarer = Declarer(app.topology, app.events)
    session = await open_session(url, app.settings, "check")
    try:
        missing = await declarer.missing(session, app.topology.infrastructure())
        missing += await declarer.missing(session, app.plan())
    finally:
        await session.close()
    return {
        "url": masked(url),
        "version": session.broker,
        "missing": missing,
        "drift": [f"{each.queue}: {each.argument} is {each.theirs}, ours is {each.ours}" for each in drifts],
    }


def show(described: dict[str, Any]) -> None:
    """The same for people."""
    names: Sequence[str] = [queue["name"] for queue in described["queues"]]
    out.print(Text.assemble(("App ", ""), (described["app"], "bold"), f" takes from {', '.join(names)}"))
    table = Table("kind", "queue", "handler", "runs in", "attempts", "timeout", box=None, padding=(0, 2, 0, 2))
    for each in described["handlers"]:
        kind = " ".join([each["kind"], *(f"(or {alias})" for alias in each["aliases"])])
        place = each["runs_in"] + ("" if each["batch"] is None else f", {_words(**each['batch'])}")
        table.add_row(kind, each["queue"], each["handler"], place, str(each["max_attempts"]), f"{each['timeout']:g} s")
    out.print(table if described["handlers"] else "  no handlers")
    for each in described["schedules"]:
        out.print(f"  schedule {each['name']}: {each['kind']} {each['schedule']}", markup=False)
    if "broker" not in described:
        return
    broker = described["broker"]
    out.print(f"{broker['version']} at {broker['url']}, namespace {described['namespace']}")
    for drift in broker["drift"]:
        out.print(Text(f"  differs, but safely: {drift}", "yellow"))
    missing = broker["missing"]
    if not missing:
        out.print("  all exchanges and queues are there")
    else:
        shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        out.print(f"  not there yet, made by the first start: {shown}")


def _words(size: int, seconds: float) -> str:
    return f"up to {size} at once within {seconds:g} s"
