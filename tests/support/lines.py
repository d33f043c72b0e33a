"""Files that other processes write, line by line."""

from pathlib import Path


def whole_lines(file: Path) -> list[str]:
    """Its lines, none where there is no such file; one that is just being written is none yet."""
    return file.read_text().rpartition("\n")[0].splitlines() if file.exists() else []
