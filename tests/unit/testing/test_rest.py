import asyncio
from dataclasses import dataclass

import pytest

from amqpjobs.devbroker import Stock
from amqpjobs.registry import Registry
from amqpjobs.testing import rest as room
from amqpjobs.testing.clock import FakeClock, settle
from amqpjobs.testing.record import Record
from amqpjobs.testing.rest import Rest
from tests.support.broker import PATIENCE


@dataclass
class Books:
    """A broker's and a worker's, as a test writes them."""

    lent: int = 0
    running: int = 0
    waiting: int = 0
    is_consuming: bool = True

    def stock(self, queue: str, /) -> Stock:
        return Stock(ready=5, lent=self.lent)

    def rest(self) -> Rest:
        return Rest(
            broker=self,
            clock=FakeClock(),
            record=Record(),
            registry=Registry("work"),
            queues=["work"],
            worker=lambda: self,
            patience=PATIENCE,
        )


@pytest.mark.parametrize(
    "books",
    [
        pytest.param(Books(lent=1), id="a delivery or an ack is on its way"),
        pytest.param(Books(waiting=1), id="a channel is gone, and its deliveries are to come again"),
        pytest.param(Books(lent=1, running=1), id="a job begins or is settled"),
        pytest.param(Books(is_consuming=False), id="the connection is away"),
    ],
)
async def test_there_is_no_rest_while_the_books_do_not_agree(books: Books) -> None:
    coming = asyncio.create_task(books.rest().come())
    await settle()
    was_done = coming.done()

    books.lent, books.running, books.waiting, books.is_consuming = 2, 0, 2, True

    async with asyncio.timeout(PATIENCE):
        await coming
    assert not was_done


async def test_a_rest_that_does_not_come_tells_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LONGEST", 0.01)

    with pytest.raises(AssertionError, match="3 jobs are lent to the worker, and it has 0"):
        await Books(lent=3).rest().come()
