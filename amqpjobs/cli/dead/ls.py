"""`amqpjobs dead ls`: the letters as a table, as JSON, or counted by what went wrong."""

from collections.abc import Sequence

import click
from rich.table import Table

from amqpjobs.cli.command import Command
from amqpjobs.cli.console import out
from amqpjobs.cli.dead.choice import Chosen, choosing, json_option, targets_argument
from amqpjobs.cli.dead.output import cell, described, plain_table, say, say_json, when
from amqpjobs.cli.dead.progress import Run
from amqpjobs.deadletters import DeadLetter, Group, Groups


@click.command("ls", cls=Command, short_help="List letters, or group them.")
@targets_argument
@choosing()
@click.option("--group", "grouped", is_flag=True, help="Count by reason and exception.")
@click.option("--rows", type=click.IntRange(0), default=100, show_default=True, help="Rows to show; 0 shows all.")
@json_option
def ls(targets: tuple[str, ...], chosen: Chosen, grouped: bool, rows: int, as_json: bool) -> int:
    """List what is there, the oldest first. Nothing is changed.

    With --json each letter is one line, with --group each group.

    \b
      amqpjobs dead ls services.email
      amqpjobs dead ls services.email --group
      amqpjobs dead ls --queue email --reason attempts_exhausted --older-than 2d --json
    """
    app, groups, table = chosen.app(targets), Groups(), _letter_table()

    def visit(letter: DeadLetter) -> None:
        if grouped:
            groups.add(letter)
        elif as_json:
            say_json(described(letter))
        elif not rows or table.row_count < rows:
            _add_row(table, letter)

    run = Run(app, chosen.places(app), "read", quiet=as_json)
    run.each(lambda letters, place: letters.scan(place, visit, chosen.where, tally=run.tally))
    if grouped:
        _show_groups(list(groups), as_json)
    elif table.row_count:
        out.print(table)
        if run.tally.chosen > table.row_count:
            out.print(f"… and {run.tally.chosen - table.row_count:,} more: --rows 0 shows all, --group counts them")
    if not as_json:
        say(f"{run.tally.chosen:,} of {run.tally.seen:,} in {run.where}")
    return run.code()


def _letter_table() -> Table:
    return plain_table("id", "kind", "reason", "exception", "dead since", "attempt", "queue")


def _add_row(table: Table, letter: DeadLetter) -> None:
    cells = (
        letter.job_id or "",
        letter.kind or "",
        letter.reason or "",
        letter.exception or "",
        when(letter.since),
        str(letter.attempt) + (f" (requeued {letter.requeues}×)" if letter.requeues else ""),
        letter.queue or letter.place.name.value,
    )
    table.add_row(*map(cell, cells))


def _show_groups(groups: Sequence[Group], as_json: bool) -> None:
    if as_json:
        for group in groups:
            say_json(_described_group(group))
    elif groups:
        out.print(_group_table(groups))


def _described_group(group: Group) -> dict[str, object]:
    return {
        "reason": group.reason,
        "exception": group.exception,
        "count": group.count,
        "kinds": sorted(group.kinds),
        "oldest": group.oldest,
        "newest": group.newest,
    }


def _group_table(groups: Sequence[Group]) -> Table:
    table = plain_table("count", "reason", "exception", "oldest", "newest", "kinds")
    for group in groups:
        kinds = ", ".join(sorted(group.kinds)[:5]) + (" …" if len(group.kinds) > 5 else "")
        cells = (
            f"{group.count:,}",
            group.reason or "",
            group.exception or "",
            when(group.oldest),
            when(group.newest),
            kinds,
        )
        table.add_row(*map(cell, cells))
    return table
