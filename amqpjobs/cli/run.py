"""`amqpjobs run`: a worker process, or several with a supervisor."""

from collections.abc import Sequence
from typing import Any

import click

from amqpjobs.app import App
from amqpjobs.cli.command import Command
from amqpjobs.cli.common import UNCLEAN, load_apps, run_async
from amqpjobs.cli.health import health_option, run_shift
from amqpjobs.logs import log_events, set_up_logging
from amqpjobs.settings import load_settings, size_of
from amqpjobs.worker import Worker
from amqpjobs.worker.ending import Limits
from amqpjobs.worker.shift import Companion, Shift
from amqpjobs.worker.supervised import Supervised


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else size_of(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


@click.command("run", cls=Command, short_help="Work off the jobs of services.")
@click.argument("targets", nargs=-1, metavar="TARGET…")
@click.option(
    "-c", "--concurrency", type=click.IntRange(1, 10_000), help="Jobs at once, for each TARGET. [default: 10]"
)
@click.option("-q", "--queue", "queues", multiple=True, metavar="NAME", help="Only this queue; may be given again.")
@click.option("--strict", is_flag=True, help="Take from a queue only when the ones before it are empty.")
@click.option(
    "--drain-timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="What runs may finish so long after the stop was asked for. [default: 25, AMQPJOBS_GRACE]",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 1_000),
    metavar="N",
    help="So many processes, each with its own --concurrency; one that ends is replaced. "
    "[default: one, and no supervisor; AMQPJOBS_WORKER_PROCESSES]",
)
@click.option(
    "--max-jobs",
    type=click.IntRange(1),
    metavar="N",
    help="Stop, or be replaced, after N jobs (attempts), and what runs beside the last one. [AMQPJOBS_MAX_JOBS]",
)
@click.option(
    "--max-memory",
    callback=_size,
    metavar="SIZE",
    help="Stop, or be replaced, when the process holds more after a job: 512M, 1.5G. Looked at every second; processes "
    "of handlers with run_in='process' do not count; without /proc, the peak does. [AMQPJOBS_MAX_MEMORY]",
)
@click.option(
    "--burst",
    is_flag=True,
    help="Stop when the queues are empty and nothing runs here. Delayed jobs and retries that are not due yet, and "
    "what other workers run, do not count.",
)
@click.option(
    "--beat",
    "has_beat",
    is_flag=True,
    help="Also enqueue the jobs of the services' schedules, as `amqpjobs beat` does; of all beats one leads.",
)
@health_option
@click.option("--supervised", type=int, nargs=2, hidden=True)  # the socket to the supervisor, and our number
def command(
    targets: tuple[str, ...],
    concurrency: int | None,
    queues: tuple[str, ...],
    strict: bool,
    drain_timeout: float | None,
    processes: int | None,
    max_jobs: int | None,
    max_memory: int | None,
    burst: bool,
    has_beat: bool,
    health: str | None,
    supervised: tuple[int, int] | None,
) -> int:
    """Work off the jobs of services until SIGTERM or SIGINT (Ctrl-C).

    Then it takes nothing new, hands back what has not started, and gives what runs 25 seconds
    (--drain-timeout) to finish. A second signal cuts short what runs and hands it back. Exit code 0 after a
    clean stop, 6 when something was cut short.

    With --processes, SIGHUP replaces the processes one by one, each new one before its old one stops.

    \b
      amqpjobs run services.email
      amqpjobs run services.email services.images --concurrency 50
      amqpjobs run services.email --queue bulk
      amqpjobs run services.email --processes 4 --max-memory 512M --max-jobs 100000
      amqpjobs run services.email --drain-timeout 300
      amqpjobs run services.reports --beat
      amqpjobs run services.email --burst            in a cron job or in CI
    """
    settings = load_settings()
    count = processes or settings.worker_processes
    if count is not None and supervised is None:
        from amqpjobs.cli.supervision import supervise  # the worker processes themselves need nothing of it

        grace = settings.grace if drain_timeout is None else drain_timeout
        return supervise(count, settings, grace, health or settings.health)
    link = None if supervised is None else Supervised(*supervised)
    set_up_logging(settings, worker=None if link is None else link.number)
    apps = load_apps(targets)
    if queues and len(apps) > 1:
        raise click.UsageError("--queue names queues of one service; run each TARGET in a process of its own.")
    for app in apps:
        log_events(app.events)
    workers = [
        Worker(app, concurrency=concurrency, queues=queues or None, strict=strict, grace=drain_timeout) for app in apps
    ]
    limits = Limits(max_jobs or settings.max_jobs, max_memory or settings.max_memory, burst)
    shift = Shift(workers, apps[0].clock, limits, link, beside=_beats_of(apps) if has_beat else [])
    cut_short = run_async(run_shift(shift, health or settings.health, settings.health_token, link))
    return UNCLEAN if cut_short else 0


def _beats_of(apps: Sequence[App[Any]]) -> Sequence[Companion]:
    from amqpjobs.cli.beat import beats_of  # a worker alone knows nothing of schedules

    return beats_of(apps)
