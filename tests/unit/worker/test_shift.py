"""What a process tells its supervisor. Worker and supervisor are fakes."""

import asyncio
import signal
from collections.abc import Callable, Generator
from typing import cast

import pytest

from amqpjobs.clock import SystemClock
from amqpjobs.events import Events, JobEnded
from amqpjobs.outcome import Completed
from amqpjobs.worker.ending import Limits
from amqpjobs.worker.shift import Shift
from amqpjobs.worker.supervised import Supervised
from amqpjobs.worker.worker import Worker
from tests.unit.making import envelope


class HastyWorker:
    """Its first job ends before it is entered as a whole."""

    is_consuming, cancelled = True, 0

    def __init__(self) -> None:
        self.events = Events()

    async def __aenter__(self) -> None:
        self.events.emit(JobEnded(envelope(), Completed(), 0.1))
        await asyncio.Event().wait()

    async def __aexit__(self, *error: object) -> None:
        pass

    async def drain(self) -> None:
        pass

    def stop(self) -> None:
        pass


class Listener:
    """What is said to the supervisor."""

    def __init__(self) -> None:
        self.said = list[str]()

    def say_ready(self) -> None:
        self.said.append("ready")

    def say_done(self) -> None:
        self.said.append("done")

    def listen(self, listener: Callable[[str], None]) -> None:
        pass


@pytest.fixture(autouse=True)
def signals() -> Generator[None]:
    """A process that has ended its shift ignores SIGTERM; this one has not."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


async def test_a_process_whose_first_jobs_were_enough_before_it_had_begun_is_no_failed_start() -> None:
    worker, supervisor = HastyWorker(), Listener()
    shift = Shift(
        [cast("Worker", worker)], SystemClock(), Limits(max_jobs=1), supervised=cast("Supervised", supervisor)
    )

    assert await asyncio.wait_for(shift.run(), 30) == 0
    assert supervisor.said == ["ready"]
