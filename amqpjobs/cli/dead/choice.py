"""Which letters a command is about: its options, and the app that says where they are."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import update_wrapper
from typing import Any, TypeVar, cast

import click

from amqpjobs.app import App
from amqpjobs.cli.common import load_apps
from amqpjobs.deadletters import PARKED, UNROUTABLE, Filter, Place, PlaceName, dead_of
from amqpjobs.settings import load_settings

F = TypeVar("F", bound=Callable[..., Any])

_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhdw]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


class Span(click.ParamType[float]):
    """`90`, `30s`, `15m`, `2h`, `1d12h`, `1w`."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value)
        parts = _SPAN.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            self.fail(f"{text!r} is no span of time; write 90, 30s, 15m, 2h, 1d12h or 1w.", param, ctx)
        return sum(float(number) * _UNITS[unit] for number, unit in parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The options that say which letters are meant."""

    queue: str | None = None
    place: PlaceName = PlaceName.DEAD
    where: Filter = field(default_factory=Filter)

    def app(self, targets: Sequence[str]) -> App[Any]:
        """The app that says where the broker is and which queues are meant."""
        if not targets and (self.queue is not None or self.place is not PlaceName.DEAD):
            return App("dead")
        return only_app(targets)

    def places(self, app: App[Any]) -> list[Place]:
        if self.place is not PlaceName.DEAD:
            return [UNROUTABLE if self.place is PlaceName.UNROUTABLE else PARKED]
        if self.queue is not None:
            return [dead_of(self.queue)]
        return [dead_of(queue.name) for queue in app.queues]


def only_app(targets: Sequence[str]) -> App[Any]:
    if not targets and not load_settings().apps:
        raise click.UsageError(
            "Whose dead letters? Name a TARGET, as in `services.email`, or a queue with --queue NAME, or "
            "--place unroutable or parked, or list your apps in pyproject.toml under [tool.amqpjobs]."
        )
    apps = load_apps(targets)
    if len({(app.settings.shown_url, app.settings.namespace) for app in apps}) > 1:
        raise click.UsageError("These TARGETs have different brokers or namespaces; take one at a time.")
    if len(apps) == 1:
        return apps[0]
    names = {queue.name: queue for app in apps for queue in app.queues}
    return App(apps[0].name, queues=names.values(), settings=apps[0].settings)


_PLACE_OPTIONS = (
    click.option("-q", "--queue", metavar="NAME", help="The dead letters of this queue; no TARGET is needed."),
    click.option(
        "--place",
        type=click.Choice([name.value for name in PlaceName]),
        default=PlaceName.DEAD.value,
        show_default=True,
        help="Or delayed jobs that no queue wanted, or jobs parked until their kind is bound.",
    ),
)
_FILTER_OPTIONS = (
    click.option("--id", "ids", multiple=True, metavar="ID", help="A job id; may be given again."),
    click.option("--kind", metavar="KIND", help="Of this kind; `email.*` takes all that begin so."),
    click.option("--reason", metavar="REASON", help="As `attempts_exhausted`; wildcards as for --kind."),
    click.option("--exception", metavar="CLASS", help="The error's class, as `ConnectionError`; wildcards too."),
    click.option("--older-than", type=Span(), metavar="SPAN", help="Dead for longer: 90, 15m, 2h, 1d12h, 1w."),
    click.option("--newer-than", type=Span(), metavar="SPAN", help="Dead for no longer."),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N of a queue. [default: all]"),
)
_FILTERS = ("kind", "reason", "exception", "older_than", "newer_than", "limit")

targets_argument = click.argument("targets", nargs=-1, metavar="[TARGET…]")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
dry_option = click.option("--dry-run", is_flag=True, help="Only say what would be done.")


def choosing(*, by_id: bool = True) -> Callable[[F], F]:
    """The options that choose letters, gathered into one `Chosen`."""
    options = (*_PLACE_OPTIONS, *_FILTER_OPTIONS) if by_id else _PLACE_OPTIONS

    def decorate(function: F) -> F:
        def gathered(**given: Any) -> Any:
            chosen = Chosen(
                queue=given.pop("queue"),
                place=PlaceName(given.pop("place")),
                where=Filter(ids=frozenset(given.pop("ids", ())), **{name: given.pop(name, None) for name in _FILTERS}),
            )
            return function(chosen=chosen, **given)

        # Its name, its help, and what the decorators below it left for click.
        decorated = cast("F", update_wrapper(gathered, function))
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate
