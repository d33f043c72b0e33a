"""`amqpjobs dead show`: all of one letter."""

import json

import click
from rich.text import Text

from amqpjobs.cli.command import Command
from amqpjobs.cli.console import out
from amqpjobs.cli.dead.choice import Chosen, choosing, json_option
from amqpjobs.cli.dead.output import described, json_of, say_json, text_of, when
from amqpjobs.cli.dead.progress import found
from amqpjobs.deadletters import DeadLetter, to_json
from amqpjobs.logs import printable


@click.command("show", cls=Command, short_help="Show one letter whole.")
@click.argument("words", nargs=-1, required=True, metavar="[TARGET…] ID")
@choosing(by_id=False)
@json_option
def show(words: tuple[str, ...], chosen: Chosen, as_json: bool) -> int:
    """Show all of one letter: why it died, its traceback, headers and payload.

    ID is the job id, as `ls` shows it. Copies with the same id are all shown.

    \b
      amqpjobs dead show services.email 0197a3e2-7c51-7b1f-9d3e-0f5a6b7c8d9e
    """
    _, letters, run = found(words, chosen)
    for letter in letters:
        if as_json:
            say_json(described(letter) | {"body": text_of(letter), "headers": to_json(letter.headers)})
        else:
            _show(letter)
    return run.code()


def _show(letter: DeadLetter) -> None:
    for name, value in _facts(letter).items():
        if value:
            out.print(Text.assemble((f"{name:<12}", "bold"), printable(value)))
    if letter.headers:
        out.print(Text("headers", "bold"))
        for header, inner in letter.headers.items():
            if header != "amqpjobs-dead-traceback":
                out.print(Text(f"  {printable(header)}: {_clipped(printable(str(inner)))}"))
    if letter.traceback:
        out.print(Text("traceback", "bold"))
        _print_lines(letter.traceback)
    out.print(Text("payload", "bold"))
    parsed = json_of(letter.body or b"")
    _print_lines(text_of(letter) if parsed is None else json.dumps(parsed, indent=2, ensure_ascii=False))


def _facts(letter: DeadLetter) -> dict[str, str | None]:
    return {
        "id": letter.job_id,
        "kind": letter.kind,
        "place": f"{letter.place}, number {letter.position}",
        "reason": letter.reason,
        "error": letter.error,
        "dead at": when(letter.dead_at),
        "first tried": when(letter.first_at),
        "attempt": str(letter.attempt),
        "requeued": f"{letter.requeues}×" if letter.requeues else None,
        "host": letter.host,
        "size": f"{letter.size:,} bytes",
        "message id": letter.message_id,
    }


def _print_lines(text: str) -> None:
    for line in text.split("\n"):
        out.print(Text(f"  {printable(line)}"))


def _clipped(text: str) -> str:
    return text if len(text) <= 500 else f"{text[:500]}… ({len(text):,} characters)"
