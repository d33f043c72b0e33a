"""Send a plan to the broker: the only room that declares and binds.

Declares are idempotent and run on scratch channels, because a refused one closes its
channel. What exists with other arguments than ours is told apart: one that is safe to leave
is an event, any other a TopologyMismatchError that says how to get out.
"""

import contextlib
import re
from typing import Self

import aiormq.exceptions
from aiormq.channel import Channel

from amqpjobs.amqp.connection import Session
from amqpjobs.errors import AccessRefusedError, BrokerError, TopologyMismatchError
from amqpjobs.events import Events, TopologyDrifted
from amqpjobs.topology import SAFE_TO_LEAVE, Binding, ExchangeSpec, Plan, QueueSpec, Topology

#: "inequivalent arg 'x-max-length' for queue 'q' in vhost '/': received the value '5' of type
#: 'signedint' but current is none" in the words of all versions.
_DRIFT = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for (?P<what>queue|exchange) '(?P<name>[^']+)'.*?"
    r"received (?P<ours>.+?) but current is (?P<theirs>.+)",
    re.DOTALL,
)
_QUOTED = re.compile(r"'([^']*)'")


class Declarer:
    """Declares plans on sessions."""

    def __init__(self, topology: Topology, events: Events) -> None:
        self._topology = topology
        self._events = events

    async def infrastructure(self, session: Session) -> None:
        """What all apps share, unless its marker says that it is all there."""
        if await self.exchange_exists(session, self._topology.marker.name):
            return
        await self.plan(session, self._topology.infrastructure())
        await self.plan(session, Plan(exchanges=[self._topology.marker]))

    async def plan(self, session: Session, plan: Plan) -> None:
        """All of a plan, in its order."""
        async with _Desk(session) as desk:
            for exchange in plan.exchanges:
                if not (exchange.adopted and await self.exchange_exists(session, exchange.name)):
                    await self._exchange(desk, exchange)
            for queue in plan.queues:
                await self._queue(desk, queue)
            for binding in plan.bindings:
                await self._bind(desk, binding)
            for binding in plan.stale:
                await self._unbind(desk, binding)

    async def missing(self, session: Session, plan: Plan) -> list[str]:
        """Exchanges and queues of a plan that are not there. Those that are, are compared; nothing is made."""
        exchanges = [each for each in plan.exchanges if await self.exchange_exists(session, each.name)]
        queues = [each for each in plan.queues if await self.count(session, each.name) is not None]
        await self.plan(session, Plan(exchanges=exchanges, queues=queues))
        there = {each.name for each in exchanges} | {each.name for each in queues}
        named = [each.name for each in plan.exchanges] + [each.name for each in plan.queues]
        return [name for name in named if name not in there]

    async def exchange_exists(self, session: Session, name: str) -> bool:
        """Whether there is such an exchange, of whatever type."""
        try:
            async with session.scratch() as channel:
                await channel.exchange_declare(name, passive=True)
        except aiormq.exceptions.ChannelNotFoundEntity:
            return False
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise _refused(error) from error
        return True

    async def count(self, session: Session, queue: str) -> int | None:
        """How many messages wait in a queue, or None when there is no such queue."""
        try:
            async with session.scratch() as channel:
                return (await channel.queue_declare(queue, passive=True)).message_count
        except aiormq.exceptions.ChannelNotFoundEntity:
            return None
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise _refused(error) from error

    async def _exchange(self, desk: "_Desk", spec: ExchangeSpec) -> None:
        channel = await desk.channel()
        try:
            await channel.exchange_declare(
                spec.name, exchange_type=spec.type, durable=True, arguments=dict(spec.arguments)
            )
        except aiormq.exceptions.ChannelClosed as error:
            raise _told(error, spec.name) from error

    async def _queue(self, desk: "_Desk", spec: QueueSpec) -> None:
        arguments: dict[str, str | int | bool] = dict(spec.arguments)
        told = set[str]()
        while True:
            channel = await desk.channel()
            try:
                await channel.queue_declare(spec.name, durable=True, arguments=dict(arguments))
            except aiormq.exceptions.ChannelClosed as error:
                drift = _DRIFT.search(str(error))
                if drift is None or drift["argument"] not in SAFE_TO_LEAVE - told:
                    raise _told(error, spec.name) from error
                told.add(drift["argument"])
                self._leave(drift, spec.name, arguments)
            else:
                return

    def _leave(self, drift: re.Match[str], queue: str, arguments: dict[str, str | int | bool]) -> None:
        """Declare again with what is there, so that the arguments behind it are compared too."""
        argument, theirs = drift["argument"], _value(drift["theirs"])
        self._events.emit(TopologyDrifted(queue, argument, str(_value(drift["ours"])), str(theirs)))
        if theirs is None:
            arguments.pop(argument, None)
        else:
            arguments[argument] = theirs

    async def _bind(self, desk: "_Desk", binding: Binding) -> None:
        channel = await desk.channel()
        bind = channel.exchange_bind if binding.to_exchange else channel.queue_bind
        try:
            await bind(binding.destination, binding.source, binding.key)
        except aiormq.exceptions.ChannelClosed as error:
            raise _told(error, binding.destination) from error

    async def _unbind(self, desk: "_Desk", binding: Binding) -> None:
        channel = await desk.channel()
        try:
            await channel.queue_unbind(binding.destination, binding.source, binding.key)
        except aiormq.exceptions.ChannelClosed as error:
            raise _told(error, binding.destination) from error


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
            self._channel = await self._stack.enter_async_context(self._session.scratch())
        return self._channel


def _value(words: str) -> str | int | None:
    """The value in "the value '5' of type 'signedint'", "'topic'" or "none"."""
    quoted = _QUOTED.search(words)
    if quoted is None:
        return None
    return int(quoted[1]) if re.fullmatch(r"-?\d+", quoted[1]) else quoted[1]


def _told(error: aiormq.exceptions.ChannelClosed, name: str) -> BrokerError:
    """A refused declare in our words."""
    if isinstance(error, aiormq.exceptions.ChannelAccessRefused):
        return _refused(error)
    drift = _DRIFT.search(str(error))
    if drift is None:
        return TopologyMismatchError(f"The broker refused to declare {name!r}: {error}")
    what, argument = drift["what"], drift["argument"]
    return TopologyMismatchError(
        f"{what.capitalize()} {name!r} exists with {argument} = {_value(drift['theirs'])!r}, and we declare "
        f"{_value(drift['ours'])!r}. A declared {what} keeps its properties for ever: give this one another name, "
        f"or let it run empty, delete it (rabbitmqctl delete_{what} {name}) and start again."
    )


def _refused(error: Exception) -> AccessRefusedError:
    return AccessRefusedError(
        f"The broker refused a permission: {error}. Give the user configure, write and read on the names of "
        "this namespace (rabbitmqctl set_permissions)."
    )
