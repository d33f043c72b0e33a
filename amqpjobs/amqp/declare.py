"""Send a plan to the broker: the only room that declares, binds, unbinds and deletes.

Declares are idempotent and run on scratch channels, because a refused one closes its
channel. What exists with other arguments than ours is told apart: one that is safe to leave
is an event, any other a TopologyMismatchError that says how to get out. Where declaring is
somebody else's (`AMQPJOBS_DECLARE=false`), what is needed is only looked for.

AMQP has no way to list bindings, and none to ask for one: they are bound again, or unknown.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Generator, Iterable, Iterator, Sequence
from typing import Self

import aiormq.exceptions
from aiormq.channel import Channel

from amqpjobs.amqp.connection import Session, closing_of
from amqpjobs.comparison import Comparison, Drift, QueueState, surely_missing
from amqpjobs.errors import AccessRefusedError, BrokerError, BrokerUnavailableError, TopologyMismatchError
from amqpjobs.events import Events, TopologyDrifted
from amqpjobs.topology import Arguments, Binding, ExchangeSpec, Plan, QueueSpec, Topology

#: "inequivalent arg 'x-max-length' for queue 'q' in vhost '/': received the value '5' of type
#: 'signedint' but current is none" in the words of all versions.
_DRIFT = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for (?P<what>queue|exchange) '(?P<name>[^']+)'.*?"
    r"received (?P<ours>.+?) but current is (?P<theirs>.+)",
    re.DOTALL,
)
_QUOTED = re.compile(r"'([^']*)'")
#: In the words of a NOT_FOUND about a queue that exists. A stream says so for a moment after its only node was
#: restarted (3.10), any queue while its node or majority is gone.
_AWAY = re.compile(r"is down or inaccessible|due to timeout|is stopped by supervisor|failed to restart")
#: Seconds after which RabbitMQ no longer waits for a quorum queue that is busy, and says that it has no
#: messages and no consumers (3.10), and how often such an answer is doubted.
UNANSWERED, ASKS = 0.25, 8
_NOTHING = QueueState(0, 0)
#: Binds that are sent without waiting for each. Fewer than the client library holds for a connection (10): when that
#: is full, it drops what it must say to a channel that is closed, and the channel's number is lost.
AT_ONCE = 8


class Declarer:
    """Declares plans on sessions."""

    def __init__(self, topology: Topology, events: Events) -> None:
        self._topology = topology
        self._events = events

    async def prepare(self, session: Session, plan: Plan, *, declares: bool) -> None:
        """What each new connection needs: declared, or only looked for where others declare."""
        if not declares:
            await self.require(session, plan)
            return
        async with _Desk(session) as desk:
            await self._infrastructure(desk)
            await self._plan(desk, plan)

    async def require(self, session: Session, plan: Plan) -> None:
        """Raise TopologyMismatchError unless the infrastructure and all of a plan are there. Declares nothing."""
        async with _Desk(session) as desk:
            exchanges = [self._topology.marker.name, *(each.name for each in plan.exchanges)]
            missing = [f"exchange {name!r}" for name in exchanges if not await self._has_exchange(desk, name)]
            queues = [each.name for each in plan.queues]
            missing += [f"queue {name!r}" for name in queues if await self._look(desk, name) is None]
        if missing:
            raise TopologyMismatchError(
                f"The broker lacks {', '.join(missing)}, and with AMQPJOBS_DECLARE=false nothing is declared here. "
                "Run `amqpjobs topology apply TARGET…` as a user who may, or let the broker import what "
                "`amqpjobs topology export TARGET…` prints."
            )

    async def infrastructure(self, session: Session, *, again: bool = False) -> None:
        """What all apps share, unless its marker says that it is all there; `again` mends it all the same."""
        async with _Desk(session) as desk:
            await self._infrastructure(desk, again=again)

    async def plan(self, session: Session, plan: Plan) -> None:
        """All of a plan, in its order."""
        async with _Desk(session) as desk:
            await self._plan(desk, plan)

    async def missing(self, session: Session, plan: Plan) -> list[str]:
        """Exchanges and queues of a plan that are not there. Those that are, are compared; nothing is made."""
        found = await self.compare(session, plan)
        for drift in found.drifts:
            if not drift.is_safe:
                raise drift.error()
            self._events.emit(TopologyDrifted(drift.name, drift.argument, str(drift.ours), str(drift.theirs)))
        return [*found.missing_exchanges, *found.missing_queues]

    async def compare(self, session: Session, plan: Plan) -> Comparison:
        """What is missing, and all that differs. Nothing is made: only what exists is declared again."""
        found = Comparison()
        async with _Desk(session) as desk:
            for exchange in plan.exchanges:
                if not await self._has_exchange(desk, exchange.name):
                    found.missing_exchanges.append(exchange.name)
                elif not exchange.adopted:
                    await self._note(found, exchange.name, self._exchange_drifts(desk, exchange))
            for queue in plan.queues:
                if await self._look(desk, queue.name) is None:
                    found.missing_queues.append(queue.name)
                else:
                    await self._note(found, queue.name, self._queue_drifts(desk, queue))
        found.missing_bindings.extend(surely_missing(plan.bindings, found))
        return found

    async def exchange_exists(self, session: Session, name: str) -> bool:
        """Whether there is such an exchange, of whatever type."""
        async with _Desk(session) as desk:
            return await self._has_exchange(desk, name)

    async def count(self, session: Session, queue: str) -> int | None:
        """How many messages wait in a queue, or None when there is no such queue."""
        state = await self.look(session, queue)
        return None if state is None else state.messages

    async def look(self, session: Session, queue: str) -> QueueState | None:
        """How a queue is, or None when there is no such queue."""
        async with _Desk(session) as desk:
            return await self._look(desk, queue)

    async def look_at(self, session: Session, queues: Iterable[str]) -> dict[str, QueueState | None]:
        """How each of these is, or None where there is no such queue; on one channel where all are there."""
        async with _Desk(session) as desk:
            return {queue: await self._look(desk, queue) for queue in queues}

    async def check_readable(self, session: Session, queue: str) -> None:
        """Raise AccessRefusedError if one may not consume a queue, at no cost: on a consumer's channel it is dear."""
        async with _Desk(session) as desk:
            channel = await desk.channel()
            with told_of_consuming():
                await channel.basic_get(queue)  # what there is goes back with the channel

    async def unbind(self, session: Session, bindings: Sequence[Binding]) -> None:
        """Remove bindings; what is not bound is left so."""
        await self.plan(session, Plan(stale=bindings))

    async def delete_queue(self, session: Session, queue: str, *, only_if_empty: bool) -> int:
        """Delete a queue that nobody consumes; how many messages went with it.

        Raises TopologyMismatchError when it has consumers, or messages although it must be empty.
        """
        async with _Desk(session) as desk:
            is_quorum = await self._is_quorum(desk, queue)
            state = await self._look(desk, queue)
            if state is None:
                return 0
            if state.consumers or (only_if_empty and state.messages):
                raise _in_use(queue, f"it has {state.messages} messages and {state.consumers} consumers")
            channel = await desk.channel()
            try:
                # Quorum queues know neither if-unused nor if-empty: asking closes the connection (3.10 to 4.3).
                answer = await channel.queue_delete(
                    queue, if_unused=not is_quorum, if_empty=only_if_empty and not is_quorum
                )
            except aiormq.exceptions.ChannelPreconditionFailed as error:
                raise _in_use(queue, str(error)) from error
            except aiormq.exceptions.ChannelAccessRefused as error:
                raise _refused(error, "Deleting a queue takes configure on it") from error
            # A quorum queue that is too busy to tell how many there were is deleted with "0".
            return answer.message_count or (state.messages if is_quorum else 0)

    async def delete_exchange(self, session: Session, name: str) -> None:
        """Delete it with its bindings; one that is not there is no matter."""
        async with _Desk(session) as desk:
            channel = await desk.channel()
            try:
                await channel.exchange_delete(name)
            except aiormq.exceptions.ChannelAccessRefused as error:
                raise _refused(error, "Deleting an exchange takes configure on it") from error

    async def _is_quorum(self, desk: "_Desk", queue: str) -> bool:
        """Told by what differs from a classic queue's declare."""
        if await self._look(desk, queue) is None:
            return False
        drifts = await self._queue_drifts(desk, QueueSpec(name=queue, arguments={"x-queue-type": "classic"}))
        return any(drift.argument == "x-queue-type" for drift in drifts)

    # What exists

    async def _has_exchange(self, desk: "_Desk", name: str) -> bool:
        channel = await desk.channel()
        try:
            await channel.exchange_declare(name, passive=True)
        except aiormq.exceptions.ChannelNotFoundEntity:
            return False
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise _refused(error, _TO_SEE) from error
        return True

    async def _look(self, desk: "_Desk", queue: str) -> QueueState | None:
        """Asked again when the broker may have answered without the queue: nothing would look like all is well."""
        for _ in range(ASKS - 1):
            asked = asyncio.get_running_loop().time()
            state = await self._asked(desk, queue)
            if state != _NOTHING or asyncio.get_running_loop().time() - asked < UNANSWERED:
                return state
        return await self._asked(desk, queue)

    async def _asked(self, desk: "_Desk", queue: str) -> QueueState | None:
        channel = await desk.channel()
        try:
            answer = await channel.queue_declare(queue, passive=True)
        except aiormq.exceptions.ChannelNotFoundEntity as error:
            _raise_if_away(error)
            return None
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise _refused(error, _TO_SEE) from error
        return QueueState(answer.message_count or 0, answer.consumer_count or 0)

    async def _note(self, found: Comparison, name: str, drifts: Awaitable[list[Drift]]) -> None:
        try:
            found.drifts.extend(await drifts)
        except AccessRefusedError:
            found.uncompared.append(name)

    async def _exchange_drifts(self, desk: "_Desk", spec: ExchangeSpec) -> list[Drift]:
        drift = await self._try_exchange(desk, spec)
        return [] if drift is None else [drift]

    async def _queue_drifts(self, desk: "_Desk", spec: QueueSpec) -> list[Drift]:
        """All of them: the broker names one at a time, so each is taken over for the next declare."""
        arguments, found = dict(spec.arguments), list[Drift]()
        drift = await self._try_queue(desk, spec.name, arguments)
        while drift is not None and all(drift.argument != each.argument for each in found):
            found.append(drift)
            drift.take_over(arguments)
            try:
                drift = await self._try_queue(desk, spec.name, arguments)
            except TopologyMismatchError:  # what was taken over does not go together with the rest
                break
        return found

    # What is made

    async def _infrastructure(self, desk: "_Desk", *, again: bool = False) -> None:
        if not again and await self._has_exchange(desk, self._topology.marker.name):
            return
        await self._plan(desk, self._topology.infrastructure())
        await self._plan(desk, Plan(exchanges=[self._topology.marker]))

    async def _plan(self, desk: "_Desk", plan: Plan) -> None:
        for exchange in plan.exchanges:
            if not (exchange.adopted and await self._has_exchange(desk, exchange.name)):
                await self._exchange(desk, exchange)
        for queue in plan.queues:
            await self._queue(desk, queue)
        for binding in plan.moved:  # AMQP has no way to unbind without an answer
            await self._unbind(desk, binding)
        await self._bind_all(desk, plan.bindings)
        for binding in plan.stale:
            await self._unbind(desk, binding)

    async def _bind_all(self, desk: "_Desk", bindings: Sequence[Binding]) -> None:
        """Some at a time, with one answer for those: the last one's, since a channel does one after the other."""
        for some in _batched(bindings):
            channel = await desk.channel()
            try:
                for binding in some[:-1]:
                    await _send_bind(channel, binding)
                await _bound(channel, some[-1])
            except (aiormq.exceptions.ChannelClosed, aiormq.exceptions.ChannelInvalidStateError):
                await asyncio.wait([closing_of(channel)])  # it may only be about to close, and take another bind
                for binding in some:  # again, to be told which one was refused
                    await self._bind(desk, binding)

    async def _exchange(self, desk: "_Desk", spec: ExchangeSpec) -> None:
        if (drift := await self._try_exchange(desk, spec)) is not None:
            raise drift.error()

    async def _queue(self, desk: "_Desk", spec: QueueSpec) -> None:
        """Declare; again with what is there where that is safe, so that the arguments behind it are compared too."""
        arguments, told = dict(spec.arguments), set[str]()
        while (drift := await self._try_queue(desk, spec.name, arguments)) is not None:
            if not drift.is_safe or drift.argument in told:
                raise drift.error()
            told.add(drift.argument)
            self._events.emit(TopologyDrifted(drift.name, drift.argument, str(drift.ours), str(drift.theirs)))
            drift.take_over(arguments)

    async def _try_exchange(self, desk: "_Desk", spec: ExchangeSpec) -> Drift | None:
        channel = await desk.channel()
        try:
            await channel.exchange_declare(
                spec.name, exchange_type=spec.type, durable=True, arguments=dict(spec.arguments)
            )
        except aiormq.exceptions.ChannelClosed as error:
            return _drift(error, spec.name)
        return None

    async def _try_queue(self, desk: "_Desk", name: str, arguments: Arguments) -> Drift | None:
        channel = await desk.channel()
        try:
            await channel.queue_declare(name, durable=True, arguments=dict(arguments))
        except aiormq.exceptions.ChannelClosed as error:
            return _drift(error, name)
        return None

    async def _bind(self, desk: "_Desk", binding: Binding) -> None:
        channel = await desk.channel()
        try:
            await _bound(channel, binding)
        except aiormq.exceptions.ChannelClosed as error:
            raise _unbound(error, binding) from error

    async def _unbind(self, desk: "_Desk", binding: Binding) -> None:
        channel = await desk.channel()
        unbind = channel.exchange_unbind if binding.to_exchange else channel.queue_unbind
        try:
            await unbind(binding.destination, binding.source, binding.key)
        except aiormq.exceptions.ChannelClosed as error:
            raise _unbound(error, binding) from error


class _Desk:
    """A scratch channel that is replaced when a refused declare closed it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stack = contextlib.AsyncExitStack()
        self._channel: Channel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def channel(self) -> Channel:
        if self._channel is None or self._channel.is_closed:
            self._channel = await self._stack.enter_async_context(self._session.scratch(confirms=False))
        return self._channel


def _batched(bindings: Sequence[Binding]) -> Iterator[Sequence[Binding]]:
    for first in range(0, len(bindings), AT_ONCE):
        yield bindings[first : first + AT_ONCE]


async def _bound(channel: Channel, binding: Binding) -> None:
    bind = channel.exchange_bind if binding.to_exchange else channel.queue_bind
    await bind(binding.destination, binding.source, binding.key)


async def _send_bind(channel: Channel, binding: Binding) -> None:
    """No answer comes; when it is refused, the channel closes."""
    bind = channel.exchange_bind if binding.to_exchange else channel.queue_bind
    await bind(binding.destination, binding.source, binding.key, nowait=True)


@contextlib.contextmanager
def told_of_consuming() -> Generator[None]:
    """A refused consume in our words."""
    try:
        yield
    except aiormq.exceptions.ChannelAccessRefused as error:
        raise _refused(error, "Consuming takes read on the queue") from error


def _value(words: str) -> str | int | None:
    """The value in "the value '5' of type 'signedint'", "'topic'" or "none"."""
    quoted = _QUOTED.search(words)
    if quoted is None:
        return None
    if words.rstrip().endswith("of type 'bool'"):
        return quoted[1] == "true"
    return int(quoted[1]) if re.fullmatch(r"-?\d+", quoted[1]) else quoted[1]


def _drift(error: aiormq.exceptions.ChannelClosed, name: str) -> Drift:
    """What differs, where a declare was refused for that; else raises what it was refused for."""
    if isinstance(error, aiormq.exceptions.ChannelAccessRefused):
        raise _refused(error, _TO_DECLARE) from error
    _raise_if_away(error)
    found = _DRIFT.search(str(error))
    if found is None:
        raise TopologyMismatchError(f"The broker refused to declare {name!r}: {error}") from error
    return Drift(
        what=found["what"],
        name=name,
        argument=found["argument"],
        ours=_value(found["ours"]),
        theirs=_value(found["theirs"]),
    )


def _raise_if_away(error: aiormq.exceptions.ChannelClosed) -> None:
    """Waiting mends it, which is how BrokerUnavailableError is understood."""
    if _AWAY.search(str(error)):
        raise BrokerUnavailableError(f"The broker is not ready: {error}.") from error


def _unbound(error: aiormq.exceptions.ChannelClosed, binding: Binding) -> BrokerError:
    _raise_if_away(error)
    if isinstance(error, aiormq.exceptions.ChannelAccessRefused):
        return _refused(
            error,
            f"Binding and unbinding takes write on {binding.destination!r}, where it leads, and read on the exchange "
            f"{binding.source!r}",
        )
    return TopologyMismatchError(f"The broker refused to bind {binding.destination!r} to {binding.source!r}: {error}")


def _in_use(queue: str, why: str) -> TopologyMismatchError:
    return TopologyMismatchError(f"Queue {queue!r} was not deleted: {why}.")


_TO_SEE = (
    "Since RabbitMQ 4.2.6 one must have some permission on a name to see whether it is there "
    "(4.2.6 and 4.3.0 want configure)"
)
_TO_DECLARE = (
    "A declare takes configure on its name; with a dead-letter or alternate exchange also read on the name and write "
    "on that exchange"
)


def _refused(error: Exception, rule: str) -> AccessRefusedError:
    return AccessRefusedError(
        f"The broker refused a permission: {error}. {rule}. `amqpjobs topology permissions ROLE TARGET…` prints all "
        "that a role needs."
    )
