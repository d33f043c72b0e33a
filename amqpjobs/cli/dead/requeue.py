"""`amqpjobs dead requeue`: run letters again."""

import click

from amqpjobs.cli.command import Command
from amqpjobs.cli.dead.choice import Chosen, choosing, dry_option, json_option, targets_argument
from amqpjobs.cli.dead.progress import Run


@click.command("requeue", cls=Command, short_help="Run letters again.")
@targets_argument
@choosing()
@dry_option
@click.option("--even-expired", is_flag=True, help="Also what has expired; its expiry is removed.")
@json_option
def requeue(targets: tuple[str, ...], chosen: Chosen, dry_run: bool, even_expired: bool, as_json: bool) -> int:
    """Put letters back into the queue they died in, to run again from attempt 1.

    Without a filter all are meant. From `unroutable` and `parked` they go by their kind again; who is still
    wanted by nobody stays. The job id stays, and headers tell how often and from which message it was requeued.

    Ctrl-C ends after what is under way and says how far it got. After a crash up to 32 may be both requeued and
    still here: running this again would run those twice.

    \b
      amqpjobs dead requeue services.email --exception ConnectionError --newer-than 2h --dry-run
      amqpjobs dead requeue services.email --kind 'email.*'
      amqpjobs dead requeue --queue email --id 0197a3e2-7c51-7b1f-9d3e-0f5a6b7c8d9e
      amqpjobs dead requeue --place unroutable
    """
    app = chosen.app(targets)
    run = Run(app, chosen.places(app), "would be requeued" if dry_run else "requeued", quiet=as_json)
    if dry_run:
        run.count(chosen.where)
    else:
        run.each(
            lambda letters, place: letters.requeue(place, chosen.where, even_expired=even_expired, tally=run.tally)
        )
    return run.end(as_json)
