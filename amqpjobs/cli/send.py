"""`amqpjobs send`: enqueue one job from the shell."""

import sys
from collections.abc import Sequence
from typing import Any, cast

import click
from rich.text import Text

from amqpjobs.app import App
from amqpjobs.cli.command import Command
from amqpjobs.cli.common import contract_of, load_contracts, run_async
from amqpjobs.cli.console import out
from amqpjobs.codec import dumps, job_from, loads
from amqpjobs.handle import EnqueueOptions, JobHandle
from amqpjobs.job import Job, hint


@click.command("send", cls=Command, short_help="Enqueue one job.")
@click.argument("words", nargs=-1, required=True, metavar="[TARGET] KIND [FIELD=VALUE…]")
@click.option("-d", "--data", metavar="JSON", help="The whole payload; - reads it from standard input.")
@click.option("--delay", type=click.FloatRange(0), metavar="SECONDS", help="Not before so long from now.")
@click.option("--expires", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Not after so long.")
@click.option("--queue", metavar="NAME", help="Straight to this queue.")
@click.option("--priority", type=click.IntRange(0, 255), help="Higher goes first, where the queue has priorities.")
@click.option("--job-id", metavar="ID", help="An id of your own. [default: a fresh UUIDv7]")
@click.option("--park", is_flag=True, help="If no queue is bound for the kind yet, let the job wait until one is.")
@click.option("--deadline", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="How long this may take.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(words: tuple[str, ...], data: str | None, as_json: bool, park: bool, **given: Any) -> None:
    """Enqueue one job, validated against its class, and print its id.

    FIELD=VALUE sets a field from text, FIELD:=JSON from JSON. TARGET may also be a module with job classes
    and no app in it, the contract of a service that is not installed here.

    \b
      amqpjobs send services.email email.send to=ada@example.org subject=Hi body=Hello
      amqpjobs send services.email email.send --data '{"to": "ada@example.org", …}' --delay 60
      amqpjobs send services.email.jobs email.send to=ada@example.org subject=Hi body=Hello --park
      amqpjobs send thumbs.make size:=128 'urls:=["a.png", "b.png"]'      (apps from pyproject.toml)
    """
    names = [word for word in words if "=" not in word]
    fields = [word for word in words if "=" in word]
    if not 1 <= len(names) <= 2 or words[: len(names)] != tuple(names):
        raise click.UsageError("Say [TARGET] KIND, then the fields: amqpjobs send services.email email.send to=…")
    app, contract = contract_of(names[-1], load_contracts(names[:-1]))
    job = job_from(contract, payload_from(contract, data, fields))
    # The names of the options above are those of EnqueueOptions.
    options = cast("EnqueueOptions", {name: value for name, value in given.items() if value is not None})
    if park:
        options["on_unroutable"] = "park"
    handle = run_async(_send(app, job, options))
    if as_json:
        out.print(dumps({"job_id": handle.job_id, "kind": handle.kind, "parked": handle.is_parked}).decode())
    else:
        done = "parked until its kind is bound" if handle.is_parked else "enqueued"
        out.print(Text.assemble((done, "green"), f" {handle.kind} ", (handle.job_id, "bold")))


async def _send(app: App[Any], job: Job[Any], options: EnqueueOptions) -> JobHandle[Any]:
    async with app:
        return await app.enqueue(job, **options)


def payload_from(job: type[Job[Any]], data: str | None, fields: Sequence[str]) -> bytes:
    """The payload that these words make. Raises UsageError."""
    values: dict[str, Any] = {}
    if data is not None:
        text = sys.stdin.read() if data == "-" else data
        try:
            parsed = loads(text)
        except ValueError as error:
            raise click.UsageError(f"--data is no JSON: {error}") from None
        if not isinstance(parsed, dict):
            raise click.UsageError("--data must be a JSON object with the job's fields.")
        values.update(cast("dict[str, Any]", parsed))
    for field in fields:
        values.update(_field(field))
    known = {name: info.alias or name for name, info in job.model_fields.items()}
    for name in values:
        if name not in known and name not in known.values() and job.model_config.get("extra") != "allow":
            raise click.UsageError(f"{job.__name__} has no field {name!r}.{hint(name, list(known))}")
    return dumps(values)


def _field(word: str) -> dict[str, Any]:
    name, _, value = word.partition("=")
    if not name.endswith(":"):
        return {name: value}
    try:
        return {name[:-1]: loads(value)}
    except ValueError as error:
        raise click.UsageError(f"{name[:-1]}:= takes JSON, and {value!r} is none: {error}") from None
