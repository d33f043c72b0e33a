"""Which files of a project are watched, and what changes in them.

The packages of the targets, wherever they are, and those of the current folder, with all their folders; of the
current folder itself only its own files, since what else lies there (environments, data, node_modules) may be large.
Python files count, and what settings are read from.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

#: Folders of the current folder that are watched at most.
MOST_FOLDERS = 100
#: Files that settings come from.
SETTINGS = frozenset((".env", "pyproject.toml"))
#: Never the source of a project.
_IGNORED = frozenset(("__pycache__", "node_modules", "site-packages", "build", "dist"))

#: Called with the files that changed together.
Changed = Callable[[Sequence[Path]], None]


class NotWatchedError(Exception):
    """The files cannot be watched. Its text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Places:
    """Folders to watch: `trees` with all that is below them."""

    trees: frozenset[Path]
    folders: frozenset[Path]


def places_of(modules: Iterable[str], here: Path) -> Places:
    """Where the source of these modules and of this folder's packages is. Imports nothing."""
    trees = set(islice(filter(_is_package, sorted(here.iterdir())), MOST_FOLDERS))
    folders = {here}
    for module in modules:
        packages, files = _source_of(module.partition(".")[0])
        trees |= packages
        folders |= files
    return Places(frozenset(each.resolve() for each in trees), frozenset(each.resolve() for each in folders))


@asynccontextmanager
async def watching(places: Places, changed: Changed, lost: Callable[[str], None]) -> AsyncGenerator[None]:
    """Watch until the block ends, or until that fails, and then `lost` is called with the reason.

    Raises NotWatchedError when nothing can be watched here.
    """
    try:
        # A word of its type is trio's, which is not installed.
        from watchfiles import awatch  # pyright: ignore[reportUnknownVariableType]
    except ImportError:
        raise NotWatchedError("watchfiles is not installed. To have it: pip install 'amqpjobs[dev]'") from None
    stop = asyncio.Event()

    async def watch(paths: Iterable[Path], *, deep: bool) -> None:
        # What comes within some milliseconds of each other comes as one.
        async for found in awatch(
            *paths, watch_filter=_matters, stop_event=stop, recursive=deep, ignore_permission_denied=True
        ):
            changed(sorted({Path(path) for _, path in found}))

    async def watch_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(watch(places.folders, deep=False))
                if places.trees:
                    group.create_task(watch(places.trees, deep=True))
        except* (OSError, RuntimeError) as error:  # no more watches, or a folder that is gone
            lost(str(error.exceptions[0]))

    task = asyncio.create_task(watch_all())
    try:
        yield
    finally:
        stop.set()
        await task


def _matters(change: object, path: str) -> bool:
    name = os.path.basename(path)
    return name in SETTINGS or (name.endswith(".py") and not name.startswith("."))


def _is_package(folder: Path) -> bool:
    """Whether Python files are in it, or one folder below, as in `src`."""
    if folder.name.startswith(".") or folder.name in _IGNORED:
        return False
    try:
        if not folder.is_dir() or (folder / "pyvenv.cfg").exists():
            return False
    except OSError:  # a database's own, say, that only it may read
        return False
    return any(folder.glob("*.py")) or any(folder.glob("*/__init__.py"))


def _source_of(name: str) -> tuple[set[Path], set[Path]]:
    """The folders of a top-level package, or the one of a module."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return set(), set()
    if spec.submodule_search_locations is not None:
        return {Path(each) for each in spec.submodule_search_locations if os.path.isdir(each)}, set()
    return set(), {Path(spec.origin).parent} if spec.origin and os.path.isfile(spec.origin) else set()
