"""A worker process, as seen from itself: it tells its supervisor how it is, and outlives it by seconds only.

A signal only ever asks it to drain, since a service manager may send one to all processes at
once; what hurries it is a word of the supervisor's on the socket between them. When that closes,
the supervisor is gone: a thread sees it, whatever the event loop does, and gives the process a
few seconds to hand back its jobs. Where not even that thread can run, because C code keeps Python's lock, Linux
ends the process.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

#: What is heard from the supervisor: it is in a hurry, or it is no more.
HURRY, GONE = "hurry", "gone"
#: Seconds after the supervisor's end: what runs may finish, then it is cut short, then we are killed.
CUT_SHORT_AFTER, KILLED_AFTER = 4.0, 6.0
#: Seconds by which the kernel's alarm comes after that; whole ones.
_ALARM = 7
#: Until then the kernel has set the alarm of `_set_off_alarm_with`, which ours replaces.
_NOTICE = 0.5
_PR_SET_PDEATHSIG = 1


class Supervised:
    """The link to the supervisor. Made in the main thread, before anything that may take long."""

    def __init__(self, fd: int, number: int) -> None:
        os.set_inheritable(fd, False)
        self.number = number
        self._socket = socket.socket(fileno=fd)
        self._lock = threading.Lock()
        self._heard: list[str] = []
        self._listener: tuple[asyncio.AbstractEventLoop, Callable[[str], None]] | None = None
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, _let_pass)
        if sys.platform == "linux":
            _set_off_alarm_with(signal.SIGQUIT)
        threading.Thread(target=self._watch, name="amqpjobs-supervisor", daemon=True).start()

    def say_ready(self) -> None:
        """All workers consume."""
        self._say(b"ready\n")

    def say_done(self) -> None:
        """Nothing is left to do: nobody is to take our place."""
        self._say(b"done\n")

    def say_port(self, port: int) -> None:
        """Where this process tells its health."""
        self._say(f"health {port}\n".encode())

    def listen(self, listener: Callable[[str], None]) -> None:
        """Call it in this event loop with HURRY and GONE, also if they were heard before."""
        loop = asyncio.get_running_loop()
        with self._lock:
            self._listener = loop, listener
            for word in self._heard:
                loop.call_soon(listener, word)

    def _say(self, words: bytes) -> None:
        with contextlib.suppress(OSError):  # it is gone, and the thread knows
            self._socket.sendall(words)

    def _watch(self) -> None:
        with contextlib.suppress(OSError):
            while self._socket.recv(64):
                self._hear(HURRY)
        self._hear(GONE)
        pause = threading.Event()
        pause.wait(_NOTICE)
        signal.alarm(_ALARM)
        pause.wait(KILLED_AFTER - _NOTICE)
        os.killpg(0, signal.SIGKILL)  # and what handlers have started: we lead a session of our own

    def _hear(self, word: str) -> None:
        with self._lock:
            self._heard.append(word)
            if self._listener is not None:
                loop, listener = self._listener
                with contextlib.suppress(RuntimeError):  # the loop is closed: we are at the end
                    loop.call_soon_threadsafe(listener, word)


def _let_pass(number: int, frame: object) -> None:
    """SIGHUP is meant for the supervisor. Not ignored, since programs that a handler starts would inherit that."""


def _set_off_alarm_with(number: signal.Signals) -> None:
    """When the supervisor ends, however it ends, have the kernel set an alarm, which then kills us.

    The kernel sends the signal, and its handler is the C library's `alarm` itself: called with the
    signal's number, 3 for SIGQUIT, it sets the alarm in so many seconds. No line of Python runs.
    Not SIGKILL at once: nothing could be handed back.
    """
    import ctypes  # only a supervised process needs it, and all load this module

    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal.restype = ctypes.c_void_p
    library.signal(int(number), ctypes.cast(library.alarm, ctypes.c_void_p))
    library.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
