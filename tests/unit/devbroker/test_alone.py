"""The broker stands alone: other projects may copy its folder and its one library."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from amqpjobs import devbroker

FILES = sorted(Path(devbroker.__file__).parent.glob("*.py"))


def imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(module)):
                yield module
            case _:
                pass


def test_it_imports_itself_pamqp_and_the_standard_library_only() -> None:
    names = {name for file in FILES for name in imported(file.read_text(encoding="utf-8"))}

    foreign = {
        name
        for name in names
        if not name.startswith("amqpjobs.devbroker.") and name.split(".")[0] not in {*sys.stdlib_module_names, "pamqp"}
    }

    assert len(FILES) > 20
    assert foreign == set()
