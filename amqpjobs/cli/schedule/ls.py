"""`amqpjobs schedule ls`: how the schedules of an app are, and who leads."""

from datetime import datetime
from typing import Any

import click
from rich.table import Table
from rich.text import Text
from rich_click import RichCommand

from amqpjobs.app import App
from amqpjobs.beat.schedules import Overview, ScheduleStatus
from amqpjobs.cli.common import out, run_async
from amqpjobs.cli.schedule.choice import cell, json_option, only_app, say_json


@click.command("ls", cls=RichCommand, short_help="List schedules, their last and next runs, and who leads.")
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
        out.print(_table(overview))
    else:
        out.print(f"App {app.name} has no schedules.", markup=False)
    out.print(Text(_leadership(overview), "" if overview.beats else "yellow"))


async def _overview(app: App[Any]) -> Overview:
    async with app:
        return await app.schedules.overview()


def _table(overview: Overview) -> Table:
    table = Table(
        "name", "schedule", "job", "misfire", "state", "last run", "next run", "lag", box=None, padding=(0, 2, 0, 0)
    )
    for each in overview.schedules:
        lag = f"{each.lag:,.1f} s" if each.lag else ""
        cells = (each.name, each.schedule, each.kind, each.misfire, _state(each), _when(each.last_run))
        table.add_row(*map(cell, (*cells, _when(each.next_run), lag)))
    return table


def _state(status: ScheduleStatus) -> str:
    words = ["added" if status.is_added else "declared"]
    if status.paused_since is not None:
        words.append(f"paused since {_when(status.paused_since)}")
    if status.problem:
        words.append(status.problem)
    return ", ".join(words)


def _leadership(overview: Overview) -> str:
    leader = overview.leader
    last = "" if leader is None else f"{leader.host}, process {leader.pid}"
    if not overview.beats:
        return (
            f"No beat runs. The last to lead was {last}, from {_when(leader.since)} on." if leader else "No beat runs."
        )
    others = f", and {overview.beats - 1} more would take over" if overview.beats > 1 else ""
    return f"{last} leads since {_when(leader.since)}{others}." if leader else "A beat is about to lead."


def _when(time: datetime | None) -> str:
    return "" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _described(app: App[Any], overview: Overview) -> dict[str, object]:
    leader = overview.leader
    known = None if leader is None else {"host": leader.host, "pid": leader.pid, "since": leader.since}
    return {
        "app": app.name,
        "beats": overview.beats,
        "leader": known if overview.beats else None,
        "last_leader": known,
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
