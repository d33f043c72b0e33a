"""`amqpjobs beat`: a process that enqueues what is due, or waits for its turn to do so."""

from collections.abc import Sequence
from typing import Any

import click

from amqpjobs.app import App
from amqpjobs.beat.beat import Beat
from amqpjobs.cli.command import Command
from amqpjobs.cli.common import load_apps, run_async
from amqpjobs.cli.health import health_option, run_shift
from amqpjobs.logs import log_events, set_up_logging
from amqpjobs.settings import load_settings
from amqpjobs.worker.ending import Limits
from amqpjobs.worker.shift import Shift


@click.command("beat", cls=Command, short_help="Enqueue the jobs of services' schedules.")
@click.argument("targets", nargs=-1, metavar="TARGET…")
@health_option
def command(targets: tuple[str, ...], health: str | None) -> int:
    """Enqueue the jobs of services' schedules until SIGTERM or SIGINT (Ctrl-C).

    Run it as often as you like: for each service one beat leads, and another takes over when it is gone.

    \b
      amqpjobs beat services.reports
      amqpjobs run services.reports --beat           a worker and a beat in one process
    """
    settings = load_settings()
    set_up_logging(settings)
    apps = load_apps(targets)
    for app in apps:
        log_events(app.events)
    shift = Shift([], apps[0].clock, Limits(), beside=beats_of(apps))
    return run_async(run_shift(shift, health or settings.health, settings.health_token))


def beats_of(apps: Sequence[App[Any]]) -> list[Beat]:
    """One for each service that has schedules. Raises UsageError when none has."""
    beats = [Beat(app) for app in apps if app.has_beats]
    if not beats:
        names = ", ".join(repr(app.name) for app in apps)
        raise click.UsageError(
            f"{names} has no schedule. Declare one beside a job: @app.schedule(every(60), job=CleanUp()). "
            "For those that are added at runtime alone: App(…, takes_schedules=True)."
        )
    return beats
