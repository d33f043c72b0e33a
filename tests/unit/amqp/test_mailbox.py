"""How a mailbox is opened, lost and opened again. Sessions and the declarer are fakes; it consumes nothing."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from amqpjobs import AccessRefusedError, BrokerUnavailableError
from amqpjobs.amqp import mailbox as module
from amqpjobs.amqp.connection import Line, Session
from amqpjobs.amqp.consumer import Consumer
from amqpjobs.amqp.declare import Declarer
from amqpjobs.amqp.mailbox import Mailbox
from amqpjobs.events import Events, MailboxFailed, MailboxOpened
from amqpjobs.topology import Plan, Topology
from amqpjobs.wire import Delivery
from tests.support.broker import PATIENCE, eventually
from tests.unit.making import FakeSettler, delivery, watched

TOPOLOGY = Topology("ns")


class FakeSession:
    def __init__(self) -> None:
        self.blocked = ""
        self._end = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return not self._end.is_set()

    async def unblocked(self) -> None: ...

    async def ended(self) -> None:
        await self._end.wait()

    def end(self) -> None:
        self._end.set()


class FakeLine:
    """Has a session, or will have one."""

    def __init__(self) -> None:
        self.live = FakeSession()

    async def session(self) -> FakeSession:
        while not self.live.is_open:  # noqa: ASYNC110  (a fake of a link)
            await asyncio.sleep(0)
        return self.live


class FakeDeclarer:
    """Fails as it is told to, and writes down what was declared and deleted."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.unreadable: list[Exception] = []
        self.declared: list[str] = []
        self.deleted: list[str] = []

    async def plan(self, session: FakeSession, plan: Plan) -> None:
        self.declared.append(plan.queues[0].name)
        if self.failures:
            raise self.failures.pop(0)

    async def check_readable(self, session: FakeSession, queue: str) -> None:
        if self.unreadable:
            raise self.unreadable.pop(0)

    async def delete_queue(self, session: FakeSession, queue: str, *, only_if_empty: bool) -> int:
        self.deleted.append(queue)
        return 0


class FakeConsumer:
    async def cancel(self) -> None: ...


class Post:
    """A mailbox and what is around it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.line, self.declarer, self.events = FakeLine(), FakeDeclarer(), Events()
        self.opened = watched(self.events, MailboxOpened)
        self.failed = cast("list[MailboxFailed]", watched(self.events, MailboxFailed))
        self.got: list[bytes] = []
        self.deliver: Any = None
        monkeypatch.setattr(module, "consume", self._consume)
        monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
        monkeypatch.setattr(module, "LONGEST_PAUSE", 0.01)
        self.mailbox = Mailbox(
            line=cast("Line", self.line),
            topology=TOPOLOGY,
            declarer=cast("Declarer", self.declarer),
            events=self.events,
            expires=60,
            on_delivery=self._take,
        )

    async def _consume(self, session: Session, *, on_delivery: Any, **options: Any) -> Consumer:
        self.deliver = on_delivery
        return cast("Consumer", FakeConsumer())

    def _take(self, message: Delivery) -> None:
        self.got.append(message.body)
        if message.body == b"bad":
            raise ValueError("a bug")


@asynccontextmanager
async def posted(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Post]:
    post = Post(monkeypatch)
    try:
        yield post
    finally:
        await post.mailbox.close()


async def soon(awaitable: Awaitable[str]) -> str:
    async with asyncio.timeout(PATIENCE):
        return await awaitable


async def test_nothing_is_opened_before_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    async with posted(monkeypatch) as post:
        await asyncio.sleep(0)

        assert post.declarer.declared == []

    assert post.declarer.deleted == []


async def test_all_who_ask_get_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    async with posted(monkeypatch) as post:
        addresses = await asyncio.gather(*(soon(post.mailbox.address()) for _ in range(10)))

    assert len({*addresses, *post.declarer.declared}) == 1
    assert len(post.declarer.declared) == 1
    assert TOPOLOGY.to_reply(addresses[0]) is not None
    assert post.declarer.deleted == [addresses[0]]


async def test_on_each_new_connection_it_is_opened_again_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async with posted(monkeypatch) as post:
        addresses = [await soon(post.mailbox.address())]
        for _ in range(3):
            post.line.live.end()
            post.line.live = FakeSession()
            addresses.append(await soon(post.mailbox.address()))

    assert len(set(addresses)) == 1
    assert len(post.declarer.declared) == len(post.opened) == 4


@pytest.mark.parametrize("is_silent", [False, True])
async def test_where_its_node_stays_away_it_takes_another_name(
    monkeypatch: pytest.MonkeyPatch, is_silent: bool
) -> None:
    monkeypatch.setattr(module, "ABSENT", 0.05)
    async with posted(monkeypatch) as post:
        first = await soon(post.mailbox.address())

        async def be_away(session: FakeSession, plan: Plan) -> None:
            if plan.queues[0].name == first:
                await (asyncio.Event().wait() if is_silent else asyncio.sleep(0))
                raise BrokerUnavailableError("home node of the durable queue is down")

        monkeypatch.setattr(post.declarer, "plan", be_away)
        post.line.live.end()
        post.line.live = FakeSession()
        second = await soon(post.mailbox.address())

    assert first != second


async def test_a_node_that_is_away_for_a_moment_costs_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ABSENT", PATIENCE)
    async with posted(monkeypatch) as post:
        addresses = [await soon(post.mailbox.address())]
        for _ in range(3):
            post.line.live.end()
            post.line.live = FakeSession()
            post.declarer.failures = [BrokerUnavailableError("home node of the durable queue is down")] * 3
            addresses.append(await soon(post.mailbox.address()))

    assert len(set(addresses)) == 1


async def test_while_the_broker_blocks_publishers_no_name_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ABSENT", 0.0)
    async with posted(monkeypatch) as post:
        post.line.live.blocked = "short of memory"
        post.declarer.failures = [BrokerUnavailableError("no answer")] * 3
        await soon(post.mailbox.address())

    assert len(set(post.declarer.declared)) == 1


async def test_a_connection_that_is_lost_amid_the_opening_costs_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async with posted(monkeypatch) as post:

        async def lose(session: FakeSession, plan: Plan) -> None:
            post.declarer.declared.append(plan.queues[0].name)
            if session is first:
                post.line.live = FakeSession()
                session.end()
                raise BrokerUnavailableError("lost")

        first = post.line.live
        monkeypatch.setattr(post.declarer, "plan", lose)
        await soon(post.mailbox.address())

    assert len(post.declarer.declared) == 2
    assert len(set(post.declarer.declared)) == 1


async def test_a_refusal_is_told_to_who_asks_and_the_next_one_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with posted(monkeypatch) as post:
        post.declarer.unreadable.append(AccessRefusedError("no read"))
        with pytest.raises(AccessRefusedError, match="no read"):
            await soon(post.mailbox.address())
        address = await soon(post.mailbox.address())

    assert [str(each.error) for each in post.failed] == ["no read"]
    assert address == post.failed[0].queue


async def test_a_bug_is_told_and_not_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async with posted(monkeypatch) as post:
        post.declarer.failures.append(KeyError("a bug"))

        with pytest.raises(KeyError):
            await soon(post.mailbox.address())


async def test_what_comes_is_handed_on_and_acked_whatever_becomes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = FakeSettler()
    async with posted(monkeypatch) as post:
        await soon(post.mailbox.address())
        for number, body in enumerate((b"one", b"bad", b"two")):
            post.deliver(delivery(body, tag=number, settler=channel))

        async def are_acked() -> bool:
            return len(channel.log) == 3

        await eventually(are_acked)

    assert post.got == [b"one", b"bad", b"two"]
    assert channel.log == [("ack", 0), ("ack", 1), ("ack", 2)]


async def test_who_waits_for_the_address_is_told_of_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    post = Post(monkeypatch)
    post.line.live.end()
    waiting = asyncio.create_task(post.mailbox.address())
    await asyncio.sleep(0)

    await post.mailbox.close()
    await post.mailbox.close()

    with pytest.raises(BrokerUnavailableError, match="closed"):
        await waiting


async def test_whoever_gives_up_waiting_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with posted(monkeypatch) as post:
        post.line.live.end()
        waiting = asyncio.create_task(post.mailbox.address())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        post.line.live = FakeSession()

        assert await soon(post.mailbox.address())
