"""What was seen of each feed: a file that the processes of one machine share.

An item counts as seen when its delivery is enqueued, and the stamp is kept together with the items. So a crash in
between fetches the feed once more, whole, and no item is lost; one may be delivered twice, under one job id.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from services.feeds.reading import Feed, Item, Stamp

#: Seconds after which an item that its feed no longer lists is forgotten.
KEPT = 90 * 86_400.0

_TABLES = """
CREATE TABLE IF NOT EXISTS feeds (
    feed TEXT PRIMARY KEY,
    etag TEXT NOT NULL DEFAULT '',
    modified TEXT NOT NULL DEFAULT '',
    muted REAL NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS seen (feed TEXT, item TEXT, at REAL NOT NULL, PRIMARY KEY (feed, item)) WITHOUT ROWID;
"""


class Store:
    """Times are seconds since 1970. Used by one thread."""

    def __init__(self, file: Path) -> None:
        self._base = sqlite3.connect(file)
        with self._base:
            self._base.executescript(_TABLES)

    def close(self) -> None:
        self._base.close()

    def stamp(self, feed: str) -> Stamp:
        """Of the last time; an empty one if there was none."""
        row = self._base.execute("SELECT etag, modified FROM feeds WHERE feed = ?", [feed]).fetchone()
        return Stamp(*row) if row else Stamp()

    def unseen(self, feed: str, items: Sequence[Item], *, first: int) -> list[Item]:
        """Those that were not seen before, the oldest first; of a new feed the first ones that are listed."""
        seen = {name for [name] in self._base.execute("SELECT item FROM seen WHERE feed = ?", [feed])}
        new = [item for item in items if item.name not in seen]
        return list(reversed(new if seen else new[:first]))

    def remember(self, feed: str, fetched: Feed, now: float) -> None:
        """All items of a feed have been seen."""
        with self._base:
            self._base.execute(
                "INSERT INTO feeds (feed, etag, modified) VALUES (?, ?, ?) "
                "ON CONFLICT (feed) DO UPDATE SET etag = excluded.etag, modified = excluded.modified",
                [feed, fetched.stamp.etag, fetched.stamp.modified],
            )
            self._base.executemany(
                "INSERT INTO seen VALUES (?, ?, ?) ON CONFLICT (feed, item) DO UPDATE SET at = excluded.at",
                [(feed, item.name, now) for item in fetched.items],
            )
            self._base.execute("DELETE FROM seen WHERE feed = ? AND at < ?", [feed, now - KEPT])

    def mute(self, feed: str, until: float) -> None:
        """Leave a feed alone for a while."""
        with self._base:
            self._base.execute(
                "INSERT INTO feeds (feed, muted) VALUES (?, ?) ON CONFLICT (feed) DO UPDATE SET muted = excluded.muted",
                [feed, until],
            )

    def audible(self, feeds: Iterable[str], now: float) -> list[str]:
        """Those that are not muted."""
        muted = {feed for [feed] in self._base.execute("SELECT feed FROM feeds WHERE muted > ?", [now])}
        return [feed for feed in feeds if feed not in muted]
