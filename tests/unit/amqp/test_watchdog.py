"""What the watchdog concludes from what it sees. Sessions, consumers and the broker's answers are fakes."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from amqpjobs.amqp.declare import Declarer
from amqpjobs.amqp.watchdog import Watchdog
from amqpjobs.comparison import QueueState
from amqpjobs.errors import AccessRefusedError
from tests.support.broker import PATIENCE


@dataclass(eq=False)
class FakeSession:
    failure: BaseException | None = None

    @property
    def is_open(self) -> bool:
        return self.failure is None

    def fail(self, error: BaseException) -> None:
        self.failure = self.failure or error


@dataclass(eq=False)
class FakeConsumer:
    session: FakeSession
    queue: str = "q"
    is_wanted: bool = True
    is_known: bool = True


@dataclass
class FakeDeclarer:
    """Answers with consumer counts, with an error, or not at all."""

    counts: dict[str, int | None] = field(default_factory=lambda: {"q": 1})
    error: Exception | None = None
    looks: int = 0
    #: Called before the answer comes.
    meanwhile: Any = None

    async def look_at(self, session: object, queues: Iterable[str]) -> dict[str, QueueState | None]:
        self.looks += 1
        if self.meanwhile is not None:
            await self.meanwhile()
        if self.error is not None:
            raise self.error
        counts = {queue: self.counts[queue] for queue in queues}
        return {queue: None if count is None else QueueState(0, count) for queue, count in counts.items()}


class Kennel:
    """A watchdog, and what it watches."""

    def __init__(self, **answers: Any) -> None:
        self.session = FakeSession()
        self.consumer = FakeConsumer(self.session)
        self.declarer = FakeDeclarer(**answers)
        self.consumers = [self.consumer]
        self.dog = Watchdog(cast("Declarer", self.declarer), 0.01, cast("Any", lambda: self.consumers))

    async def look_twice(self) -> str:
        """What the session failed with; "" when it goes on."""
        await self.dog.look(await self.dog.look())
        return str(self.session.failure or "")


async def test_a_queue_that_shows_consumers_is_well() -> None:
    kennel = Kennel()

    assert await kennel.look_twice() == ""
    assert kennel.declarer.looks == 2


@pytest.mark.parametrize("count", [0, None], ids=["no consumer", "no queue"])
async def test_a_queue_without_a_consumer_is_looked_at_once_more_before_the_session_fails(count: int | None) -> None:
    kennel = Kennel(counts={"q": count})

    suspects = await kennel.dog.look()
    was_open = kennel.session.is_open
    await kennel.dog.look(suspects)

    assert was_open
    assert "'q' is gone without a word" in str(kennel.session.failure)


async def test_a_consumer_that_shows_up_again_is_no_suspect_any_more() -> None:
    kennel = Kennel(counts={"q": 0})

    suspects = await kennel.dog.look()
    kennel.declarer.counts = {"q": 1}

    assert await kennel.dog.look(suspects) == frozenset()
    assert kennel.session.is_open


async def test_a_consumer_that_the_library_forgot_fails_the_session_without_asking() -> None:
    kennel = Kennel()
    kennel.consumer.is_known = False

    assert "no longer knows it" in await kennel.look_twice()
    assert kennel.declarer.looks == 0


async def test_a_consumer_that_is_cancelled_here_is_not_missed() -> None:
    kennel = Kennel(counts={"q": 0})

    async def cancel() -> None:
        kennel.consumer.is_wanted = False

    kennel.declarer.meanwhile = cancel

    assert await kennel.look_twice() == ""


async def test_a_session_that_is_being_rebuilt_is_left_to_its_link() -> None:
    kennel = Kennel(counts={"q": 0})
    kennel.session.fail(ConnectionError("lost"))

    assert await kennel.look_twice() == "lost"
    assert kennel.declarer.looks == 0


async def test_who_may_not_look_goes_on_consuming() -> None:
    assert await Kennel(error=AccessRefusedError("no")).look_twice() == ""


async def test_no_answer_in_time_fails_the_session() -> None:
    kennel = Kennel()
    kennel.declarer.meanwhile = asyncio.Event().wait

    assert "did not answer" in await kennel.look_twice()


async def test_a_bug_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    kennel, looked = Kennel(error=ZeroDivisionError()), asyncio.Semaphore(0)

    async def tell() -> None:
        looked.release()

    kennel.declarer.meanwhile = tell
    watching = asyncio.create_task(kennel.dog.watch())
    async with asyncio.timeout(PATIENCE):
        for _ in range(3):
            await looked.acquire()
    watching.cancel()
    await asyncio.wait([watching])

    assert "could not be looked at" in caplog.text
