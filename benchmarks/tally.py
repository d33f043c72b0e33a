"""What workers did, counted in memory that the measuring process reads: a few tenths of a microsecond a job.

Each thread of a worker has a file of its own in the folder named by BENCHMARK_TALLY: a number of jobs, and behind it
how late each of the last ones began.
"""

import os
import struct
import threading
import time
from functools import cache
from mmap import mmap
from pathlib import Path

#: Where the files are.
FOLDER = "BENCHMARK_TALLY"
#: Latencies that one thread keeps.
MOST = 100_000
_COUNT = struct.Struct("<q")
_LATE = struct.Struct("<d")
_SIZE = _COUNT.size + MOST * _LATE.size


def ran(sent_at: float = 0.0) -> None:
    """One more job has run, which was enqueued then (`time.time`); 0: nobody asks."""
    pages = _pages(os.getpid(), threading.get_ident())
    number = _COUNT.unpack_from(pages)[0]
    if sent_at:
        _LATE.pack_into(pages, _COUNT.size + number % MOST * _LATE.size, time.time() - sent_at)
    _COUNT.pack_into(pages, 0, number + 1)


@cache
def _pages(pid: int, thread: int) -> mmap:
    with (Path(os.environ[FOLDER]) / f"{pid}-{thread}").open("w+b") as file:
        file.truncate(_SIZE)
        return mmap(file.fileno(), _SIZE)


class Tally:
    """The sum of all files in a folder, from now on or from the last `restart`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pages = dict[str, mmap]()
        self._before = 0
        self.restart()

    def restart(self) -> None:
        self._before = self._total()

    @property
    def jobs(self) -> int:
        return self._total() - self._before

    def late(self) -> list[float]:
        """Seconds between enqueue and run, of all jobs that said when they were enqueued."""
        self._total()
        found = list[float]()
        for pages in self._pages.values():
            number = min(MOST, _COUNT.unpack_from(pages)[0])
            found += [late for (late,) in _LATE.iter_unpack(pages[_COUNT.size : _COUNT.size + number * _LATE.size])]
        return [late for late in found if late]

    def _total(self) -> int:
        for file in self._folder.iterdir():
            if file.name not in self._pages and file.stat().st_size == _SIZE:
                with file.open("rb+") as open_file:
                    self._pages[file.name] = mmap(open_file.fileno(), _SIZE)
        return sum(_COUNT.unpack_from(pages)[0] for pages in self._pages.values())
