"""`amqpjobs schedule next`: the coming instants of schedules, on the wall of any zone. It needs no broker."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import click

from amqpjobs.app import App
from amqpjobs.beat.refined import Refinable
from amqpjobs.beat.schedule import Schedule, anchor, preview
from amqpjobs.beat.zone import require_zone
from amqpjobs.cli.command import Command
from amqpjobs.cli.common import load_apps
from amqpjobs.cli.console import out
from amqpjobs.cli.schedule.choice import json_option, names_of, say_json, taken_when, time_in, when_options
from amqpjobs.clock import SystemClock
from amqpjobs.errors import DefinitionError
from amqpjobs.job import hint
from amqpjobs.settings import load_settings

Named = tuple[str, Schedule]


@click.command("next", cls=Command, short_help="Preview the coming instants of schedules.")
@click.argument("words", nargs=-1, metavar="[TARGET] [NAME]")
@click.option("-n", "--count", type=click.IntRange(1, 1000), default=5, show_default=True, help="So many of each.")
@click.option("--after", metavar="TIME", help="Not from now on, but after this time.")
@click.option("--show-in", metavar="ZONE", help="The zone to show them in. [default: --timezone]")
@when_options
@json_option
def next_(
    words: tuple[str, ...], count: int, after: str | None, show_in: str | None, as_json: bool, **given: Any
) -> None:
    """Show when schedules would be due: those that an app declares, or one that the options say.

    \b
      amqpjobs schedule next services.reports
      amqpjobs schedule next services.reports report -n 10 --timezone Europe/Berlin
      amqpjobs schedule next --cron '0 9 * * mon-fri' --timezone America/New_York --show-in Europe/Berlin
    """
    timezone = given["timezone"]
    schedule = taken_when(given)
    zone = _zone(show_in or timezone)
    now = SystemClock().now() if after is None else time_in(after, timezone)
    found = _declared(words) if schedule is None else _said(schedule, words)
    for name, each in found:
        instants = list(preview(anchor(each, now, name), now, count))
        if as_json:
            say_json({"name": name, "schedule": str(each), "next": [time.astimezone(zone) for time in instants]})
        else:
            _show(name, each, instants, zone)


def _show(name: str, schedule: Schedule, instants: Sequence[datetime], zone: ZoneInfo) -> None:
    out.print(f"{name}: {schedule}" if name else str(schedule), markup=False)
    for instant in instants:
        out.print(f"  {instant.astimezone(zone):%a %Y-%m-%d %H:%M:%S %Z %z}", markup=False)
    if not instants:
        out.print("  never again")


def _said(schedule: Refinable, words: Sequence[str]) -> list[Named]:
    if words:
        raise click.UsageError("Say a TARGET, or when with --cron, --every or --at; not both.")
    return [("", schedule)]


def _declared(words: Sequence[str]) -> list[Named]:
    if len(words) > 2:
        raise click.UsageError("Say [TARGET] [NAME], as in: services.reports report")
    if len(words) == 1 and load_settings().apps:
        apps = load_apps([])
        if any(words[0] in names_of(app) for app in apps):
            return _of(apps, words[0])
    return _of(load_apps(words[:1]), words[1] if len(words) == 2 else None)


def _of(apps: Sequence[App[Any]], name: str | None) -> list[Named]:
    every = [(each.name, each.schedule) for app in apps for each in app.schedules]
    found = [each for each in every if name in (None, each[0])]
    if name is not None and not found:
        raise click.UsageError(f"No schedule {name!r} is declared.{hint(name, [each for each, _ in every])}")
    if not found:
        raise click.UsageError("No schedule is declared. Those that were added are shown by: amqpjobs schedule ls")
    return found


def _zone(name: str) -> ZoneInfo:
    try:
        require_zone(name)
    except DefinitionError as error:
        raise click.UsageError(str(error)) from None
    return ZoneInfo(name)
