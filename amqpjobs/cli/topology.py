"""`amqpjobs topology`: exchanges, queues and bindings."""

from typing import Any

import click
from rich.text import Text
from rich_click import RichCommand, RichGroup

from amqpjobs.amqp.connection import open_session
from amqpjobs.amqp.declare import Declarer
from amqpjobs.app import App
from amqpjobs.cli.common import load_apps, out, run_async
from amqpjobs.settings import masked


@click.group("topology", cls=RichGroup, short_help="Exchanges, queues and bindings.")
def command() -> None:
    """Exchanges, queues and bindings of services."""


@command.command("apply", cls=RichCommand)
@click.argument("targets", nargs=-1, metavar="TARGET…")
def apply(targets: tuple[str, ...]) -> None:
    """Declare what services need, without starting a worker: a step before a deployment.

    Idempotent. Declares exchanges, the delay levels, queues, dead-letter queues and bindings, and removes
    bindings of kinds that have moved to another queue of the same service.

    \b
      amqpjobs topology apply services.email
    """
    for app in load_apps(targets):
        run_async(_apply(app))


async def _apply(app: App[Any]) -> None:
    url, plan = app.settings.urls[0], app.plan()
    declarer = Declarer(app.topology, app.events)
    session = await open_session(url, app.settings, "topology")
    try:
        await declarer.infrastructure(session)
        await declarer.plan(session, plan)
    finally:
        await session.close()
    for queue in plan.queues:
        out.print(Text.assemble(("declared ", "green"), queue.name))
    for subscription in app.registry.subscriptions():
        out.print(Text.assemble(("bound ", "green"), f"{subscription.kind} to queue {subscription.queue}"))
    out.print(f"{session.broker} at {masked(url)} has all that {app.name} needs.")
