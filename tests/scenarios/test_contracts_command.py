"""`amqpjobs contracts` in a git repository: what a change breaks is found before it is deployed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.terminal import Terminal

CONTRACT = """
from pydantic import SecretStr
from amqpjobs import Job

class Charge(Job[int], kind="shop.charge"):
    order: int
    note: str = ""
    token: SecretStr = SecretStr("pa55")
"""


class Repository:
    """A project under git, with its contract in `src/`, as an editable install has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        self.home = folder
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("AMQPJOBS_", "GIT_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
        self.environment = clean | {"PATH": path, "HOME": str(folder), "COLUMNS": "160", "PYTHONPATH": "src"}
        (self.folder / "src").mkdir(parents=True)
        self.write(CONTRACT)
        self.git("init", "--quiet", "--initial-branch=main")
        self.commit()

    def write(self, source: str) -> None:
        (self.folder / "src/shop.py").write_text(source)

    def change(self, before: str, after: str) -> None:
        assert before in CONTRACT
        self.write(CONTRACT.replace(before, after))

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "A change")

    def run(self, command: str, folder: str = ".", **environment: str) -> tuple[int, str]:
        with Terminal(command, self.folder / folder, self.environment | environment) as terminal:
            return terminal.end(), terminal.text


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


@pytest.mark.parametrize("command", ["contracts", "contracts export", "contracts check"])
def test_every_command_explains_itself_with_an_example(repository: Repository, command: str) -> None:
    code, text = repository.run(f"amqpjobs {command} --help")

    assert code == 0
    assert f"amqpjobs {command} " in text


def test_an_export_is_the_same_each_time_and_shows_no_secret(repository: Repository) -> None:
    first, second = (repository.run("amqpjobs contracts export shop") for _ in range(2))

    assert first == second
    assert first[0] == 0
    assert "pa55" not in first[1]
    (contract,) = json.loads(first[1])["contracts"]
    assert (contract["kind"], contract["version"], contract["result"]) == ("shop.charge", 1, {"type": "integer"})
    assert contract["payload"]["required"] == ["order"]


def test_an_asyncapi_document_is_written_to_a_file(repository: Repository) -> None:
    ended = repository.run("amqpjobs contracts export shop --format asyncapi --output asyncapi.json")

    document = json.loads((repository.folder / "asyncapi.json").read_text())
    assert ended == (0, "wrote asyncapi.json: shop.charge\n")
    assert document["asyncapi"] == "3.0.0"
    assert document["channels"]["shop.charge"]["address"] == "shop.charge"
    assert document["channels"]["shop.charge"]["bindings"]["amqp"]["exchange"]["name"] == "amqpjobs"


def test_a_breaking_change_is_found_against_a_branch_and_a_harmless_one_is_not(repository: Repository) -> None:
    check = "amqpjobs contracts check shop --against main"
    unchanged = repository.run(check)
    repository.change('note: str = ""', 'note: str = ""\n    urgent: bool = False')
    harmless = repository.run(check)
    repository.change('note: str = ""', "note: str\n    urgent: bool")
    breaking = repository.run(check)

    assert unchanged == (0, "compatible with main: 1 kind\n")
    assert harmless == unchanged
    assert breaking[0] == 1
    assert "shop.charge note  was optional and is required now" in breaking[1]
    assert "shop.charge urgent  is new and required" in breaking[1]
    assert "version=2 and @upgrade(from_version=1)" in breaking[1]


def test_an_upgrade_makes_it_compatible_again(repository: Repository) -> None:
    repository.write(
        CONTRACT.replace('"shop.charge"', '"shop.charge", version=2').replace(
            "order: int", "order: int\n    cents: int"
        )
        + """
    @upgrade(from_version=1)
    @staticmethod
    def priced(payload: dict[str, object]) -> dict[str, object]:
        return payload | {"cents": 0}
""".replace("@upgrade", "@__import__('amqpjobs.job').job.upgrade")
    )

    code, text = repository.run("amqpjobs contracts check shop --against main --json")

    found = json.loads(text)
    assert (code, found["compatible"]) == (0, True)
    assert {each["severity"] for each in found["findings"]} == {"note"}
    assert any("go through the upgrade" in each["what"] for each in found["findings"])


def test_a_kind_that_was_renamed_is_found_unless_it_has_an_alias(repository: Repository) -> None:
    check = "amqpjobs contracts check shop --against HEAD"
    repository.change('kind="shop.charge"', 'kind="shop.bill"')
    renamed = repository.run(check)
    repository.change('kind="shop.charge"', 'kind="shop.bill", aliases=["shop.charge"]')
    aliased = repository.run(check)

    assert renamed[0] == 1
    assert "aliases=['shop.charge']" in renamed[1]
    assert aliased[0] == 0


def test_a_check_against_a_file_needs_no_git(repository: Repository) -> None:
    repository.run("amqpjobs contracts export shop --output ../contracts.json")
    repository.change("order: int", "order: str")
    check = "amqpjobs contracts check shop --against ../contracts.json"

    with_git, without = repository.run(check), repository.run(check, GIT_DIR="/nowhere")

    assert with_git == without
    assert with_git[0] == 1
    assert "shop.charge order  took any integer, and now string" in with_git[1]


def test_neither_the_work_tree_nor_the_index_is_touched(repository: Repository) -> None:
    repository.change("order: int", "order: str")
    (repository.folder / "new.txt").write_text("staged")
    repository.git("add", "new.txt")
    (repository.folder / ".gitattributes").write_text("src export-ignore\n")
    before = repository.git("status", "--porcelain"), sorted((repository.folder / ".git").iterdir())

    code, _ = repository.run("amqpjobs contracts check shop --against HEAD", PYTHONDONTWRITEBYTECODE="1")

    assert code == 1
    assert (repository.git("status", "--porcelain"), sorted((repository.folder / ".git").iterdir())) == before


def test_a_check_works_from_a_folder_within_the_repository(repository: Repository) -> None:
    repository.change("order: int", "order: str")

    code, text = repository.run("amqpjobs contracts check shop --against main", folder="src", PYTHONPATH="")

    assert code == 1, text


def test_what_cannot_be_compared_with_is_told_apart(repository: Repository) -> None:
    (repository.folder / "other.json").write_text('{"openapi": "3.1.0"}')
    (repository.folder / "src/later.py").write_text(CONTRACT)
    elsewhere = str(repository.home)
    refused = {
        "shop --against nosuch": (2, "no commit, branch or tag 'nosuch'"),
        "shop --against=--all": (2, "--all"),
        "shop --against other.json": (2, "other.json is no document of `amqpjobs contracts export`"),
        "later --against main": (3, "There is no module 'later'"),
        "nosuch --against main": (3, "There is no module 'nosuch'"),
        "shop": (2, "--against"),
    }

    for arguments, (code, words) in refused.items():
        ended = repository.run(f"amqpjobs contracts check {arguments}")
        assert ended[0] == code, (arguments, ended)
        assert words in ended[1], (arguments, ended)
    outside = repository.run(
        "amqpjobs contracts check shop --against main",
        folder="..",
        PYTHONPATH="project/src",
        GIT_CEILING_DIRECTORIES=elsewhere,
    )
    assert outside[0] == 2
    assert "not a git repository" in outside[1]


def test_a_target_that_would_be_read_from_the_work_tree_is_refused(repository: Repository) -> None:
    (repository.folder / "lib").mkdir()
    (repository.folder / "lib/fresh.py").write_text(CONTRACT)

    code, text = repository.run(
        "amqpjobs contracts check fresh --against main", PYTHONPATH=str(repository.folder / "lib")
    )

    assert code == 3
    assert "fresh: imported from" in text
