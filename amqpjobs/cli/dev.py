"""`amqpjobs dev`: a worker that is replaced when its code changes, and a broker where there is none.

This process holds the embedded broker, if one is needed, and watches the files; the worker is a process of its own,
kept by the supervisor that `run --processes` has. A change starts a second one beside the first: only when the new
code consumes, the old one drains and ends. Code that does not start costs nothing, and modules are never reloaded
in place, where old and new objects would mix.
"""

import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from amqpjobs.app import App
from amqpjobs.beat.beat import Beat
from amqpjobs.cli.broker import HOST, PORT, PROFILE, PROFILES, Listening, embedded
from amqpjobs.cli.changes import NotWatchedError, places_of, watching
from amqpjobs.cli.check import describe, show
from amqpjobs.cli.command import Command
from amqpjobs.cli.common import (
    IMPORT,
    TOPOLOGY,
    UNCLEAN,
    USAGE,
    find_modules_here,
    load_apps,
    names_of,
    run_async,
)
from amqpjobs.cli.console import out
from amqpjobs.cli.example import example_of
from amqpjobs.cli.narrator import Narrator
from amqpjobs.cli.whereabouts import Found, Nowhere, find_broker
from amqpjobs.clock import SystemClock
from amqpjobs.events import Events
from amqpjobs.logs import log_events, set_up_logging
from amqpjobs.settings import Settings, environment_for, load_settings, masked
from amqpjobs.worker import Worker
from amqpjobs.worker.ending import Limits
from amqpjobs.worker.shift import Shift
from amqpjobs.worker.supervised import Supervised
from amqpjobs.worker.supervisor import Supervisor, interpreter

#: Commands that are shown, of each app.
_MOST_EXAMPLES = 3
#: Watched folders that are shown.
_MOST_FOLDERS = 4


@dataclass(frozen=True, slots=True)
class Site:
    """The broker to develop on, and what other terminals must say to find it."""

    #: None: where the settings say.
    url: str | None
    #: Before each command there.
    prefix: str


@click.command("dev", cls=Command, short_help="Work while you write.")
@click.argument("targets", nargs=-1, metavar="TARGET…")
@click.option(
    "-c", "--concurrency", type=click.IntRange(1, 10_000), help="Jobs at once, for each TARGET. [default: 10]"
)
@click.option(
    "--drain-timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="What runs may finish so long after a change or a stop. [default: 25, AMQPJOBS_GRACE]",
)
@click.option("--no-reload", is_flag=True, help="Do not watch the files.")
@click.option(
    "--profile",
    type=click.Choice(PROFILES),
    default=PROFILE,
    show_default=True,
    help="The RabbitMQ version that the embedded broker behaves like.",
)
@click.option("--supervised", type=int, nargs=2, hidden=True)  # as of `run`
@click.option("--introduce", metavar="PREFIX", hidden=True)  # show the apps, and commands that begin so
def command(
    targets: tuple[str, ...],
    concurrency: int | None,
    drain_timeout: float | None,
    no_reload: bool,
    profile: str,
    supervised: tuple[int, int] | None,
    introduce: str | None,
) -> int:
    """Work off the jobs of services while you write them, and enqueue those of their schedules, until Ctrl-C.

    A changed file (*.py, pyproject.toml, .env) starts a worker with the new code; once that works, the old one
    finishes what it runs and ends. If it cannot start, you see why, and the old one goes on.

    The broker is the configured one (AMQPJOBS_URL, or url in pyproject.toml), always and only. Without one,
    it is a RabbitMQ on localhost; if there is none either, an embedded broker, whose jobs are lost when this ends.
    `amqpjobs run` never uses that. Exit codes are those of `amqpjobs run`.

    \b
      amqpjobs dev services.email
      amqpjobs dev services.email services.images --profile 3.10
      amqpjobs dev                                   (apps from pyproject.toml)
    """
    settings = load_settings()
    set_up_logging(settings)
    names = names_of(targets)
    if supervised is not None:
        link = Supervised(*supervised)
        apps = load_apps(names)
        if introduce is not None:
            _introduce(apps, names if targets else [], introduce)
        return _work(apps, link, concurrency=concurrency, grace=drain_timeout)
    grace = settings.grace if drain_timeout is None else drain_timeout
    return run_async(_develop(names, settings, grace, profile, reloads=not no_reload))


async def _develop(names: Sequence[str], settings: Settings, grace: float, profile: str, *, reloads: bool) -> int:
    """Have a worker, and replace it with each change; the exit code."""
    clock, events = SystemClock(), Events()
    async with AsyncExitStack() as stack:
        site = await _settle(await find_broker(settings, clock), profile, stack)
        supervisor = Supervisor(
            Commands(site.prefix),
            count=1,
            clock=clock,
            events=events,
            grace=grace,
            hopeless=frozenset({USAGE, IMPORT, TOPOLOGY}),
            unclean=UNCLEAN,
            environment=None if site.url is None else environment_for(site.url),
        )
        narrator = Narrator(events, supervisor.reload, Path.cwd())
        if reloads:
            await _watch(names, narrator, stack)
        return await supervisor.run()


async def _settle(found: Found | Nowhere, profile: str, stack: AsyncExitStack) -> Site:
    """Take the broker that was found, or start one, and say which."""
    if isinstance(found, Found):
        _tell_of(found)
        return Site(None, "")
    listening = Listening(profile=profile, host=HOST, port=0 if found.instead else PORT, user="guest", password="guest")
    try:
        broker = await stack.enter_async_context(embedded(listening))
    except OSError:  # somebody was faster, or it is taken on this address only
        broker = await stack.enter_async_context(embedded(replace(listening, port=0)))
    out.print(
        Text.assemble(
            ("No broker is configured (AMQPJOBS_URL), and no RabbitMQ is on localhost: ", "yellow"),
            ("this is the EMBEDDED BROKER", "yellow bold"),
            (
                f", which behaves like RabbitMQ {profile}.\nIt is in memory only: when this ends, ALL JOBS IN IT ARE "
                "LOST. Reloads lose none.\n",
                "yellow",
            ),
            f"Broker  {broker.url}",
        )
    )
    if found.instead:
        out.print(f"        not on port {PORT}, which something else has: {found.instead}", markup=False)
    return Site(broker.url, "" if broker.port == PORT else f"AMQPJOBS_URL={broker.url} ")


def _tell_of(found: Found) -> None:
    if found.is_configured:
        why = "as configured; other terminals need the same AMQPJOBS_URL"
    elif found.is_embedded:
        why = "the embedded broker of another `amqpjobs dev` or `amqpjobs broker`, in memory only"
    else:
        why = "on localhost; no URL is configured"
    out.print(f"Broker  {masked(found.url)}: {found.name}, {why}", markup=False)


async def _watch(names: Sequence[str], narrator: Narrator, stack: AsyncExitStack) -> None:
    find_modules_here()
    places = places_of([name.partition(":")[0] for name in names], Path.cwd())
    try:
        await stack.enter_async_context(watching(places, narrator.changed, narrator.lost))
    except NotWatchedError as error:
        out.print(Text.assemble(("Changes are not taken up: ", "yellow"), str(error)))
    else:
        found = sorted({str(place) for place in (*places.folders, *places.trees)})
        shown = ", ".join(found[:_MOST_FOLDERS]) + (" and more" if len(found) > _MOST_FOLDERS else "")
        out.print(f"Reload  when a file changes in {shown}", markup=False)


class Commands:
    """The command lines of the workers; the first one introduces what it found."""

    def __init__(self, prefix: str) -> None:
        self._words = ["--introduce", prefix]

    def __call__(self, number: int, fd: int) -> Sequence[str]:
        words, self._words = self._words, []
        python, *rest = interpreter()
        # No bytecode: a file that changed twice within a second looks the same to its cache.
        return [python, "-B", *rest, "dev", "--supervised", str(fd), str(number), *words, *sys.argv[2:]]


def _introduce(apps: Sequence[App[Any]], targets: Sequence[str], prefix: str) -> None:
    """Show what these apps would run, and how to enqueue that; no `targets`: pyproject.toml names them."""
    for app in apps:
        show(describe(app))
    out.print("\nEnqueue from another terminal:")
    named = [[target] for target in targets] or [list[str]() for _ in apps]
    for app, target in zip(apps, named, strict=True):
        for handler in app.registry.handlers[:_MOST_EXAMPLES]:
            words = ["amqpjobs", "send", *target, example_of(handler.job)]
            out.print(f"  {prefix}{' '.join(words)}", markup=False)
    out.print("")


def _work(apps: Sequence[App[Any]], link: Supervised, *, concurrency: int | None, grace: float | None) -> int:
    for app in apps:
        log_events(app.events)
    workers = [Worker(app, concurrency=concurrency, grace=grace) for app in apps]
    beats = [Beat(app) for app in apps if app.has_beats]
    cut_short = run_async(Shift(workers, apps[0].clock, Limits(), link, beside=beats).run())
    return UNCLEAN if cut_short else 0
