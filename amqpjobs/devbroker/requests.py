"""Requests about exchanges, queues and bindings: each is checked, done and answered."""

from pamqp import commands
from pamqp.base import Frame

from amqpjobs.devbroker.checks import QUORUM
from amqpjobs.devbroker.errors import Code, RefusedError, failed, missing, refused
from amqpjobs.devbroker.exchange import Exchange
from amqpjobs.devbroker.queue import Attributes, Queue
from amqpjobs.devbroker.table import Table
from amqpjobs.devbroker.users import Access
from amqpjobs.devbroker.vhost import REPLY_TO, AnyExchange, Destination, VHost
from amqpjobs.devbroker.wire import arguments_of, method

Commands = commands.Exchange, commands.Queue


class Requests:
    """Those of one channel, which may leave out the name of the queue it declared last."""

    def __init__(self, vhost: VHost, access: Access, connection: object) -> None:
        self._vhost = vhost
        self._access = access
        self._connection = connection
        self._latest = ""

    def queue(self, name: str) -> Queue:
        """One to use. Raises `RefusedError`."""
        return self._vhost.queue(name, self._connection)

    def named(self, name: str) -> str:
        """The name, or that of the queue declared last."""
        if name == "" and self._latest == "":
            raise RefusedError(Code.NOT_FOUND, "no previously declared queue")
        return name or self._latest

    def answer(self, asked: Frame) -> bytes | None:
        """Do it; the reply's payload, or None if the client wants none. Raises `RefusedError`."""
        match asked:
            case commands.Exchange.Declare():
                self._declare_exchange(asked)
                reply = method(commands.Exchange.DeclareOk)
            case commands.Exchange.Delete():
                self._delete_exchange(asked)
                reply = method(commands.Exchange.DeleteOk)
            case commands.Exchange.Bind() | commands.Exchange.Unbind():
                self._bind_exchange(asked)
                is_bind = isinstance(asked, commands.Exchange.Bind)
                reply = method(commands.Exchange.BindOk if is_bind else commands.Exchange.UnbindOk)
            case commands.Queue.Bind() | commands.Queue.Unbind():
                self._bind_queue(asked)
                if isinstance(asked, commands.Queue.Unbind):
                    return method(commands.Queue.UnbindOk)
                reply = method(commands.Queue.BindOk)
            case commands.Queue.Declare():
                reply = self._declare_queue(asked)
            case commands.Queue.Delete():
                reply = method(commands.Queue.DeleteOk, message_count=self._delete_queue(asked))
            case commands.Queue.Purge():
                reply = method(commands.Queue.PurgeOk, message_count=self._purge(asked))
            case _:
                raise RefusedError(Code.COMMAND_INVALID, "unimplemented method")
        return None if asked.nowait else reply

    # -- exchanges -----------------------------------------------------------------------------------------

    def _declare_exchange(self, asked: commands.Exchange.Declare) -> None:
        name = stripped(asked.exchange)
        self._check_not_default(name)
        if asked.passive:
            self._check_any("exchange", name)
            self._vhost.exchange(name)
            return
        self._access.check("configure", "exchange", name)
        wanted: AnyExchange = Exchange(
            name,
            asked.exchange_type,
            is_durable=asked.durable,
            is_auto_delete=asked.auto_delete,
            is_internal=asked.internal,
            is_exact=not self._vhost.profile.are_deaths_headers,
            arguments=arguments_of(asked),
        )
        if name not in self._vhost.exchanges:
            self._check_leads_on("exchange", name, wanted.arguments, "alternate-exchange")
        self._vhost.declare_exchange(wanted)

    def _delete_exchange(self, asked: commands.Exchange.Delete) -> None:
        name = stripped(asked.exchange)
        self._check_not_default(name)
        if name.startswith("amq."):
            raise refused(f"deletion of system {self._vhost.place('exchange', name)} not allowed")
        self._access.check("configure", "exchange", name)
        self._vhost.delete_exchange(name, if_unused=asked.if_unused)

    def _bind_exchange(self, asked: commands.Exchange.Bind | commands.Exchange.Unbind) -> None:
        source, destination = stripped(asked.source), stripped(asked.destination)
        self._check_binding("exchange", source, destination)
        is_bind = isinstance(asked, commands.Exchange.Bind)
        if not is_bind and not {source, destination} <= self._vhost.exchanges.keys():
            return
        exchange = self._vhost.exchange(source)
        target = self._vhost.exchange(destination)
        self._change_binding(is_bind, exchange, target, asked.routing_key, arguments_of(asked))

    # -- queues --------------------------------------------------------------------------------------------

    def _declare_queue(self, asked: commands.Queue.Declare) -> bytes:
        name = stripped(asked.queue)
        if name.startswith(REPLY_TO):
            return self._declare_reply_queue(name)
        if asked.passive:
            self._check_any("queue", name)
            queue = self.queue(name)
            if not asked.nowait:
                queue.touch()
        else:
            queue = self._make_queue(name, asked)
        self._latest = queue.name
        return method(
            commands.Queue.DeclareOk,
            queue=queue.name,
            message_count=len(queue.backlog),
            consumer_count=queue.consumer_count,
        )

    def _make_queue(self, name: str, asked: commands.Queue.Declare) -> Queue:
        given, owner = arguments_of(asked), self._connection if asked.exclusive else None
        attributes = Attributes(
            is_durable=asked.durable and not asked.exclusive, owner=owner, is_auto_delete=asked.auto_delete
        )
        kind = given.look("x-queue-type")
        if name == "":
            if kind is not None and kind.text in (QUORUM, "stream"):
                raise failed(f"Cannot declare a server-named queue for type rabbit_{kind.text}_queue")
            name = self._vhost.server_name()
        elif name.startswith("amq.") and name not in self._vhost.queues:
            raise refused(f"queue name '{name}' contains reserved prefix 'amq.*'")
        self._access.check("configure", "queue", name)
        if name not in self._vhost.queues:
            self._check_leads_on("queue", name, given, "x-dead-letter-exchange")
        return self._vhost.declare_queue(name, given, attributes)

    def _declare_reply_queue(self, name: str) -> bytes:
        if name != REPLY_TO and name not in self._vhost.reply_takers:
            raise missing(self._vhost.place("queue", name))
        return method(commands.Queue.DeclareOk, queue=name, message_count=0, consumer_count=1)

    def _delete_queue(self, asked: commands.Queue.Delete) -> int:
        name = stripped(self.named(asked.queue))
        self._access.check("configure", "queue", name)
        if name not in self._vhost.queues:
            return 0
        return self._vhost.delete_queue(self.queue(name), if_unused=asked.if_unused, if_empty=asked.if_empty)

    def _purge(self, asked: commands.Queue.Purge) -> int:
        name = self.named(asked.queue)
        self._access.check("read", "queue", name)
        return self.queue(name).purge()

    def _bind_queue(self, asked: commands.Queue.Bind | commands.Queue.Unbind) -> None:
        name, source = stripped(self.named(asked.queue)), stripped(asked.exchange)
        key = self.named("") if asked.queue == "" and asked.routing_key == "" else asked.routing_key
        self._check_binding("queue", source, name)
        is_bind = isinstance(asked, commands.Queue.Bind)
        if not is_bind and (source not in self._vhost.exchanges or name not in self._vhost.queues):
            return
        exchange = self._vhost.exchange(source)
        self._change_binding(is_bind, exchange, self.queue(name), key, arguments_of(asked))

    # -- shared --------------------------------------------------------------------------------------------

    def _change_binding(
        self, is_bind: bool, source: AnyExchange, destination: Destination, key: str, arguments: Table
    ) -> None:
        (self._vhost.bind if is_bind else self._vhost.unbind)(source, destination, key, arguments)

    def _check_binding(self, kind: str, source: str, destination: str) -> None:
        self._access.check("write", kind, destination)
        if kind == "exchange":
            self._check_not_default(destination)
        self._check_not_default(source)
        self._access.check("read", "exchange", source)

    def _check_not_default(self, name: str) -> None:
        if name == "":
            raise refused("operation not permitted on the default exchange")

    def _check_any(self, kind: str, name: str) -> None:
        """A passive declare needs one permission, whichever."""
        for permission in ("read", "write"):
            try:
                return self._access.check(permission, kind, name)
            except RefusedError:
                continue
        return self._access.check("configure", kind, name)

    def _check_leads_on(self, kind: str, name: str, arguments: Table, argument: str) -> None:
        """Who sends messages on needs to read here and to write there."""
        given = arguments.look(argument)
        if given is None:
            return
        if given.text is None:
            what = self._vhost.place(kind, name)
            raise failed(f"invalid type '{given.type_name}' for arg '{argument}' in {what}")
        self._access.check("read", kind, name)
        self._access.check("write", "exchange", given.text)


def stripped(name: str) -> str:
    return name.replace("\n", "").replace("\r", "")
