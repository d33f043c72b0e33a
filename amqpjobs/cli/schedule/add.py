"""`amqpjobs schedule add`: a schedule that the broker keeps."""

from collections.abc import Sequence
from typing import Any

import click

from amqpjobs.app import App
from amqpjobs.beat.plan import CATCH_UP, GRACE, MISFIRES, OVERLAP_LIMIT, OVERLAPS
from amqpjobs.cli.command import Command
from amqpjobs.cli.common import Contract, contract_of
from amqpjobs.cli.schedule.choice import app_and_name, change, deadline_option, json_option, taken_when, when_options
from amqpjobs.cli.send import payload_from
from amqpjobs.codec import job_from
from amqpjobs.draft import WrittenJob
from amqpjobs.job import Job


@click.command("add", cls=Command, short_help="Add a schedule that the broker keeps.")
@click.argument("words", nargs=-1, required=True, metavar="[TARGET] NAME KIND [JSON | FIELD=VALUE…]")
@when_options
@click.option("--misfire", type=click.Choice(MISFIRES), default="once", show_default=True, help="See docs/beats.md.")
@click.option("--limit", type=int, default=CATCH_UP, show_default=True, metavar="N", help="Of --misfire all.")
@click.option("--grace", type=float, default=GRACE, show_default=True, metavar="SECONDS", help="Late, but not missed.")
@click.option("--overlap", type=click.Choice(OVERLAPS), default="allow", show_default=True, help="See docs/beats.md.")
@click.option(
    "--overlap-limit",
    type=float,
    default=OVERLAP_LIMIT,
    show_default=True,
    metavar="SECONDS",
    help="When a run counts as over whose end nobody tells.",
)
@click.option("--expires", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Of each job.")
@click.option("--queue", metavar="NAME", help="Straight to this queue.")
@click.option("--priority", type=click.IntRange(0, 255), help="Of each job, where its queue has priorities.")
@click.option("--park", is_flag=True, help="While no queue is bound for the kind, let jobs wait until one is.")
@click.option("--replace", is_flag=True, help="Instead of an added one of this name.")
@deadline_option
@json_option
def add(
    words: tuple[str, ...], replace: bool, park: bool, deadline: float, as_json: bool, misfire: Any, **given: Any
) -> None:
    """Add a schedule: when it is due, and the job, validated against its class here and now.

    The broker keeps it, and the beats of the app follow it until it is removed. There can be 10,000, beside those
    that the code declares. The fields of the job are one JSON object, or FIELD=VALUE and FIELD:=JSON as in
    `amqpjobs send`.

    \b
      amqpjobs schedule add services.reports weekly --cron '0 9 * * mon' report.send '{"to": "ada@example.org"}'
      amqpjobs schedule add services.reports pulse --every 30 report.send to=ada@example.org
      amqpjobs schedule add services.reports party --at 2030-01-31T20:00 report.send to=ada@example.org
    """
    names = [word for word in words if "=" not in word and not word.startswith("{")]
    texts = [word for word in words if word.startswith("{")]
    fields = [word for word in words if word not in names and word not in texts]
    if not 2 <= len(names) <= 3 or len(texts) > 1 or words[: len(names)] != tuple(names):
        raise click.UsageError("Say [TARGET] NAME KIND, then the fields: services.reports weekly report.send to=…")
    app, name = app_and_name(names[:-1])
    schedule = taken_when(given)
    if schedule is None:
        raise click.UsageError("When? Say --cron EXPRESSION, --every SECONDS or --at TIME.")
    _, contract = contract_of(names[-1], _contracts(app))
    job: Job[Any] = job_from(contract, payload_from(contract, texts[0] if texts else None, fields))
    # The names of the options above are those of TickOptions.
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if park:
        options["on_unroutable"] = "park"
    change(
        app,
        lambda schedules: schedules.add(
            name, schedule, job=job, misfire=misfire, replace=replace, deadline=deadline, **options
        ),
        "added",
        as_json=as_json,
    )


def _contracts(app: App[Any]) -> Sequence[Contract]:
    """The classes that an app works on, and those that it schedules."""
    found = [handler.job for handler in app.registry.handlers]
    found += [type(each.job) for each in app.schedules if not isinstance(each.job, WrittenJob)]
    return [(app, job) for job in dict.fromkeys(found)]
