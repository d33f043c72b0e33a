"""Type checkers tell wrong handlers and calls from right ones, line by line.

`cases.py` marks the lines that must be errors; mypy strict and pyright strict must find
just those, so that neither a mistake passes nor a right handler is refused.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests/typing/cases.py"


def test_mypy_strict_finds_just_the_marked_lines() -> None:
    found = _run("mypy", "--config-file", "pyproject.toml", "--hide-error-context", "--no-pretty", str(CASES))
    lines = {int(line) for line in re.findall(r"cases\.py:(\d+): error:", found)}

    assert lines == _marked(), found


def test_pyright_strict_finds_just_the_marked_lines(tmp_path: Path) -> None:
    # A project of its own: the real one leaves this file out.
    shutil.copy(CASES, tmp_path)
    settings = {"include": ["cases.py"], "typeCheckingMode": "strict", "extraPaths": [str(ROOT)]}
    project = tmp_path / "pyrightconfig.json"
    project.write_text(json.dumps(settings))

    found = _run("pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(project))

    errors = [each for each in json.loads(found)["generalDiagnostics"] if each["severity"] == "error"]
    assert {each["range"]["start"]["line"] + 1 for each in errors} == _marked(), found


def _marked() -> set[int]:
    lines = CASES.read_text().splitlines()
    marked = {number for number, line in enumerate(lines, 1) if "# E: " in line}
    assert len(marked) > 20
    return marked


def _run(module: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 1, f"{module} should find errors: {done.stdout}{done.stderr}"
    return done.stdout
