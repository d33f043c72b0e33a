"""`amqpjobs schedule ls`: how the schedules of an app are, and who leads."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click
from rich.text import Text

from amqpjobs.app import App
from amqpjobs.beat.status import ScheduleOverview, ScheduleStatus
from amqpjobs.cli.command import Command
from amqpjobs.cli.common import run_async
from amqpjobs.cli.console import out
from amqpjobs.cli.schedule.choice import json_option, only_app, say_json
from amqpjobs.logs import printable

_HEAD = ("name", "schedule", "job", "misfire", "state", "last run", "next run", "lag")


@click.command("ls", cls=Command, short_help="List schedules, their last and next runs, and who leads.")
@click.argument("targets", nargs=-1, metavar="[TARGET]")
@json_option
def ls(targets: tuple[str, ...], as_json: bool) -> None:
    """List the schedules of an app, as its code declares them here and as its beats have written it down.

    No beat need run. The last run is the last tick whose job was enqueued; the lag is how late the next one is, which
    is some seconds at most while a beat leads and publishes.

    \b
      amqpjobs schedule ls services.reports
      amqpjobs schedule ls services.reports --json
    """
    app = only_app(targets)
    overview = run_async(_overview(app))
    if as_json:
        say_json(_described(app, overview))
        return
    if overview.schedules:
        for line in _lines(overview):
            out.print(line, markup=False)
    else:
        out.print(f"App {app.name} has no schedules.", markup=False)
    out.print(Text(_leadership(overview), "" if overview.is_led else "yellow"))


async def _overview(app: App[Any]) -> ScheduleOverview:
    async with app:
        return await app.schedules.overview()


def _lines(overview: ScheduleOverview) -> Iterator[str]:
    """Columns that are never cut, however narrow the terminal."""
    rows = [_HEAD, *map(_row, overview.schedules)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for each in overview.schedules:
        if each.problem:
            yield printable(f"{each.name}: {each.problem}")


def _row(status: ScheduleStatus) -> tuple[str, ...]:
    state = "added" if status.is_added else "declared"
    cells = (
        status.name,
        status.schedule,
        status.kind,
        status.misfire,
        state if status.paused_since is None else f"{state}, paused",
        _when(status.last_run),
        _when(status.next_run),
        f"{status.lag:,.1f} s" if status.lag else "",
    )
    return tuple(printable(cell) for cell in cells)


def _leadership(overview: ScheduleOverview) -> str:
    leader = overview.leader
    if leader is None:
        return "A beat is about to lead." if overview.is_led else "No beat runs."
    who, since = f"on {leader.host} (process {leader.pid})", _when(leader.since)
    if overview.is_led:
        return f"The beat {who} leads since {since}."
    return f"No beat runs. The last to lead was that {who}, from {since} on."


def _when(time: datetime | None) -> str:
    return "" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _described(app: App[Any], overview: ScheduleOverview) -> dict[str, object]:
    leader = overview.leader
    known = None if leader is None else {"host": leader.host, "pid": leader.pid, "since": leader.since}
    return {
        "app": app.name,
        "is_led": overview.is_led,
        "leader": known,
        "schedules": [
            {
                "name": each.name,
                "schedule": each.schedule,
                "kind": each.kind,
                "misfire": each.misfire,
                "added": each.is_added,
                "paused_since": each.paused_since,
                "last_run": each.last_run,
                "next_run": each.next_run,
                "lag": each.lag,
                "problem": each.problem,
            }
            for each in overview.schedules
        ],
    }
