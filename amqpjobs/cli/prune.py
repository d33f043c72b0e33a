"""`amqpjobs topology prune`: remove queues and bindings that no service names any more.

AMQP lists neither, so they must be named. Nothing that the TARGETs still want is removed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.text import Text

from amqpjobs.amqp.connection import Session
from amqpjobs.amqp.declare import Declarer
from amqpjobs.app import App
from amqpjobs.cli.command import Command
from amqpjobs.cli.common import FAILED, load_apps, run_async
from amqpjobs.cli.console import out
from amqpjobs.cli.session import connected
from amqpjobs.errors import DefinitionError, TopologyMismatchError
from amqpjobs.job import check_name
from amqpjobs.topology import Queue, Subscription


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be removed: whole queues, or just these kinds from them."""

    queues: Sequence[str]
    kinds: Sequence[str]
    exchange: str
    with_messages: bool


@click.command("prune", cls=Command)
@click.argument("targets", nargs=-1, metavar="TARGET…")
@click.option("-q", "--queue", "queues", multiple=True, required=True, metavar="NAME", help="May be given again.")
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only unbind this kind from the queue.")
@click.option("--exchange", default="", metavar="NAME", help="Where the kind came from, if not from our own exchange.")
@click.option("--with-messages", is_flag=True, help="Delete the jobs and dead letters in the queue, too.")
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def prune(
    targets: tuple[str, ...],
    queues: tuple[str, ...],
    kinds: tuple[str, ...],
    exchange: str,
    with_messages: bool,
    dry_run: bool,
    yes: bool,
) -> int:
    """Remove a queue with its dead letters, or a kind's bindings to it, that no service names any more.

    Asks first. Refuses what the TARGETs still name, a queue with consumers, and one that is not empty unless
    --with-messages is given. Stop its workers before: what they hold is not counted. Delayed jobs and retries
    that are still on their way to a deleted queue end in the queue for unroutable ones. Of a sharded queue that
    the TARGETs still name only shards are removed that it had when it had more of them.

    \b
      amqpjobs topology prune services.email --queue newsletters
      amqpjobs topology prune services.email --queue email --kind email.bulk
    """
    app, *others = apps = load_apps(targets)
    if any(
        (each.settings.urls[0], each.settings.namespace) != (app.settings.urls[0], app.settings.namespace)
        for each in others
    ):
        raise click.UsageError("These TARGETs are on different brokers or in different namespaces: prune one by one.")
    if exchange and not kinds:
        raise click.UsageError("--exchange says where a --kind came from; name the kind.")
    wish = Wish(queues=queues, kinds=kinds, exchange=exchange, with_messages=with_messages)
    _check(apps, wish)
    if kinds:
        return run_async(_unbind(app, wish, dry_run, yes))
    return run_async(_delete(apps, wish, dry_run, yes))


def _check(apps: Sequence[App[Any]], wish: Wish) -> None:
    """Raise UsageError for what cannot be, and for what is still wanted."""
    try:
        for name in (*wish.queues, *wish.kinds):
            check_name(name, "The name of a queue or kind,")
    except DefinitionError as error:
        raise click.UsageError(str(error)) from None
    for app in apps:
        for queue in wish.queues:
            if not wish.kinds and queue in {each.name for each in app.queues if each.shards is None}:
                raise click.UsageError(f"App {app.name!r} still works on queue {queue!r}.")
        for wanted in app.registry.subscriptions():
            if wanted in _subscriptions(wish):
                raise click.UsageError(f"App {app.name!r} still wants {wanted.kind!r} on queue {wanted.queue!r}.")


def _subscriptions(wish: Wish) -> list[Subscription]:
    return [
        Subscription(kind=kind, queue=queue, exchange=wish.exchange) for queue in wish.queues for kind in wish.kinds
    ]


# Unbind


async def _unbind(app: App[Any], wish: Wish, dry_run: bool, yes: bool) -> int:
    async with connected(app) as (session, declarer):
        for queue in wish.queues:
            if await declarer.look(session, app.topology.work_queue(queue)) is None:
                raise click.ClickException(f"There is no queue {app.topology.work_queue(queue)!r}.")
        for each in _subscriptions(wish):
            out.print(f"  {'would' if dry_run else 'will'} unbind {each.kind} from queue {each.queue}, if it is bound")
        if not _go_on(dry_run, yes):
            return 0 if dry_run else FAILED
        exists = {queue: await _is_sharded(app, queue, session, declarer) for queue in wish.queues}
        split = {queue for queue, is_sharded in exists.items() if is_sharded}
        await declarer.unbind(session, app.topology.subscribed(_subscriptions(wish), split))
    for each in _subscriptions(wish):
        out.print(Text.assemble(("unbound ", "green"), f"{each.kind} from queue {each.queue}"))
    return 0


# Delete


async def _delete(apps: Sequence[App[Any]], wish: Wish, dry_run: bool, yes: bool) -> int:
    app = apps[0]
    kept = {queue.name: queue for each in apps for queue in each.queues if queue.shards is not None}
    async with connected(app) as (session, declarer):
        found = await _deletable(app, wish, kept, session, declarer)
        if not found:
            out.print("There is nothing to delete.")
            return 0
        for name, messages in found.items():
            what = f" with {messages} messages" if messages else ", which is empty"
            out.print(f"  {'would' if dry_run else 'will'} delete queue {name}{what}")
        if not _go_on(dry_run, yes):
            return 0 if dry_run else FAILED
        for queue in wish.queues:
            if queue not in kept:
                await _delete_exchanges(app, queue, session, declarer)
        for name in found:
            try:
                gone = await declarer.delete_queue(session, name, only_if_empty=not wish.with_messages)
            except TopologyMismatchError as error:
                raise click.ClickException(str(error)) from error
            with_it = f" and {gone} messages" if gone else ""
            out.print(Text.assemble(("deleted ", "green"), f"queue {name}{with_it}"))
    return 0


async def _delete_exchanges(app: App[Any], queue: str, session: Session, declarer: Declarer) -> None:
    """Those of a sharded queue: nothing may lead to where no queue is left."""
    if await _is_sharded(app, queue, session, declarer):
        for exchange in app.topology.shard_exchanges(queue):
            await declarer.delete_exchange(session, exchange)


async def _is_sharded(app: App[Any], queue: str, session: Session, declarer: Declarer) -> bool:
    return await declarer.exchange_exists(session, app.topology.sharded(queue))


async def _parts(
    app: App[Any], queue: str, kept: Mapping[str, Queue], session: Session, declarer: Declarer
) -> list[str]:
    """What there may be of a queue, shards from the last to the first: that is how workers look for former ones."""
    topology = app.topology
    if queue in kept:
        return topology.former_parts(kept[queue])[::-1]
    whole = [topology.work_queue(queue), topology.dead_queue(queue)]
    if not await _is_sharded(app, queue, session, declarer):
        return whole
    return [*topology.former_parts(Queue(queue, shards=1))[::-1], topology.crew(queue), *whole]


async def _deletable(
    app: App[Any], wish: Wish, kept: Mapping[str, Queue], session: Session, declarer: Declarer
) -> dict[str, int]:
    """The queues that are there, and how much is in them. Raises ClickException when one must stay."""
    names = [name for queue in wish.queues for name in await _parts(app, queue, kept, session, declarer)]
    found = dict[str, int]()
    for name in names:
        state = await declarer.look(session, name)
        if state is None:
            continue
        if state.consumers:
            raise click.ClickException(f"Queue {name!r} has {state.consumers} consumers: stop its workers first.")
        if state.messages and not wish.with_messages:
            raise click.ClickException(
                f"Queue {name!r} is not empty: it holds {state.messages} messages. Let them be worked off, or give "
                "--with-messages to delete them, too."
            )
        found[name] = state.messages
    return found


def _go_on(dry_run: bool, yes: bool) -> bool:
    if not dry_run and (yes or _confirmed()):
        return True
    out.print("Nothing was removed.")
    return False


def _confirmed() -> bool:
    try:
        return click.confirm("Remove this?", default=False)
    except click.Abort:  # nobody there to answer
        out.print()
        return False
