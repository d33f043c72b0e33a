"""A worker process, as seen from itself: it tells its supervisor how it is, and outlives it by seconds only.

The supervisor says nothing on the socket between them; that its end closes is the message. A
thread waits for that, whatever the event loop does, and gives the process a few seconds to
hand back its jobs. Where not even that thread can run, because C code keeps Python's lock, Linux
ends the process.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading

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
        self._is_gone = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if sys.platform == "linux":
            _set_off_alarm_with(signal.SIGQUIT)
        threading.Thread(target=self._watch, name="amqpjobs-supervisor", daemon=True).start()

    def say_ready(self) -> None:
        """All workers consume."""
        self._say(b"ready\n")

    def say_done(self) -> None:
        """Nothing is left to do: nobody is to take our place."""
        self._say(b"done\n")

    async def gone(self) -> None:
        """Wait until the supervisor is no more."""
        told = asyncio.Event()
        with self._lock:
            self._waiting.append((asyncio.get_running_loop(), told))
            if self._is_gone:
                told.set()
        await told.wait()

    def _say(self, words: bytes) -> None:
        with contextlib.suppress(OSError):  # it is gone, and the thread knows
            self._socket.sendall(words)

    def _watch(self) -> None:
        with contextlib.suppress(OSError):
            while self._socket.recv(64):
                pass
        with self._lock:
            self._is_gone = True
            for loop, told in self._waiting:
                with contextlib.suppress(RuntimeError):  # the loop is closed: we are at the end
                    loop.call_soon_threadsafe(told.set)
        pause = threading.Event()
        pause.wait(_NOTICE)
        signal.alarm(_ALARM)
        pause.wait(KILLED_AFTER - _NOTICE)
        os.killpg(0, signal.SIGKILL)  # and what handlers have started: we lead a session of our own


def _set_off_alarm_with(number: signal.Signals) -> None:
    """When the supervisor ends, however it ends, have the kernel set an alarm, which then kills us.

    The kernel sends the signal, and its handler is the C library's `alarm` itself: called with the
    signal's number, 3 for SIGQUIT, it sets the alarm in so many seconds. No line of Python runs.
    Not SIGKILL at once: nothing could be handed back.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal.restype = ctypes.c_void_p
    library.signal(int(number), ctypes.cast(library.alarm, ctypes.c_void_p))
    library.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
