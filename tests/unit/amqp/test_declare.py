"""What is made of a broker's answers. Session and channel are fakes."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import aiormq.exceptions
import pytest

from amqpjobs.amqp import declare
from amqpjobs.amqp.connection import Session
from amqpjobs.amqp.declare import ASKS, AT_ONCE, Declarer
from amqpjobs.errors import AccessRefusedError, BrokerUnavailableError
from amqpjobs.events import Events
from amqpjobs.topology import Binding, Plan, QueueSpec, Topology


class FakeSession:
    """Its queue answers with these counts in turn, each after so many seconds; the last one stays."""

    is_closed = False

    def __init__(self, *answers: tuple[int, float]) -> None:
        self._answers = answers
        self.asked = 0

    @asynccontextmanager
    async def scratch(self, *, confirms: bool) -> AsyncGenerator["FakeSession"]:
        yield self

    async def queue_declare(self, queue: str, *, passive: bool) -> Any:
        messages, seconds = self._answers[min(self.asked, len(self._answers) - 1)]
        self.asked += 1
        await asyncio.sleep(seconds)
        return SimpleNamespace(message_count=messages, consumer_count=0)


async def count(session: FakeSession) -> int | None:
    return await Declarer(Topology("tests"), Events()).count(cast("Session", session), "q")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declare, "UNANSWERED", 0.02)


async def test_a_queue_too_busy_to_answer_in_time_is_not_taken_for_an_empty_one() -> None:
    assert await count(FakeSession((0, 0.03), (0, 0.03), (3, 0.0))) == 3


async def test_an_empty_queue_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declare, "UNANSWERED", 60.0)  # a busy machine is no busy queue
    session = FakeSession((0, 0.0))

    assert await count(session) == 0
    assert session.asked == 1


async def test_an_empty_queue_far_away_is_asked_some_times_only() -> None:
    session = FakeSession((0, 0.03))

    assert await count(session) == 0
    assert session.asked == ASKS


class DoomedSession(FakeSession):
    """Its queue is a quorum queue that does not tell, when it is deleted, how much goes with it."""

    async def queue_declare(
        self, queue: str, *, passive: bool = False, durable: bool = False, arguments: Any = None
    ) -> Any:
        if not passive and arguments["x-queue-type"] != "quorum":
            raise aiormq.exceptions.ChannelPreconditionFailed(
                f"PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue '{queue}' in vhost '/': "
                f"received '{arguments['x-queue-type']}' but current is 'quorum'"
            )
        return await super().queue_declare(queue, passive=passive)

    async def queue_delete(self, queue: str, *, if_unused: bool, if_empty: bool) -> Any:
        return SimpleNamespace(message_count=0)


async def test_a_queue_too_busy_to_tell_what_goes_with_it_is_believed_what_it_told_before() -> None:
    session = cast("Session", DoomedSession((3, 0.0)))

    assert await Declarer(Topology("tests"), Events()).delete_queue(session, "q", only_if_empty=False) == 3


class AwaySession:
    """Its queue exists, and the broker answers all that is asked of it with these words."""

    is_closed = False

    def __init__(self, words: str) -> None:
        self._error = aiormq.exceptions.ChannelNotFoundEntity(words)
        self.closing = asyncio.get_running_loop().create_future()
        self.closing.set_result(None)

    @asynccontextmanager
    async def scratch(self, *, confirms: bool) -> AsyncGenerator["AwaySession"]:
        yield self

    async def queue_declare(self, queue: str, **_: object) -> None:
        raise self._error

    async def queue_bind(self, *_: object, **__: object) -> None:
        raise self._error

    async def exchange_declare(self, name: str, **_: object) -> None:
        pass


AWAY = [
    "NOT_FOUND - home node 'a@b' of durable queue 'q' in vhost '/' is down or inaccessible",
    "NOT_FOUND - failed to perform operation on queue 'q' in vhost '/' due to timeout",
    "NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor",
]


@pytest.mark.parametrize("words", AWAY)
async def test_a_stream_whose_leader_was_not_yet_up_after_a_restart_is_waited_for_and_no_mismatch(words: str) -> None:
    declarer, session = Declarer(Topology("tests"), Events()), cast("Session", AwaySession(words))
    queue = QueueSpec(name="q", arguments={})

    with pytest.raises(BrokerUnavailableError, match=r"not ready: .*'q'"):
        await declarer.plan(session, Plan(queues=[queue]))
    with pytest.raises(BrokerUnavailableError):
        await declarer.plan(session, Plan(bindings=[Binding(source="e", destination="q", key="k")]))
    with pytest.raises(BrokerUnavailableError):
        await declarer.require(session, Plan(queues=[queue]))


async def test_a_queue_that_is_missing_is_told_as_missing() -> None:
    session = cast("Session", AwaySession("NOT_FOUND - no queue 'q' in vhost '/'"))

    assert await Declarer(Topology("tests"), Events()).look(session, "q") is None


class BindingSession:
    """Binds all keys but the refused one, after which a channel is closed; remembers which binds were waited for."""

    def __init__(self, refused: str = "") -> None:
        self._refused = refused
        self.is_closed = False
        self.closing = asyncio.get_running_loop().create_future()
        self.sent = list[str]()
        self.waited_for = list[str]()
        self.channels = 0

    @asynccontextmanager
    async def scratch(self, *, confirms: bool) -> AsyncGenerator["BindingSession"]:
        self.channels, self.is_closed = self.channels + 1, False
        self.closing = asyncio.get_running_loop().create_future()
        yield self

    async def queue_bind(self, queue: str, exchange: str, key: str, *, nowait: bool = False) -> None:
        (self.sent if nowait else self.waited_for).append(key)
        if self.is_closed:
            raise aiormq.exceptions.ChannelInvalidStateError
        if key == self._refused:
            self.is_closed = True
            self.closing.set_result(None)
        if self.is_closed and not nowait:
            raise aiormq.exceptions.ChannelAccessRefused(f"ACCESS_REFUSED - write access to exchange '{exchange}'")


BINDINGS = [Binding(source=f"exchange-{key}", destination="q", key=key) for key in "abcd"]


async def test_of_some_binds_only_the_last_one_is_waited_for() -> None:
    session = BindingSession()
    many = [Binding(source="e", destination="q", key=str(number)) for number in range(AT_ONCE + 2)]

    await Declarer(Topology("tests"), Events()).plan(cast("Session", session), Plan(bindings=many))

    assert sorted(session.sent + session.waited_for) == sorted(each.key for each in many)
    assert session.waited_for == [str(AT_ONCE - 1), str(AT_ONCE + 1)]
    assert session.channels == 1


@pytest.mark.parametrize("refused", "abcd")
async def test_a_bind_that_is_refused_is_told_by_name_although_it_was_not_waited_for(refused: str) -> None:
    session = BindingSession(refused)

    with pytest.raises(AccessRefusedError, match=f"'exchange-{refused}'"):
        await Declarer(Topology("tests"), Events()).plan(cast("Session", session), Plan(bindings=BINDINGS))
