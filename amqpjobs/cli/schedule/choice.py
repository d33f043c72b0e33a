"""Which app and which schedule a command means, and how its wishes are told."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import click
from rich.text import Text

from amqpjobs.app import App
from amqpjobs.beat.cron import cron
from amqpjobs.beat.every import at, every
from amqpjobs.beat.refined import Refinable
from amqpjobs.beat.schedules import ANSWER_WITHIN, ScheduleChange, Schedules
from amqpjobs.beat.zone import require_zone
from amqpjobs.cli.common import load_apps, run_async
from amqpjobs.cli.console import out
from amqpjobs.codec import dumps
from amqpjobs.errors import DefinitionError

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
deadline_option = click.option(
    "--deadline",
    type=click.FloatRange(0, min_open=True),
    default=ANSWER_WITHIN,
    show_default=True,
    metavar="SECONDS",
    help="How long a beat has to answer.",
)
_WHEN = (
    click.option("--cron", "expression", metavar="EXPRESSION", help="Five fields, as '0 9 * * mon-fri', or @daily."),
    click.option(
        "--seconds", type=click.Choice(["first", "last"]), help="Where they stand in a cron expression of six fields."
    ),
    click.option("--every", "interval", type=float, metavar="SECONDS", help="Each so many seconds, from the epoch on."),
    click.option("--at", "instant", metavar="TIME", help="Once, as 2030-01-31T09:00; in --timezone unless it says."),
    click.option("--timezone", default="UTC", show_default=True, metavar="ZONE", help="As Europe/Berlin."),
    click.option("--from", "start", metavar="TIME", help="Not before this time."),
    click.option("--until", "end", metavar="TIME", help="Only before this time."),
    click.option("--jitter", type=float, metavar="SECONDS", help="Each later by up to so many seconds."),
)
_NAMES = ("expression", "seconds", "interval", "instant", "timezone", "start", "end", "jitter")


def when_options(function: F) -> F:
    """The options that say when; `taken_when` takes what they gave."""
    for option in reversed(_WHEN):
        function = option(function)
    return function


def taken_when(given: dict[str, Any]) -> Refinable | None:
    """The schedule that the options say, taken out of what a command was given; None if they say none."""
    expression, seconds, interval, instant, timezone, start, end, jitter = (given.pop(name) for name in _NAMES)
    said = [each for each in (expression, interval, instant) if each is not None]
    try:
        require_zone(timezone)
        if not said:
            return None
        if len(said) > 1:
            raise DefinitionError("Say one of --cron, --every and --at.")
        schedule: Refinable
        if expression is not None:
            schedule = cron(expression, timezone=timezone, seconds=seconds)
        else:
            schedule = at(time_in(instant, timezone)) if instant is not None else every(interval)
        if start is not None or end is not None:
            schedule = schedule.between(start and time_in(start, timezone), end and time_in(end, timezone))
        return schedule if jitter is None else schedule.jittered(jitter)
    except DefinitionError as error:
        raise click.UsageError(str(error)) from None


def time_in(text: str, timezone: str) -> datetime:
    """A time as people write it, in this zone where it names none. Raises UsageError."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(f"{text!r} is no time; write 2030-01-31T09:00 or 2030-01-31T09:00+01:00.") from None
    return found if found.utcoffset() is not None else found.replace(tzinfo=ZoneInfo(timezone))


def app_and_name(words: Sequence[str]) -> tuple[App[Any], str]:
    """What [TARGET] NAME means; without a TARGET, the app of the settings, or the one that declares it."""
    if not 1 <= len(words) <= 2:
        raise click.UsageError("Say [TARGET] NAME, as in: services.reports report")
    name = words[-1]
    apps = load_apps(words[:-1])
    if len(apps) > 1:
        apps = [app for app in apps if name in names_of(app)] or apps
    if len(apps) > 1:
        raise click.UsageError(f"Name the TARGET of {name!r}: {', '.join(app.name for app in apps)} could be meant.")
    return apps[0], name


def only_app(targets: Sequence[str]) -> App[Any]:
    apps = load_apps(targets)
    if len(apps) > 1:
        raise click.UsageError(f"Name one TARGET: {', '.join(app.name for app in apps)} could be meant.")
    return apps[0]


def names_of(app: App[Any]) -> list[str]:
    return [each.name for each in app.schedules]


def change(app: App[Any], call: Callable[[Schedules], Awaitable[ScheduleChange]], done: str, *, as_json: bool) -> None:
    """Ask for something, and say what became of it."""

    async def run() -> ScheduleChange:
        async with app:
            return await call(app.schedules)

    changed = run_async(run())
    if as_json:
        say_json({"name": changed.name, "done": changed.is_done, "job_id": changed.job_id})
        return
    job = f": job {changed.job_id}" if changed.job_id else ""
    if changed.is_done:
        out.print(Text.assemble((done, "green"), f" {changed.name}{job}"))
    else:
        late = "the next one that leads will honour it" + (" within an hour" if changed.job_id else "")
        out.print(Text.assemble(("recorded", "yellow"), f": no beat answers now; {late} ({changed.name}{job})"))


def say_json(value: Mapping[str, object]) -> None:
    click.echo(dumps(value).decode())
