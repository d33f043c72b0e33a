"""`amqpjobs dead`: what waits for a person, and the way back."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import update_wrapper
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from rich_click import RichCommand, RichGroup

from amqpjobs.app import App
from amqpjobs.cli.common import FAILED, err, load_apps, load_contracts, out, run_async
from amqpjobs.codec import dumps, job_from, loads
from amqpjobs.deadletters import (
    ALREADY_THERE,
    PARKED,
    UNROUTABLE,
    DeadLetter,
    DeadLetters,
    Filter,
    Group,
    Groups,
    LetterError,
    Place,
    PlaceName,
    Tally,
    dead_of,
    to_json,
)
from amqpjobs.errors import AmqpJobsError, InvalidArgumentsError
from amqpjobs.job import Job, hint, options_of
from amqpjobs.logs import printable
from amqpjobs.settings import load_settings

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

#: What a shell reports for a command that Ctrl-C ended.
INTERRUPTED = 130
#: Seconds between two lines of progress where there is no terminal.
TELL_EVERY = 2.0
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
        return _only_app(targets)

    def places(self, app: App[Any]) -> list[Place]:
        if self.place is not PlaceName.DEAD:
            return [UNROUTABLE if self.place is PlaceName.UNROUTABLE else PARKED]
        if self.queue is not None:
            return [dead_of(self.queue)]
        return [dead_of(queue.name) for queue in app.queues]


def _only_app(targets: Sequence[str]) -> App[Any]:
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


def choosing(*, by_id: bool = True) -> Callable[[F], F]:
    """The options that choose letters, gathered into one `Chosen`."""
    options = [
        click.option("-q", "--queue", metavar="NAME", help="The dead letters of this queue; no TARGET is needed."),
        click.option(
            "--place",
            type=click.Choice([name.value for name in PlaceName]),
            default=PlaceName.DEAD.value,
            show_default=True,
            help="Or delayed jobs that no queue wanted, or jobs parked until their kind is bound.",
        ),
    ]
    if by_id:
        options += [
            click.option("--id", "ids", multiple=True, metavar="ID", help="A job id; may be given again."),
            click.option("--kind", metavar="KIND", help="Of this kind; `email.*` takes all that begin so."),
            click.option("--reason", metavar="REASON", help="As `attempts_exhausted`; wildcards as for --kind."),
            click.option(
                "--exception", metavar="CLASS", help="The error's class, as `ConnectionError`; wildcards too."
            ),
            click.option("--older-than", type=Span(), metavar="SPAN", help="Dead for longer: 90, 15m, 2h, 1d12h, 1w."),
            click.option("--newer-than", type=Span(), metavar="SPAN", help="Dead for no longer."),
            click.option(
                "--limit", type=click.IntRange(1), metavar="N", help="Only the first N of a queue. [default: all]"
            ),
        ]

    def decorate(function: F) -> F:
        def gathered(**given: Any) -> Any:
            names = ("kind", "reason", "exception", "older_than", "newer_than", "limit")
            chosen = Chosen(
                queue=given.pop("queue"),
                place=PlaceName(given.pop("place")),
                where=Filter(ids=frozenset(given.pop("ids", ())), **{name: given.pop(name, None) for name in names}),
            )
            return function(chosen=chosen, **given)

        # Its name, its help, and what the decorators below it left for click.
        decorated = cast("F", update_wrapper(gathered, function))
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
_targets = click.argument("targets", nargs=-1, metavar="[TARGET…]")
_dry = click.option("--dry-run", is_flag=True, help="Only say what would be done.")


@click.group("dead", cls=RichGroup, short_help="List, show, requeue, edit, purge, export and import dead letters.")
def command() -> None:
    """Dead letters: jobs that ended without success, kept with their reason until you decide.

    Two other places are looked into with the same commands: `--place unroutable` (delayed jobs that no queue
    wanted when they were due) and `--place parked` (jobs that wait for a first worker of their kind).

    Every command reads the whole queue once, since a queue has no index: some seconds for 10,000. Looking
    changes nothing, not even the order. What is moved is confirmed in its new place before it leaves the old
    one: whatever kills the command, nothing is lost, and it may be run again. Run one at a time on a queue.

    \b
      amqpjobs dead ls services.email --group
      amqpjobs dead show services.email 0197a3e2-7c51-7b1f-9d3e-0f5a6b7c8d9e
      amqpjobs dead requeue services.email --exception ConnectionError --newer-than 2h
    """


@command.command("ls", cls=RichCommand, short_help="List letters, or group them.")
@_targets
@choosing()
@click.option("--group", "grouped", is_flag=True, help="Count by reason and exception.")
@click.option("--rows", type=click.IntRange(0), default=100, show_default=True, help="Rows to show; 0 shows all.")
@_json
def ls(targets: tuple[str, ...], chosen: Chosen, grouped: bool, rows: int, as_json: bool) -> int:
    """List what is there, the oldest first. Nothing is changed.

    With --json each letter is one line, with --group each group.

    \b
      amqpjobs dead ls services.email
      amqpjobs dead ls services.email --group
      amqpjobs dead ls --queue email --reason attempts_exhausted --older-than 2d --json
    """
    app, groups, table = chosen.app(targets), Groups(), _letter_table()

    def visit(letter: DeadLetter) -> None:
        if grouped:
            groups.add(letter)
        elif as_json:
            _say_json(_described(letter))
        elif not rows or table.row_count < rows:
            _add_row(table, letter)

    run = Run(app, chosen.places(app), "read", quiet=as_json)
    run.each(lambda letters, place: letters.scan(place, visit, chosen.where, tally=run.tally))
    if grouped:
        _show_groups(list(groups), as_json)
    elif table.row_count:
        out.print(table)
        if run.tally.chosen > table.row_count:
            out.print(f"… and {run.tally.chosen - table.row_count:,} more: --rows 0 shows all, --group counts them")
    if not as_json:
        _say(f"{run.tally.chosen:,} of {run.tally.seen:,} in {run.where}")
    return run.code()


@command.command("show", cls=RichCommand, short_help="Show one letter whole.")
@click.argument("words", nargs=-1, required=True, metavar="[TARGET…] ID")
@choosing(by_id=False)
@_json
def show(words: tuple[str, ...], chosen: Chosen, as_json: bool) -> int:
    """Show all of one letter: why it died, its traceback, headers and payload.

    ID is the job id, as `ls` shows it. Copies with the same id are all shown.

    \b
      amqpjobs dead show services.email 0197a3e2-7c51-7b1f-9d3e-0f5a6b7c8d9e
    """
    _, found, run = _found(words, chosen)
    for letter in found:
        if as_json:
            _say_json(_described(letter) | {"body": _text_of(letter), "headers": to_json(letter.headers)})
        else:
            _show(letter)
    return run.code()


@command.command("requeue", cls=RichCommand, short_help="Run letters again.")
@_targets
@choosing()
@_dry
@click.option("--even-expired", is_flag=True, help="Also what has expired; its expiry is removed.")
@_json
def requeue(targets: tuple[str, ...], chosen: Chosen, dry_run: bool, even_expired: bool, as_json: bool) -> int:
    """Put letters back into the queue they died in, to run again from attempt 1.

    Without a filter all are meant. From `unroutable` and `parked` they go by their kind again; who is still
    wanted by nobody stays. The job id stays, and headers tell how often and from which message it was requeued.

    Ctrl-C ends after what is under way and says how far it got. After a crash up to 32 may be both requeued and
    still here: running this again would run those twice.

    \b
      amqpjobs dead requeue services.email --exception ConnectionError --newer-than 2h --dry-run
      amqpjobs dead requeue services.email --kind 'email.*'
      amqpjobs dead requeue --queue email --id 0197a3e2-7c51-7b1f-9d3e-0f5a6b7c8d9e
      amqpjobs dead requeue --place unroutable
    """
    app = chosen.app(targets)
    run = Run(app, chosen.places(app), "would be requeued" if dry_run else "requeued", quiet=as_json)
    if dry_run:
        run.each(lambda letters, place: letters.scan(place, _nothing, chosen.where, tally=run.tally))
    else:
        run.each(
            lambda letters, place: letters.requeue(place, chosen.where, even_expired=even_expired, tally=run.tally)
        )
    return run.end(as_json)


@command.command("purge", cls=RichCommand, short_help="Delete letters for good.")
@_targets
@choosing()
@click.option("--all", "everything", is_flag=True, help="Without a filter: everything.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@_dry
@_json
def purge(targets: tuple[str, ...], chosen: Chosen, everything: bool, yes: bool, dry_run: bool, as_json: bool) -> int:
    """Delete letters for good. Needs a filter or --all, and asks first.

    Keep a copy with `amqpjobs dead export`. To have the broker delete them after some time by itself, declare
    the queue with Queue("email", dead_retention=…).

    \b
      amqpjobs dead purge services.email --older-than 30d
      amqpjobs dead purge --queue email --all --yes
    """
    if chosen.where.is_empty and not everything:
        raise click.UsageError("Say which: --reason, --kind, --exception, --older-than, …; or --all for everything.")
    app = chosen.app(targets)
    looked, seen = Run(app, chosen.places(app), "would be deleted", quiet=as_json), dict[Place, int]()

    async def look(letters: DeadLetters, place: Place) -> None:
        before = looked.tally.seen
        await letters.scan(place, _nothing, chosen.where, tally=looked.tally)
        seen[place] = looked.tally.seen - before

    def where(place: Place) -> Filter:
        """What was counted, and not what came in while somebody was asked."""
        return replace(chosen.where, limit=seen.get(place, chosen.where.limit))

    if dry_run or not yes:
        looked.each(look)
        if dry_run or looked.tally.is_stopped or not looked.tally.chosen:
            return looked.end(as_json)
        if not sys.stdin.isatty():
            raise click.UsageError(f"{looked.tally.chosen:,} would be deleted. Nobody can be asked here: say --yes.")
        if not click.confirm(f"Delete {looked.tally.chosen:,} of {looked.tally.seen:,} in {looked.where} for good?"):
            _say("nothing was deleted")
            return FAILED
    run = Run(app, chosen.places(app), "deleted", quiet=as_json)
    run.each(lambda letters, place: letters.purge(place, where(place), tally=run.tally))
    return run.end(as_json)


@command.command("edit", cls=RichCommand, short_help="Mend the payload of one letter.")
@click.argument("words", nargs=-1, required=True, metavar="[TARGET…] ID")
@choosing(by_id=False)
@click.option("--keep", is_flag=True, help="Leave it among the dead letters, at the end, instead of requeueing it.")
@click.option("--unchecked", is_flag=True, help="Do not hold the payload against its job class.")
def edit(words: tuple[str, ...], chosen: Chosen, keep: bool, unchecked: bool) -> int:
    """Open the payload of one letter in $EDITOR, check it against its job class, and requeue the job.

    The letter stays where it is until you save and close; leave without saving, or change nothing, and nothing
    happens. The job id stays; a header tells the message it was edited from.

    \b
      EDITOR=nano amqpjobs dead edit services.email 0197a3e2-7c51-7b1f-9d3e-0f5a6b7c8d9e
    """
    app, found, run = _found(words, chosen)
    if not found:
        return run.code()
    letter = found[0]
    contract = None if unchecked else _contract(words[:-1], letter)
    body = _edited(letter, contract)
    if body is None:
        _say("nothing changed")
        return 0

    async def change(letters: DeadLetters, place: Place) -> bool:
        return await letters.edit(letter, body, requeue=not keep)

    changed = Run(app, [letter.place], "edited", quiet=True).each(change)
    if not all(changed):
        raise LetterError(
            f"{letter.job_id} is no longer in {letter.place}: somebody else moved it. Nothing was changed."
        )
    _say(
        f"edited {printable(letter.job_id or '')}" + (" and left where it was, at the end" if keep else " and requeued")
    )
    return 0


@command.command("export", cls=RichCommand, short_help="Write letters to a file.")
@click.argument("words", nargs=-1, required=True, metavar="[TARGET…] FILE|-")
@choosing()
@_dry
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
def export(words: tuple[str, ...], chosen: Chosen, dry_run: bool, force: bool) -> int:
    """Write letters as JSON lines, with all that `import` needs to make the same messages again. They stay.

    - writes to standard output. FILE appears only when it is complete, readable by you alone: payloads may be
    secret.

    \b
      amqpjobs dead export services.email letters.jsonl
      amqpjobs dead export --queue email --reason unreadable - | jq .body
    """
    app, name = chosen.app(words[:-1]), words[-1]
    run = Run(
        app, chosen.places(app), "would be exported" if dry_run else "exported", quiet=False, to_stderr=name == "-"
    )
    if dry_run:
        run.each(lambda letters, place: letters.scan(place, _nothing, chosen.where, tally=run.tally))
        return run.end(False)
    with _written(name, force, run.tally) as file:
        run.each(lambda letters, place: letters.export(place, file.write, chosen.where, tally=run.tally))
    return run.end(False)


@command.command("import", cls=RichCommand, short_help="Put exported letters back.")
@click.argument("words", nargs=-1, required=True, metavar="[TARGET…] FILE|-")
@_dry
@_json
def import_(words: tuple[str, ...], dry_run: bool, as_json: bool) -> int:
    """Put exported letters back into the places they came from, at the end; `requeue` then runs them.

    What is there already is left out, so that an import that was cut short may be run again. A line that
    cannot be read stops it before anything is imported. - reads from standard input.

    \b
      amqpjobs dead import letters.jsonl
      grep 'ada@example.org' letters.jsonl | amqpjobs dead import -
    """
    app = _only_app(words[:-1]) if words[:-1] else App("dead")
    try:
        text = sys.stdin.read() if words[-1] == "-" else Path(words[-1]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{words[-1]} cannot be read: {error}") from None
    run = Run(app, [UNROUTABLE], "would be imported" if dry_run else "imported", quiet=as_json)
    run.where = words[-1]
    run.each(lambda letters, _: letters.import_lines(text.split("\n"), dry_run=dry_run, tally=run.tally))
    return run.end(as_json)


class Run:
    """One pass over places: progress on the way, a total at the end, Ctrl-C in between."""

    def __init__(
        self, app: App[Any], places: Sequence[Place], verb: str, *, quiet: bool, to_stderr: bool = False
    ) -> None:
        self.tally = Tally()
        self.where = ", ".join(map(str, places)) if len(places) < 4 else f"{len(places)} queues"
        self._app = app
        self._places = places
        self._verb = verb
        self._quiet = quiet
        self._say = _say_err if to_stderr else _say

    def each(self, act: Callable[[DeadLetters, Place], Awaitable[T]]) -> list[T]:
        """Do it with each place; what went wrong is raised after saying how far it got."""
        try:
            return run_async(self._each(act))
        except (AmqpJobsError, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError):
                _say_err(f"stopped at once: {self.tally.done:,} {self._verb} of {self.tally.seen:,} looked at")
                self._tell_doubt()
                raise click.Abort from None
            if self.tally.seen and not self._quiet:
                _say_err(f"{self.tally.done:,} {self._verb} of {self.tally.seen:,} looked at, before this:")
            self._tell_doubt()
            raise

    def code(self) -> int:
        if self.tally.is_stopped:
            _say_err("stopped before the end; the rest is as it was")
            return INTERRUPTED
        return FAILED if set(self.tally.stayed) - {ALREADY_THERE} else 0

    def end(self, as_json: bool) -> int:
        """The total."""
        tally, would = self.tally, self._verb.startswith("would")
        done = tally.chosen if would else tally.done
        if as_json:
            _say_json(
                {
                    "done": done,
                    "verb": self._verb,
                    "seen": tally.seen,
                    "stayed": dict(tally.stayed),
                    "in_doubt": tally.in_doubt,
                    "stopped": tally.is_stopped,
                }
            )
            return self.code()
        self._say(f"{done:,} {self._verb} of {tally.seen:,} in {self.where}")
        for reason, count in tally.stayed.most_common(10):
            self._say(f"{count:,} left out: {printable(reason)}")
        self._tell_doubt()
        return self.code()

    def _tell_doubt(self) -> None:
        if self.tally.in_doubt:
            _say_err("not confirmed, so perhaps in both places: " + printable(", ".join(self.tally.in_doubt)))

    async def _each(self, act: Callable[[DeadLetters, Place], Awaitable[T]]) -> list[T]:
        task = asyncio.ensure_future(self._work(act))

        def stop() -> None:
            if self.tally.is_stopped or not self.tally.total:  # hurried, or nothing has begun
                task.cancel()
            else:
                _say_err("stopping after what is under way; once more stops at once")
            self.tally.is_stopped = True

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        watching = asyncio.ensure_future(self._tell_progress())
        try:
            return await task
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    async def _work(self, act: Callable[[DeadLetters, Place], Awaitable[T]]) -> list[T]:
        results = list[T]()
        async with DeadLetters(self._app) as letters:
            there = [place for place in self._places if await letters.count(place) is not None]
            for place in there or self._places:  # an app's queues may not all be declared yet
                if not self.tally.is_stopped:
                    results.append(await act(letters, place))
        return results

    async def _tell_progress(self) -> None:
        clock = self._app.clock
        if not err.is_terminal:
            while True:
                await clock.sleep(TELL_EVERY)
                if not self._quiet:
                    far = f"{self._moved():,} of {self.tally.total:,}" if self.tally.total else "waiting for the broker"
                    _say_err(f"{far} …")
        columns = (TextColumn(self._verb), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=err, transient=True) as progress:
            task = progress.add_task(self._verb, total=None)
            while True:
                progress.update(task, completed=self._moved(), total=self.tally.total or None)
                await clock.sleep(0.1)

    def _moved(self) -> int:
        """Looked at and, where it is chosen, done."""
        tally = self.tally
        return tally.seen - max(0, tally.chosen - tally.done - tally.stayed.total())


def _found(words: Sequence[str], chosen: Chosen) -> tuple[App[Any], list[DeadLetter], Run]:
    """The letters of the id that is the last word."""
    app, letter_id = chosen.app(words[:-1]), words[-1]
    where = replace(chosen.where, ids=frozenset({letter_id}))
    run = Run(app, chosen.places(app), "read", quiet=True)
    found = run.each(lambda letters, place: letters.find(place, where, bodies=True, most=100))
    every = [letter for letters in found for letter in letters]
    if not every:
        raise LetterError(f"No letter {letter_id!r} in {run.where}. `amqpjobs dead ls` shows their ids.")
    return app, every, run


def _contract(targets: Sequence[str], letter: DeadLetter) -> type[Job[Any]]:
    if not targets and not load_settings().apps:
        raise click.UsageError(
            "Name the TARGET that has the job class, to check the payload by it; or say --unchecked."
        )
    jobs = [job for _, job in load_contracts(targets)]
    for job in jobs:
        if letter.kind in (options_of(job).kind, *options_of(job).aliases):
            return job
    known = hint(letter.kind or "", [options_of(job).kind for job in jobs])
    raise click.UsageError(f"No job class of kind {letter.kind!r}.{known} --unchecked edits it without one.")


def _edited(letter: DeadLetter, contract: type[Job[Any]] | None) -> bytes | None:
    """The payload as it was left in the editor; None when it was not saved, or is the same."""
    before, text = _json_of(letter.body or b""), _editable(letter)
    while True:
        given = click.edit(text, extension=".json")
        if given is None or given == text:
            return None
        text = given
        try:
            payload = loads(text)
            if contract is not None:
                _check(contract, payload, before)
            return None if payload == before else dumps(payload)
        except (ValueError, InvalidArgumentsError) as error:
            problem = f"This cannot be: {printable(str(error))}"
        if not sys.stdin.isatty() or not click.confirm(f"{problem}\nEdit it again?", default=True):
            kept = _kept(text)
            raise LetterError(f"{problem} Nothing was changed. What you wrote is in {kept}.")


def _check(contract: type[Job[Any]], payload: object, before: object) -> None:
    job_from(contract, dumps(payload))
    if not isinstance(payload, dict) or contract.model_config.get("extra") == "allow":
        return
    old = cast("dict[str, object]", before) if isinstance(before, dict) else {}
    known = [name for key, info in contract.model_fields.items() for name in (key, info.alias) if name]
    for name in cast("dict[str, object]", payload):
        if name not in known and name not in old:
            raise ValueError(f"{contract.__name__} has no field {name!r}.{hint(name, known)}")


def _editable(letter: DeadLetter) -> str:
    body = letter.body or b""
    parsed = _json_of(body)
    if parsed is not None:
        return json.dumps(parsed, indent=2, ensure_ascii=False) + "\n"
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise LetterError("The payload is no text, so no editor can open it. Export it, mend it, import it.") from None


def _json_of(body: bytes) -> Any:
    try:
        return loads(body)
    except ValueError:
        return None


def _kept(text: str) -> str:
    handle, name = tempfile.mkstemp(prefix="amqpjobs-edit-", suffix=".json")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return name


@contextlib.contextmanager
def _written(name: str, force: bool, tally: Tally) -> Generator[IO[str]]:
    """Standard output, or a file that appears when it is complete."""
    if name == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    goal = Path(name)
    if goal.exists() and not force:
        raise click.UsageError(f"{name} is there already; choose another name, or say --force to replace it.")
    try:
        handle, part = tempfile.mkstemp(prefix=f".{goal.name}.", dir=goal.parent)
    except OSError as error:
        raise click.UsageError(f"{name} cannot be written: {error}") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
        if not tally.is_stopped:
            Path(part).replace(goal)
    finally:
        Path(part).unlink(missing_ok=True)


def _nothing(letter: DeadLetter) -> None:
    """For those who only count."""


def _letter_table() -> Table:
    return Table("id", "kind", "reason", "exception", "dead since", "attempt", "queue", box=None, padding=(0, 2, 0, 0))


def _add_row(table: Table, letter: DeadLetter) -> None:
    cells = (
        letter.job_id or "",
        letter.kind or "",
        letter.reason or "",
        letter.exception or "",
        _when(letter.since),
        str(letter.attempt) + (f" (requeued {letter.requeues}×)" if letter.requeues else ""),
        letter.queue or letter.place.name.value,
    )
    table.add_row(*(Text(printable(cell), no_wrap=True) for cell in cells))


def _show_groups(groups: Sequence[Group], as_json: bool) -> None:
    if as_json:
        for group in groups:
            _say_json(
                {
                    "reason": group.reason,
                    "exception": group.exception,
                    "count": group.count,
                    "kinds": sorted(group.kinds),
                    "oldest": group.oldest,
                    "newest": group.newest,
                }
            )
        return
    if not groups:
        return
    table = Table("count", "reason", "exception", "oldest", "newest", "kinds", box=None, padding=(0, 2, 0, 0))
    for group in groups:
        kinds = ", ".join(sorted(group.kinds)[:5]) + (" …" if len(group.kinds) > 5 else "")
        cells = (
            f"{group.count:,}",
            group.reason or "",
            group.exception or "",
            _when(group.oldest),
            _when(group.newest),
        )
        table.add_row(*(Text(printable(cell), no_wrap=True) for cell in (*cells, kinds)))
    out.print(table)


def _show(letter: DeadLetter) -> None:
    told: dict[str, str | None] = {
        "id": letter.job_id,
        "kind": letter.kind,
        "place": f"{letter.place}, number {letter.position}",
        "reason": letter.reason,
        "error": letter.error,
        "dead at": _when(letter.dead_at),
        "first tried": _when(letter.first_at),
        "attempt": str(letter.attempt),
        "requeued": f"{letter.requeues}×" if letter.requeues else None,
        "host": letter.host,
        "size": f"{letter.size:,} bytes",
        "message id": letter.message_id,
    }
    for name, value in told.items():
        if value:
            out.print(Text.assemble((f"{name:<12}", "bold"), printable(value)))
    if letter.headers:
        out.print(Text("headers", "bold"))
        for header, inner in letter.headers.items():
            if header != "amqpjobs-dead-traceback":
                out.print(Text(f"  {printable(header)}: {_clipped(printable(str(inner)))}"))
    if letter.traceback:
        out.print(Text("traceback", "bold"))
        _print_lines(letter.traceback)
    out.print(Text("payload", "bold"))
    parsed = _json_of(letter.body or b"")
    _print_lines(_text_of(letter) if parsed is None else json.dumps(parsed, indent=2, ensure_ascii=False))


def _print_lines(text: str) -> None:
    for line in text.split("\n"):
        out.print(Text(f"  {printable(line)}"))


def _described(letter: DeadLetter) -> dict[str, object]:
    return {
        "position": letter.position,
        "job_id": letter.job_id,
        "message_id": letter.message_id,
        "kind": letter.kind,
        "place": letter.place.name.value,
        "queue": letter.queue,
        "reason": letter.reason,
        "exception": letter.exception,
        "error": letter.error,
        "traceback": letter.traceback,
        "dead_at": letter.dead_at,
        "first_at": letter.first_at,
        "attempt": letter.attempt,
        "requeues": letter.requeues,
        "host": letter.host,
        "size": letter.size,
        "preview": letter.preview,
    }


def _text_of(letter: DeadLetter) -> str:
    return (letter.body or b"").decode("utf-8", "backslashreplace")


def _clipped(text: str) -> str:
    return text if len(text) <= 500 else f"{text[:500]}… ({len(text):,} characters)"


def _when(time: datetime | None) -> str:
    return "" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _say(line: str) -> None:
    out.print(Text(line))


def _say_err(line: str) -> None:
    err.print(Text(line))


def _say_json(value: dict[str, object]) -> None:
    # Not rich, which reads [markup]; and JSON leaves some control characters as they are.
    text = dumps({name: _clean(each) for name, each in value.items()}).decode()
    click.echo("".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text))


def _clean(value: object) -> object:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
