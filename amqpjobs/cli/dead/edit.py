"""`amqpjobs dead edit`: mend the payload of one letter in an editor, held against its job class."""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, cast

import click

from amqpjobs.cli.command import Command
from amqpjobs.cli.common import contract_of, load_contracts
from amqpjobs.cli.dead.choice import Chosen, choosing
from amqpjobs.cli.dead.output import json_of, say
from amqpjobs.cli.dead.progress import Run, found
from amqpjobs.codec import dumps, job_from, loads
from amqpjobs.deadletters import DeadLetter, DeadLetters, LetterError, Place
from amqpjobs.errors import InvalidArgumentsError
from amqpjobs.job import Job, hint
from amqpjobs.logs import printable
from amqpjobs.settings import load_settings


@click.command("edit", cls=Command, short_help="Mend the payload of one letter.")
@click.argument("words", nargs=-1, required=True, metavar="[TARGET…] ID")
@choosing(by_id=False)
@click.option("--keep", is_flag=True, help="Leave it among the dead letters, at the end, instead of requeueing it.")
@click.option("--unchecked", is_flag=True, help="Do not hold the payload against its job class.")
def edit(words: tuple[str, ...], chosen: Chosen, keep: bool, unchecked: bool) -> int:
    """Open the payload of one letter in $EDITOR, check it against its job class, and requeue the job.

    The letter stays where it is until you save and close; leave without saving, or change nothing, and nothing
    happens. The job id stays; a header tells the message it was edited from.

    \b
      EDITOR=nano amqpjobs dead edit services.email 0197a3e2-7c51-7b1f-9d3e-0f5a6b7c8d9e
    """
    app, letters, _ = found(words, chosen)
    letter = letters[0]
    contract = None if unchecked else _contract(words[:-1], letter)
    body = _edited(letter, contract)
    if body is None:
        say("nothing changed")
        return 0

    async def change(there: DeadLetters, place: Place) -> bool:
        return await there.edit(letter, body, requeue=not keep)

    changed = Run(app, [letter.place], "edited", quiet=True).each(change)
    if not all(changed):
        raise LetterError(
            f"{letter.job_id} is no longer in {letter.place}: somebody else moved it. Nothing was changed."
        )
    say(
        f"edited {printable(letter.job_id or '')}" + (" and left where it was, at the end" if keep else " and requeued")
    )
    return 0


def _contract(targets: Sequence[str], letter: DeadLetter) -> type[Job[Any]]:
    if not targets and not load_settings().apps:
        raise click.UsageError(
            "Name the TARGET that has the job class, to check the payload by it; or say --unchecked."
        )
    return contract_of(letter.kind or "", load_contracts(targets), " --unchecked edits it without one.")[1]


def _edited(letter: DeadLetter, contract: type[Job[Any]] | None) -> bytes | None:
    """The payload as it was left in the editor; None when it was not saved, or is the same."""
    before, text = json_of(letter.body or b""), _editable(letter)
    while True:
        given = click.edit(text, extension=".json")
        if given is None or given == text:
            return None
        text = given
        try:
            payload = loads(text)
            if contract is not None:
                _check(contract, payload, before)
            return None if payload == before else dumps(payload)
        except (ValueError, InvalidArgumentsError) as error:
            problem = f"This cannot be: {printable(str(error))}"
        if not sys.stdin.isatty() or not click.confirm(f"{problem}\nEdit it again?", default=True):
            kept = _kept(text)
            raise LetterError(f"{problem} Nothing was changed. What you wrote is in {kept}.")


def _check(contract: type[Job[Any]], payload: object, before: object) -> None:
    job_from(contract, dumps(payload))
    if not isinstance(payload, dict) or contract.model_config.get("extra") == "allow":
        return
    old = cast("dict[str, object]", before) if isinstance(before, dict) else {}
    known = [name for key, info in contract.model_fields.items() for name in (key, info.alias) if name]
    for name in cast("dict[str, object]", payload):
        if name not in known and name not in old:
            raise ValueError(f"{contract.__name__} has no field {name!r}.{hint(name, known)}")


def _editable(letter: DeadLetter) -> str:
    body = letter.body or b""
    parsed = json_of(body)
    if parsed is not None:
        return json.dumps(parsed, indent=2, ensure_ascii=False) + "\n"
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise LetterError("The payload is no text, so no editor can open it. Export it, mend it, import it.") from None


def _kept(text: str) -> str:
    handle, name = tempfile.mkstemp(prefix="amqpjobs-edit-", suffix=".json")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return name
