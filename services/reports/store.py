"""What was sold, and in which report it stands: a file that the processes of one machine share.

Each write may be repeated: a sale has its job's id, and a report takes the same sales each time it is written.
"""

import sqlite3
from datetime import date
from pathlib import Path
from typing import NamedTuple

_TABLE = """
CREATE TABLE IF NOT EXISTS sales (
    id TEXT PRIMARY KEY, day TEXT NOT NULL, item TEXT NOT NULL, cents INTEGER NOT NULL, report TEXT
)
"""


class Line(NamedTuple):
    """What was sold of one thing."""

    item: str
    sales: int
    cents: int


class Store:
    """Used by one thread."""

    def __init__(self, file: Path) -> None:
        self._base = sqlite3.connect(file)
        with self._base:
            self._base.execute(_TABLE)

    def close(self) -> None:
        self._base.close()

    def add(self, job_id: str, day: date, item: str, cents: int) -> None:
        """Record a sale, unless it is."""
        with self._base:
            sale = [job_id, day.isoformat(), item, cents]
            self._base.execute("INSERT OR IGNORE INTO sales (id, day, item, cents) VALUES (?, ?, ?, ?)", sale)

    def report(self, day: date) -> list[Line]:
        """All sales of days before this one that no other report has."""
        with self._base:
            self._base.execute(
                "UPDATE sales SET report = :day WHERE report IS NULL AND day < :day", {"day": day.isoformat()}
            )
            rows = self._base.execute(
                "SELECT item, count(*), sum(cents) FROM sales WHERE report = ? GROUP BY item ORDER BY item",
                [day.isoformat()],
            )
            return [Line(*row) for row in rows]

    def forget(self, before: date) -> None:
        """Delete the sales of old reports."""
        with self._base:
            self._base.execute("DELETE FROM sales WHERE report < ?", [before.isoformat()])
