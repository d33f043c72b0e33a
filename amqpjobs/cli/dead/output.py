"""What the dead-letter commands say, and how they show parts of a letter."""

import json
from datetime import datetime
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from amqpjobs.cli.console import err, out
from amqpjobs.codec import dumps, loads
from amqpjobs.deadletters import DeadLetter
from amqpjobs.logs import printable


def say(line: str) -> None:
    out.print(Text(line))


def say_err(line: str) -> None:
    err.print(Text(line))


def say_json(value: dict[str, object]) -> None:
    # Not rich, which reads [markup]; and JSON leaves some control characters as they are.
    text = dumps({name: _clean(each) for name, each in value.items()}).decode()
    click.echo("".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text))


def _clean(value: object) -> object:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def plain_table(*names: str) -> Table:
    """Columns with nothing around them."""
    return Table(*names, box=None, padding=(0, 2, 0, 0))


def cell(text: str) -> Text:
    """What came from outside, as one line of a table."""
    return Text(printable(text), no_wrap=True)


def when(time: datetime | None) -> str:
    return "" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def json_of(body: bytes) -> Any:
    try:
        return loads(body)
    except ValueError:
        return None


def text_of(letter: DeadLetter) -> str:
    return (letter.body or b"").decode("utf-8", "backslashreplace")


def described(letter: DeadLetter) -> dict[str, object]:
    return {
        "position": letter.position,
        "job_id": letter.job_id,
        "message_id": letter.message_id,
        "kind": letter.kind,
        "place": letter.place.name.value,
        "queue": letter.queue,
        "reason": letter.reason,
        "exception": letter.exception,
        "error": letter.error,
        "traceback": letter.traceback,
        "dead_at": letter.dead_at,
        "first_at": letter.first_at,
        "attempt": letter.attempt,
        "requeues": letter.requeues,
        "host": letter.host,
        "size": letter.size,
        "preview": letter.preview,
    }
