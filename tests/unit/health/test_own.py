"""What a process says of itself, from a loop in another thread, and what it says when its own does not turn."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from amqpjobs.health import asked
from amqpjobs.health.asked import Asked
from amqpjobs.health.own import Own, looking
from amqpjobs.health.pulse import STALLED_AFTER, Pulse
from amqpjobs.health.report import Report
from tests.support.clock import FakeClock
from tests.unit.making import NOW

SystemClock = asked.SystemClock if hasattr(asked, "SystemClock") else None


class Patient:
    def __init__(self) -> None:
        self.reasons = list[str]()
        self.looks = 0

    def look(self) -> None:
        self.looks += 1

    def troubles(self) -> list[str]:
        return self.reasons
