import asyncio
from dataclasses import dataclass
from itertools import count

import pytest

from amqpjobs.clock import SystemClock
from amqpjobs.devbroker import Stock
from amqpjobs.events import Events, JobEnqueued, JobStarted, MailboxClosed, MailboxOpened
from amqpjobs.registry import Registry
from amqpjobs.testing import rest as room
from amqpjobs.testing.clock import FakeClock, settle
from amqpjobs.testing.record import Record
from amqpjobs.testing.rest import Rest
from tests.support.broker import PATIENCE
from tests.unit.making import envelope


@dataclass
class Books:
    """A broker's, a worker's and the beats', as a test writes them."""

    lent: int = 0
    running: int = 0
    waiting: int = 0
    is_consuming: bool = True
    beats: int = 1
    is_led: bool = True
    is_busy: bool = False
    #: Answers in the mailbox.
    answers: int = 0

    def __bool__(self) -> bool:
        return self.beats > 0

    def stock(self, queue: str, /) -> Stock:
        return Stock(ready=self.answers, lent=0) if queue == "mailbox" else Stock(ready=5, lent=self.lent)

    def rest(self, patience: float = PATIENCE, record: Record | None = None) -> Rest:
        return Rest(
            broker=self,
            clock=FakeClock(),
            record=record or Record(),
            registry=Registry("work"),
            queues=["work"],
            worker=lambda: self,
            beats=self,
            patience=patience,
        )


@pytest.mark.parametrize(
    "books",
    [
        pytest.param(Books(lent=1), id="a delivery or an ack is on its way"),
        pytest.param(Books(waiting=1), id="a channel is gone, and its deliveries are to come again"),
        pytest.param(Books(lent=1, running=1), id="a job begins or is settled"),
        pytest.param(Books(is_consuming=False), id="the connection is away"),
        pytest.param(Books(is_led=False), id="a beat is still to take the lead"),
        pytest.param(Books(is_busy=True), id="a tick is on its way"),
    ],
)
async def test_there_is_no_rest_while_the_books_do_not_agree(books: Books) -> None:
    coming = asyncio.create_task(books.rest().come())
    await settle()
    was_done = coming.done()

    books.lent, books.running, books.waiting, books.is_consuming = 2, 0, 2, True
    books.is_led, books.is_busy = True, False

    async with asyncio.timeout(PATIENCE):
        await coming
    assert not was_done


async def test_there_is_no_rest_before_an_answer_is_told_to_who_awaits_it() -> None:
    books, events, record = Books(answers=1), Events(), Record()
    record.watch(events)
    events.emit(MailboxOpened("mailbox"))
    coming = asyncio.create_task(books.rest(record=record).come())
    await settle()
    was_done = coming.done()

    books.answers = 0

    async with asyncio.timeout(PATIENCE):
        await coming
    assert not was_done


async def test_answers_in_a_closed_mailbox_are_nobodys() -> None:
    books, events, record = Books(answers=1), Events(), Record()
    record.watch(events)
    events.emit(MailboxOpened("mailbox"))
    events.emit(MailboxClosed("mailbox"))

    async with asyncio.timeout(PATIENCE):
        await books.rest(record=record).come()


async def test_a_rest_that_does_not_come_tells_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LONGEST", 0.01)

    with pytest.raises(AssertionError, match="3 jobs are lent to the worker, and it has 0"):
        await Books(lent=3).rest().come()


async def test_without_beats_nobody_has_to_lead() -> None:
    async with asyncio.timeout(PATIENCE):
        await Books(beats=0, is_led=False).rest().come()


async def test_ticks_that_the_broker_does_not_answer_wait_for_time_to_move() -> None:
    async with asyncio.timeout(PATIENCE):
        await Books(is_busy=True).rest(patience=0.05).come()


class Stalling(SystemClock):
    """The process stands still for an hour, once."""

    def __init__(self) -> None:
        self._looks = count()

    def monotonic(self) -> float:
        return super().monotonic() + (3600.0 if next(self._looks) > 2 else 0.0)


@pytest.mark.parametrize("is_enqueuing", [True, False])
async def test_a_process_that_stood_still_has_used_up_nobodys_patience(
    is_enqueuing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "SystemClock", Stalling)
    monkeypatch.setattr(room, "LONGEST", 2 * 3600.0)
    books, events, record = Books(), Events(), Record()
    record.watch(events)
    if is_enqueuing:
        record.enqueuing = 1
    else:
        books.lent = books.running = 1
        events.emit(JobStarted(envelope()))
    coming = asyncio.create_task(books.rest(record=record).come())
    await settle()
    was_done = coming.done()

    books.lent = books.running = record.enqueuing = 0

    async with asyncio.timeout(PATIENCE):
        await coming
    assert not was_done


class Racing(SystemClock):
    """An hour passes with each look at it."""

    def __init__(self) -> None:
        self._looks = count()

    def monotonic(self) -> float:
        return 3600.0 * next(self._looks)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


@pytest.mark.parametrize("is_new", [True, False])
async def test_what_takes_long_is_waited_for_as_long_as_something_happens(
    is_new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "SystemClock", Racing)
    books, events, record = Books(lent=1), Events(), Record()
    record.watch(events)
    coming = asyncio.create_task(books.rest(record=record).come())

    for _ in range(100):
        if is_new:
            events.emit(JobEnqueued(envelope(), 0))
        await asyncio.sleep(0)
    books.lent = 0

    if is_new:
        await coming
    else:
        with pytest.raises(AssertionError, match="It did not come to rest"):
            await coming
