"""`amqpjobs dead purge`: delete letters for good, after asking."""

import sys
from dataclasses import replace

import click

from amqpjobs.cli.command import Command
from amqpjobs.cli.common import FAILED
from amqpjobs.cli.dead.choice import Chosen, choosing, dry_option, json_option, targets_argument
from amqpjobs.cli.dead.output import say
from amqpjobs.cli.dead.progress import Run
from amqpjobs.deadletters import Filter, Place


@click.command("purge", cls=Command, short_help="Delete letters for good.")
@targets_argument
@choosing()
@click.option("--all", "everything", is_flag=True, help="Without a filter: everything.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@dry_option
@json_option
def purge(targets: tuple[str, ...], chosen: Chosen, everything: bool, yes: bool, dry_run: bool, as_json: bool) -> int:
    """Delete letters for good. Needs a filter or --all, and asks first.

    Keep a copy with `amqpjobs dead export`. To have the broker delete them after some time by itself, declare
    the queue with Queue("email", dead_retention=…).

    \b
      amqpjobs dead purge services.email --older-than 30d
      amqpjobs dead purge --queue email --all --yes
    """
    if chosen.where.is_empty and not everything:
        raise click.UsageError("Say which: --reason, --kind, --exception, --older-than, …; or --all for everything.")
    app = chosen.app(targets)
    seen = dict[Place, int]()
    if dry_run or not yes:
        looked = Run(app, chosen.places(app), "would be deleted", quiet=as_json)
        seen = looked.count(chosen.where)
        if dry_run or looked.tally.is_stopped or not looked.tally.chosen:
            return looked.end(as_json)
        if not _is_wanted(looked):
            say("nothing was deleted")
            return FAILED

    def where(place: Place) -> Filter:
        """What was counted, and not what came in while somebody was asked."""
        return replace(chosen.where, limit=seen.get(place, chosen.where.limit))

    run = Run(app, chosen.places(app), "deleted", quiet=as_json)
    run.each(lambda letters, place: letters.purge(place, where(place), tally=run.tally))
    return run.end(as_json)


def _is_wanted(looked: Run) -> bool:
    tally = looked.tally
    if not sys.stdin.isatty():
        raise click.UsageError(f"{tally.chosen:,} would be deleted. Nobody can be asked here: say --yes.")
    return click.confirm(f"Delete {tally.chosen:,} of {tally.seen:,} in {looked.where} for good?")
