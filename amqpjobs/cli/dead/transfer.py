"""`amqpjobs dead export` and `import`: letters in a file, and back."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import IO

import click

from amqpjobs.app import App
from amqpjobs.cli.command import Command
from amqpjobs.cli.dead.choice import Chosen, choosing, dry_option, json_option, only_app
from amqpjobs.cli.dead.progress import Run
from amqpjobs.deadletters import UNROUTABLE, Tally


@click.command("export", cls=Command, short_help="Write letters to a file.")
@click.argument("words", nargs=-1, required=True, metavar="[TARGET…] FILE|-")
@choosing()
@dry_option
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
def export(words: tuple[str, ...], chosen: Chosen, dry_run: bool, force: bool) -> int:
    """Write letters as JSON lines, with all that `import` needs to make the same messages again. They stay.

    - writes to standard output. FILE appears only when it is complete, readable by you alone: payloads may be
    secret.

    \b
      amqpjobs dead export services.email letters.jsonl
      amqpjobs dead export --queue email --reason unreadable - | jq .body
    """
    app, name = chosen.app(words[:-1]), words[-1]
    run = Run(
        app, chosen.places(app), "would be exported" if dry_run else "exported", quiet=False, to_stderr=name == "-"
    )
    if dry_run:
        run.count(chosen.where)
        return run.end(False)
    with _written(name, force, run.tally) as file:
        run.each(lambda letters, place: letters.export(place, file.write, chosen.where, tally=run.tally))
    return run.end(False)


@click.command("import", cls=Command, short_help="Put exported letters back.")
@click.argument("words", nargs=-1, required=True, metavar="[TARGET…] FILE|-")
@dry_option
@json_option
def import_(words: tuple[str, ...], dry_run: bool, as_json: bool) -> int:
    """Put exported letters back into the places they came from, at the end; `requeue` then runs them.

    What is there already is left out, so that an import that was cut short may be run again. A line that
    cannot be read stops it before anything is imported. - reads from standard input.

    \b
      amqpjobs dead import letters.jsonl
      grep 'ada@example.org' letters.jsonl | amqpjobs dead import -
    """
    app = only_app(words[:-1]) if words[:-1] else App("dead")
    try:
        text = sys.stdin.read() if words[-1] == "-" else Path(words[-1]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{words[-1]} cannot be read: {error}") from None
    run = Run(app, [UNROUTABLE], "would be imported" if dry_run else "imported", quiet=as_json)
    run.where = words[-1]
    run.each(lambda letters, _: letters.import_lines(text.split("\n"), dry_run=dry_run, tally=run.tally))
    return run.end(as_json)


@contextlib.contextmanager
def _written(name: str, force: bool, tally: Tally) -> Generator[IO[str]]:
    """Standard output, or a file that appears when it is complete."""
    if name == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    goal = Path(name)
    if goal.exists() and not force:
        raise click.UsageError(f"{name} is there already; choose another name, or say --force to replace it.")
    try:
        handle, part = tempfile.mkstemp(prefix=f".{goal.name}.", dir=goal.parent)
    except OSError as error:
        raise click.UsageError(f"{name} cannot be written: {error}") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
        if not tally.is_stopped:
            Path(part).replace(goal)
    finally:
        Path(part).unlink(missing_ok=True)
