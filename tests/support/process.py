"""What this process holds: threads of ours, descriptors, sockets."""

import gc
import threading

import psutil


def our_threads() -> list[threading.Thread]:
    """After what nobody uses any more is gone: a client that was dropped in a cycle ends its thread only then."""
    gc.collect()
    return [each for each in threading.enumerate() if each.name.startswith("amqpjobs")]


def descriptors() -> int:
    """How many are open."""
    return psutil.Process().num_fds()


def state_of_process() -> tuple[int, int, int]:
    """Threads of ours, descriptors, and sockets."""
    return len(our_threads()), descriptors(), len(psutil.Process().net_connections())
