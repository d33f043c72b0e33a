"""A network of one's own, in which nothing listens on any port, whatever this machine runs.

Run as a program, it is the process that keeps it: it ends with whoever holds its standard input.
"""

import fcntl
import socket
import struct
import subprocess
import sys
from types import TracebackType
from typing import Self

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


class Alone:
    """A context manager; commands that begin with `prefix` are in it, and reach each other on localhost."""

    def __enter__(self) -> Self:
        command = ["unshare", "--net", "--map-root-user", sys.executable, "-m", __name__]
        self._keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == b"up\n", "A network of one's own needs user namespaces."
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keeper.communicate()

    @property
    def prefix(self) -> str:
        return f"nsenter --user --net --preserve-credentials --target {self._keeper.pid}"


def main() -> None:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", _IFF_UP))
    sys.stdout.write("up\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
