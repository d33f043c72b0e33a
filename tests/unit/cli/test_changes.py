"""Which folders are watched."""

import sys
from pathlib import Path

import pytest

from amqpjobs.cli.changes import places_of


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the current one, with another folder on the way of imports beside it."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for file in (
        "here/watched_script.py",
        "here/package/__init__.py",
        "here/namespace/inner/__init__.py",
        "here/data/table.csv",
        "here/.venv/lib/x.py",
        "here/env/x.py",
        "here/env/pyvenv.cfg",
        "here/node_modules/x.py",
        "elsewhere/watched_library/__init__.py",
        "elsewhere/watched_module.py",
        "elsewhere/other/__init__.py",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.setattr(sys, "path", [str(here), str(elsewhere), *sys.path])
    return here


def test_packages_here_are_watched_whole_and_of_the_folder_itself_only_its_files(project: Path) -> None:
    places = places_of(["watched_script"], project)

    assert places.folders == {project}
    assert places.trees == {project / "package", project / "namespace"}


def test_targets_elsewhere_are_watched_where_they_are(project: Path) -> None:
    places = places_of(["watched_library.app", "watched_module", "no_such_module_anywhere"], project)

    assert places.folders == {project, project.parent / "elsewhere"}
    assert project.parent / "elsewhere" / "watched_library" in places.trees
    assert project.parent / "elsewhere" / "other" not in places.trees
