"""A vhost: its exchanges and queues, how they are bound, and the way of a message through them."""

import secrets
from base64 import urlsafe_b64encode
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from amqpjobs.devbroker.arguments import (
    QueueArguments,
    check_equivalent,
    check_same,
    checked_queue,
    differs,
)
from amqpjobs.devbroker.checks import CLASSIC, DROP_HEAD, QUORUM, STREAM
from amqpjobs.devbroker.deadletter import Reason, died, is_cycle
from amqpjobs.devbroker.errors import Code, RefusedError, failed, locked, missing, place, refused, unsupported
from amqpjobs.devbroker.exchange import DIRECT, FANOUT, HEADERS, TOPIC, TYPES, Binding, Exchange, check_binding
from amqpjobs.devbroker.memory import Memory
from amqpjobs.devbroker.message import Message
from amqpjobs.devbroker.profile import Profile
from amqpjobs.devbroker.queue import Attributes, Queue
from amqpjobs.devbroker.quorum import QuorumQueue
from amqpjobs.devbroker.stream import StreamQueue
from amqpjobs.devbroker.table import Table
from amqpjobs.devbroker.timers import Timers

Destination = Queue | Exchange["Destination"]
AnyExchange = Exchange[Destination]

#: Direct reply-to: the queue that is a channel.
REPLY_TO = "amq.rabbitmq.reply-to"
_QUEUES: dict[str, type[Queue]] = {CLASSIC: Queue, QUORUM: QuorumQueue, STREAM: StreamQueue}
_PREDECLARED = {
    "": DIRECT,
    "amq.direct": DIRECT,
    "amq.fanout": FANOUT,
    "amq.topic": TOPIC,
    "amq.headers": HEADERS,
    "amq.match": HEADERS,
}
_ROUTES_REMEMBERED = 4096


class ReplyTaker(Protocol):
    """A channel that consumes direct replies."""

    def deliver_reply(self, message: Message) -> None: ...


class VHost:
    """Everything of one name space."""

    def __init__(
        self, name: str, profile: Profile, timers: Timers, memory: Memory, consumer_timeout: float | None = None
    ) -> None:
        self.name = name
        self.consumer_timeout = consumer_timeout
        self.profile = profile
        self.timers = timers
        self.memory = memory
        self.queues: dict[str, Queue] = {}
        self.exchanges: dict[str, AnyExchange] = {}
        self.reply_takers: dict[str, ReplyTaker] = {}
        #: Bindings by where they lead to.
        self._inward: dict[Destination, dict[tuple[AnyExchange, Binding[Destination]], None]] = {}
        self._routes: dict[tuple[str, tuple[str, ...]], tuple[Queue, ...]] = {}
        self._graves: deque[tuple[Queue, Message, Reason]] = deque()
        self._is_burying = False
        for exchange, kind in _PREDECLARED.items():
            self.exchanges[exchange] = Exchange(exchange, kind, is_exact=not profile.are_deaths_headers)
        self.exchanges["amq.rabbitmq.trace"] = Exchange("amq.rabbitmq.trace", TOPIC, is_internal=True)

    # -- queues --------------------------------------------------------------------------------------------

    def place(self, kind: str, name: str) -> str:
        """How error texts name a queue or an exchange of this vhost."""
        return place(kind, name, self.name)

    def queue(self, name: str, connection: object) -> Queue:
        """One that this connection may use. Raises `RefusedError`."""
        queue = self.queues.get(name)
        if queue is None:
            raise missing(self.place("queue", name))
        self.check_access(queue, connection)
        return queue

    def check_access(self, queue: Queue, connection: object) -> None:
        """Raises `RefusedError` if it is exclusive to another connection."""
        if queue.attributes.owner not in (None, connection):
            raise _locked(queue)

    def declare_queue(self, name: str, given: Table, attributes: Attributes) -> Queue:
        """Make it, or check that it is the same. Raises `RefusedError`."""
        if (existing := self.queues.get(name)) is not None:
            self._check_same_queue(existing, given, attributes)
            existing.redeclared()
            return existing
        arguments = checked_queue(given, self.place("queue", name), self.profile)
        self._check_combination(name, arguments, attributes)
        queue = _QUEUES[arguments.kind](name, self, arguments, attributes)
        self.queues[name] = queue
        self._routes.clear()
        return queue

    def _check_same_queue(self, queue: Queue, given: Table, attributes: Attributes) -> None:
        if queue.attributes.owner is not attributes.owner:
            raise _locked(queue)
        for name in ("durable", "auto_delete"):
            current, asked = getattr(queue.attributes, f"is_{name}"), getattr(attributes, f"is_{name}")
            if current != asked:
                differs(name, queue.place, f"'{asked}'".lower(), f"'{current}'".lower())
        check_equivalent(queue.arguments, given, queue.place, self.profile)

    def _check_combination(self, name: str, arguments: QueueArguments, attributes: Attributes) -> None:
        what = self.place("queue", name)
        if arguments.kind == CLASSIC:
            return
        for is_wrong, problem in (
            (attributes.is_auto_delete, "auto-delete"),
            (attributes.owner is not None, "exclusive-owner"),
            (not attributes.is_durable, "non-durable"),
        ):
            if is_wrong:
                raise failed(f"invalid property '{problem}' for {what}")

    def delete_queue(self, queue: Queue, *, if_unused: bool, if_empty: bool) -> int:
        """How many messages were in it. Raises `RefusedError`."""
        if isinstance(queue, QuorumQueue):
            for is_asked, asked in ((if_unused, "if-unused"), (if_empty, "if-empty")):
                if is_asked:
                    words = f"queue.delete operations with {asked} flag set are not supported by quorum queues"
                    raise unsupported(f"cannot delete {queue.place}. {words}")
        if if_empty and queue.backlog:
            raise failed(f"{queue.place} not empty")
        if if_unused and len(queue.consumers):
            raise failed(f"{queue.place} in use")
        count = len(queue.backlog)
        self.remove_queue(queue)
        return count

    def remove_queue(self, queue: Queue) -> None:
        """Delete it, whatever it holds; its messages are no dead letters."""
        if self.queues.get(queue.name) is not queue:
            return
        del self.queues[queue.name]
        self._unbind_all(queue)
        queue.delete()

    def server_name(self) -> str:
        """A name for a queue whose client gave none."""
        return "amq.gen-" + urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")

    # -- exchanges -----------------------------------------------------------------------------------------

    def exchange(self, name: str) -> AnyExchange:
        """Raises `RefusedError` if there is none."""
        exchange = self.exchanges.get(name)
        if exchange is None:
            raise missing(self.place("exchange", name))
        return exchange

    def declare_exchange(self, wanted: AnyExchange) -> None:
        """Make it, or check that it is the same. Raises `RefusedError`."""
        what = self.place("exchange", wanted.name)
        if wanted.type not in TYPES:
            code = Code.COMMAND_INVALID if self.profile.are_deaths_headers else Code.PRECONDITION_FAILED
            raise RefusedError(code, f"unknown exchange type '{wanted.type}'")
        if (existing := self.exchanges.get(wanted.name)) is None:
            check_exchange_name(wanted.name)
            self.exchanges[wanted.name] = existing = wanted
            self._routes.clear()
        for name, current, given in (
            ("type", existing.type, wanted.type),
            ("durable", existing.is_durable, wanted.is_durable),
            ("auto_delete", existing.is_auto_delete, wanted.is_auto_delete),
            ("internal", existing.is_internal, wanted.is_internal),
        ):
            if current != given:
                differs(name, what, f"'{given}'".lower(), f"'{current}'".lower())
        alternate = "alternate-exchange"
        check_same(existing.arguments.look(alternate), wanted.arguments.look(alternate), alternate, what)

    def delete_exchange(self, name: str, *, if_unused: bool) -> None:
        """Also one that is not there. Raises `RefusedError`."""
        exchange = self.exchanges.get(name)
        if exchange is None:
            return
        if if_unused and exchange.bindings:
            raise failed(f"{self.place('exchange', name)} in use")
        self._remove_exchange(exchange)

    def _remove_exchange(self, exchange: AnyExchange) -> None:
        del self.exchanges[exchange.name]
        for binding in list(exchange.bindings):
            exchange.unbind(binding)
            self._inward[binding.destination].pop((exchange, binding), None)
        self._unbind_all(exchange)

    # -- bindings ------------------------------------------------------------------------------------------

    def bind(self, source: AnyExchange, destination: Destination, key: str, arguments: Table) -> None:
        check_binding(source.type, arguments)
        binding = Binding(key, tuple(sorted(arguments.items(), key=lambda item: item[0])), destination)
        source.bind(binding)
        self._inward.setdefault(destination, {})[source, binding] = None
        self._routes.clear()

    def unbind(self, source: AnyExchange, destination: Destination, key: str, arguments: Table) -> None:
        """Also what is not bound."""
        binding = Binding(key, tuple(sorted(arguments.items(), key=lambda item: item[0])), destination)
        if source.unbind(binding):
            del self._inward[destination][source, binding]
            self._routes.clear()
            self._drop_unused(source)

    def _unbind_all(self, destination: Destination) -> None:
        self._routes.clear()
        for source, binding in self._inward.pop(destination, {}):
            source.unbind(binding)
            self._drop_unused(source)

    def _drop_unused(self, exchange: AnyExchange) -> None:
        if exchange.is_auto_delete and not exchange.bindings and self.exchanges.get(exchange.name) is exchange:
            self._remove_exchange(exchange)

    # -- routing -------------------------------------------------------------------------------------------

    def route(self, exchange: AnyExchange, message: Message) -> tuple[Queue, ...]:
        """The queues that a message goes to, each once."""
        asked = (exchange.name, message.keys)
        known = self._routes.get(asked)
        if known is not None:
            return known
        if exchange.name == "":
            queues: tuple[Queue, ...] = tuple(
                self.queues[key] for key in dict.fromkeys(message.keys) if key in self.queues
            )
        else:
            queues, depends_on_headers = self._walk(exchange, message)
            if depends_on_headers:
                return queues
        if len(self._routes) >= _ROUTES_REMEMBERED:
            self._routes.clear()
        self._routes[asked] = queues
        return queues

    def _walk(self, start: AnyExchange, message: Message) -> tuple[tuple[Queue, ...], bool]:
        found: dict[Queue, None] = {}
        seen: set[AnyExchange] = {start}
        ahead: list[AnyExchange] = [start]
        depends_on_headers = False
        while ahead:
            exchange = ahead.pop()
            depends_on_headers |= exchange.type == HEADERS
            for destination in self._next(exchange, message):
                if isinstance(destination, Queue):
                    found[destination] = None
                elif destination not in seen:
                    seen.add(destination)
                    ahead.append(destination)
        return tuple(found), depends_on_headers

    def _next(self, exchange: AnyExchange, message: Message) -> Iterator[Destination]:
        headers = message.properties.headers() if exchange.type == HEADERS else _NO_HEADERS
        matched = False
        if exchange.name == "":  # as an alternate or bound exchange
            for key in message.keys:
                if key in self.queues:
                    matched = True
                    yield self.queues[key]
        for destination in exchange.matching(message.keys, headers):
            matched = True
            yield destination
        if not matched and exchange.alternate is not None and exchange.alternate in self.exchanges:
            yield self.exchanges[exchange.alternate]

    def routed(self, message: Message) -> tuple[str, ...]:
        """The names of the queues that it is meant for now. Raises `RefusedError`."""
        return tuple(queue.name for queue in self.route(self.exchanges[message.exchange], message))

    def publish(self, message: Message, names: tuple[str, ...] | None = None) -> tuple[int, bool]:
        """How many queues it is meant for, and whether all of them took it; `names` says which if it was routed before.

        Raises `RefusedError`.
        """
        if message.exchange == "" and message.keys[0].startswith(REPLY_TO + "."):
            taker = self.reply_takers.get(message.keys[0])
            if taker is not None:
                taker.deliver_reply(message)
            return int(self.profile.are_replies_routed), True
        if names is None:
            queues = self.route(self.exchanges[message.exchange], message)
        else:
            queues = tuple(self.queues[name] for name in names if name in self.queues)
        is_taken = True
        for queue in queues:
            is_taken &= queue.offer(message)
        return len(queues), is_taken

    # -- dead letters --------------------------------------------------------------------------------------

    def bury(self, queue: Queue, message: Message, reason: Reason) -> None:
        """Dead-letter a message, or drop it. One after the other: a chain of queues is no chain of calls."""
        if queue.arguments.exchange is None:
            return
        self._graves.append((queue, message, reason))
        if self._is_burying:
            return
        self._is_burying = True
        try:
            while self._graves:
                source, dead, why = self._graves.popleft()
                self._dead_letter(source, dead, why)
        finally:
            self._is_burying = False

    def _dead_letter(self, source: Queue, message: Message, reason: Reason) -> None:
        letter, queues = self._address(source, message, reason)
        for queue in queues:
            queue.offer(letter)

    def bury_surely(self, message: Message, reason: Reason, queue: Queue) -> bool:
        """Dead-letter it; False if there is nowhere to, or one of its queues is full."""
        letter, queues = self._address(queue, message, reason)
        if not queues or any(
            target.arguments.overflow != DROP_HEAD and target.is_full_for(letter) for target in queues
        ):
            return False
        for target in queues:
            target.offer(letter)
        return True

    def _address(self, source: Queue, message: Message, reason: Reason) -> tuple[Message, list[Queue]]:
        letter = died(message, reason, source.name, source.arguments, self.profile, self.timers.now())
        exchange = self.exchanges.get(letter.exchange)
        targets = () if exchange is None else self.route(exchange, letter)
        return letter, [target for target in targets if not is_cycle(letter, reason, target.name)]

    # -- restart -------------------------------------------------------------------------------------------

    def forget_transient(self) -> None:
        """What a restart leaves: durable queues and exchanges, and persistent messages in them."""
        for queue in list(self.queues.values()):
            if not queue.attributes.is_durable or queue.attributes.owner is not None:
                self.remove_queue(queue)
            else:
                queue.forget_transient()
        for exchange in list(self.exchanges.values()):
            if not exchange.is_durable and self.exchanges.get(exchange.name) is exchange:
                self._remove_exchange(exchange)


_NO_HEADERS = Table()


def check_exchange_name(name: str) -> None:
    """Raises `RefusedError` for a name that only the broker may give."""
    if name.startswith("amq."):
        raise refused(f"exchange name '{name}' contains reserved prefix 'amq.*'")


def _locked(queue: Queue) -> RefusedError:
    return locked(
        f"cannot obtain exclusive access to locked {queue.place}. It could be originally declared on another "
        "connection or the exclusive property value does not match that of the original declaration."
    )
