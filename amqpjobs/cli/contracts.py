"""`amqpjobs contracts`: what job classes promise on the wire, written down and compared.

The contracts of an older git commit are exported by a process of their own, with this
interpreter and this amqpjobs, from a checkout in a temporary folder: neither the user's files
nor the index are touched.
"""

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import click
from rich.text import Text

from amqpjobs.asyncapi import asyncapi
from amqpjobs.cli.command import Command, Group
from amqpjobs.cli.common import FAILED, Contract, TargetError, load_contracts
from amqpjobs.cli.console import out
from amqpjobs.codec import dumps, loads, pretty
from amqpjobs.contracts import Contracts, Finding, Severity, compared, exported, read
from amqpjobs.job import options_of
from amqpjobs.logs import printable

_STYLES = {
    Severity.BREAKING: "bold red",
    Severity.UNSURE: "bold red",
    Severity.WARNING: "yellow",
    Severity.NOTE: "dim",
}
_EXPORT = "import sys; sys.path.insert(0, sys.argv[1]); from amqpjobs.cli import contracts; contracts.export_there()"


@click.group("contracts", cls=Group, short_help="What job classes promise on the wire.")
def command() -> None:
    """What job classes promise on the wire: write it down, and compare it.

    \b
      amqpjobs contracts export services.email --output contracts.json
      amqpjobs contracts check services.email --against origin/main
    """


@command.command("export", cls=Command)
@click.argument("targets", nargs=-1, metavar="TARGET…")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["jsonschema", "asyncapi"]),
    default="jsonschema",
    show_default=True,
    help="Ours, for `check` and for reading, or an AsyncAPI 3.0 document.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write it there.")
def export(targets: tuple[str, ...], layout: str, output: Path | None) -> None:
    """Write the contracts of services as JSON: kinds, versions, and JSON Schemas of payloads and results.

    The same classes give the same bytes, so that the file can be kept and compared by line. A TARGET may
    also be a module with job classes and no app in it.

    \b
      amqpjobs contracts export services.email
      amqpjobs contracts export services.email --format asyncapi --output asyncapi.json
    """
    found = _contracts(targets)
    document = exported(job for _, job in found)
    text = pretty(document.model_dump(mode="json") if layout == "jsonschema" else _asyncapi(found))
    if output is None:
        click.echo(text.decode(), nl=False)
        return
    try:
        output.write_bytes(text)
    except OSError as error:
        raise click.UsageError(f"{output} cannot be written: {error.strerror}.") from None
    out.print(Text.assemble(("wrote ", "green"), f"{output}: {', '.join(each.kind for each in document.contracts)}"))


@command.command("check", cls=Command)
@click.argument("targets", nargs=-1, metavar="TARGET…")
@click.option("--against", required=True, metavar="REF|FILE", help="A git commit, branch or tag, or an exported file.")
@click.option("--lenient", is_flag=True, help="What nobody can tell is a warning.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def check(targets: tuple[str, ...], against: str, lenient: bool, as_json: bool) -> int:
    """Say whether the job classes still read what is queued and what older producers send.

    Exit code 0 when they do, 1 when they do not. Warnings tell what a rolling deployment may meet: jobs of
    newer producers at workers that still have the older code. Only schemas are compared: what a validator
    in Python refuses, or an upgrade does, is for tests to find.

    \b
      amqpjobs contracts check services.email --against origin/main
      amqpjobs contracts check services.email --against contracts.json
    """
    now = exported(job for _, job in _contracts(targets))
    found = compared(_older(targets, against), now)
    bad = {Severity.BREAKING} if lenient else {Severity.BREAKING, Severity.UNSURE}
    breaking = [each for each in found if each.severity in bad]
    if as_json:
        findings = [
            {"severity": each.severity, "kind": each.kind, "path": each.path, "what": each.what, "advice": each.advice}
            for each in found
        ]
        click.echo(dumps({"compatible": not breaking, "against": against, "findings": findings}))
    else:
        _show(found, now, against, len(breaking))
    return FAILED if breaking else 0


def export_there() -> None:
    """In a process of its own: export what a checkout has, as `_at_commit` asks for it."""
    from amqpjobs.cli import main

    here, there, output, folders, targets = cast("tuple[str, str, str, list[str], list[str]]", loads(sys.argv[2]))
    del sys.path[0]  # which only was there to find this amqpjobs
    sys.path[:0] = folders
    # What comes from the user's files in spite of that would be compared with itself.
    sys.argv[1:] = ["contracts", "export", *targets, "--output", output]
    try:
        main()
    finally:
        strays = sorted(_modules_within(Path(here), but=Path(there)))
        if strays:
            print(f"{', '.join(strays)}: imported from {here}, and not from its checkout.", file=sys.stderr)  # noqa: T201  (a script that talks to its parent)
            Path(output).unlink(missing_ok=True)


def _contracts(targets: Sequence[str]) -> list[Contract]:
    """As `load_contracts`, for several modules with job classes too."""
    if not targets:
        return load_contracts([])
    return [each for target in targets for each in load_contracts([target])]


def _asyncapi(found: Iterable[Contract]) -> dict[str, object]:
    jobs = [(job, app.topology.by_kind(options_of(job).kind, options_of(job).exchange)) for app, job in found]
    return asyncapi("Jobs of " + ", ".join(sorted({job.__module__ for job, _ in jobs})), jobs)


def _older(targets: Sequence[str], against: str) -> Contracts:
    file = Path(against)
    if file.is_file():
        return _parsed(file.read_bytes(), against)
    return _at_commit(targets, against)


def _parsed(text: bytes, name: str) -> Contracts:
    try:
        return read(text, name)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _at_commit(targets: Sequence[str], against: str) -> Contracts:
    here = Path.cwd().resolve()
    root = Path(_git(here, against, "rev-parse", "--show-toplevel")).resolve()
    commit = _git(root, against, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{against}^{{commit}}")
    with TemporaryDirectory(prefix="amqpjobs-") as folder:
        there, output = Path(folder).resolve() / "tree", Path(folder) / "contracts.json"
        _check_out(root, commit, there, against)
        inside = there / here.relative_to(root)
        if not inside.is_dir():
            raise click.UsageError(f"The folder {here.relative_to(root)} does not exist at {against}.")
        folders = [inside, *(there / each.relative_to(root) for each in _import_folders(root))]
        question = [str(root), str(there), str(output), [str(each) for each in folders if each.is_dir()], targets]
        package = str(Path(__file__).parents[2])
        done = subprocess.run(
            [sys.executable, "-P", "-c", _EXPORT, package, dumps(question).decode()],
            cwd=inside,
            capture_output=True,
            text=True,
            check=False,
        )
        if output.is_file():
            return _parsed(output.read_bytes(), against)
    told = "\n".join((done.stderr or done.stdout).strip().splitlines()[-12:])
    raise TargetError(
        f"The contracts of {against} could not be exported. What was said there:\n{told}\n"
        "If a TARGET is new since then, there is nothing to compare it with; if it has moved, export it there by "
        "its old name, and compare with that file."
    )


def _check_out(root: Path, commit: str, there: Path, against: str) -> None:
    """All files of a commit, by an index of their own."""
    there.mkdir()
    # `git archive` would leave out what .gitattributes says, and `git worktree` would write into .git.
    index = ["env", f"GIT_INDEX_FILE={there.parent / 'index'}", "git"]
    _git(root, against, "read-tree", commit, program=index)
    _git(root, against, "checkout-index", "--all", f"--prefix={there}/", program=index)


def _git(folder: Path, against: str, *arguments: str, program: Sequence[str] = ("git",)) -> str:
    """Its output. Raises UsageError with its own words."""
    try:
        done = subprocess.run(
            [*program, *arguments], cwd=folder, capture_output=True, text=True, errors="replace", check=False
        )
    except FileNotFoundError:
        raise click.UsageError(f"There is no file {against!r}, and no git here to look for a commit.") from None
    if done.returncode == 0:
        return done.stdout.strip()
    told = done.stderr.strip() or f"there is no commit, branch or tag {against!r} in {folder}"
    if "rev-parse" in arguments:
        told += ". In CI, fetch it first (git fetch origin main)"
    raise click.UsageError(f"There is no file {against!r}, and git says: {told}.")


def _import_folders(root: Path) -> list[Path]:
    """The folders of the user's repository that modules are imported from, such as `src`."""
    found = [Path(each).resolve() for each in sys.path if each]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if "." not in name and file:  # editable installs may import from folders that are not on the path
            place = Path(file).resolve()
            found.append(place.parents[1] if place.name == "__init__.py" else place.parent)
    return [each for each in dict.fromkeys(found) if each.is_relative_to(root) and not _is_installed(each)]


def _modules_within(root: Path, *, but: Path) -> set[str]:
    found = set[str]()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not file or name.split(".")[0] == "amqpjobs":
            continue
        place = Path(file).resolve()
        if place.is_relative_to(root) and not place.is_relative_to(but) and not _is_installed(place):
            found.add(name)
    return found


def _is_installed(place: Path) -> bool:
    return "site-packages" in place.parts or place.is_relative_to(sys.prefix)


def _show(found: Sequence[Finding], now: Contracts, against: str, breaking: int) -> None:
    for each in found:
        where = f"{each.kind} {each.path}".rstrip()
        out.print(
            Text.assemble((f"{each.severity}  ", _STYLES[each.severity]), (where, "bold"), f"  {printable(each.what)}")
        )
        if each.advice:
            out.print(Text(f"  {printable(each.advice)}", "dim"))
    kinds = f"{len(now.contracts)} {'kind' if len(now.contracts) == 1 else 'kinds'}"
    if breaking:
        out.print(
            Text.assemble(("breaking", "bold red"), f": {breaking} of what was fine at {against} is not any more")
        )
    else:
        out.print(Text.assemble(("compatible", "green"), f" with {against}: {kinds}"))
