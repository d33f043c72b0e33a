"""A channel: messages in, deliveries out, and what is settled between.

Requests about queues and exchanges are `requests`'. What goes wrong is raised as `RefusedError`; the
connection tells the client and ends what has to end.
"""

import struct
from typing import Protocol

from pamqp import commands
from pamqp.base import Frame

from amqpjobs.devbroker.backlog import Entry
from amqpjobs.devbroker.confirms import Confirms
from amqpjobs.devbroker.deliveries import Deliveries, Outward
from amqpjobs.devbroker.errors import Code, RefusedError, failed, refused, unknown_frame, unsupported
from amqpjobs.devbroker.intake import Intake, Publication
from amqpjobs.devbroker.ledger import Loan, by_queue
from amqpjobs.devbroker.message import Message, published, reply_to_of, user_of, with_reply_to
from amqpjobs.devbroker.queue import Queue
from amqpjobs.devbroker.requests import Requests
from amqpjobs.devbroker.returns import Return
from amqpjobs.devbroker.transaction import Settlement, Transaction
from amqpjobs.devbroker.vhost import REPLY_TO
from amqpjobs.devbroker.wire import ACK, INDEX, METHOD, PUBLISH, content, decode, frame, method, undecodable

_SETTLED = struct.Struct(">4xQB")
_ACCESS_REQUEST, _ACCESS_REQUEST_OK = 0x001E000A, b"\x00\x1e\x00\x0b\x00\x01"


class Link(Outward, Protocol):
    """What a channel needs of its connection."""

    def refuse(self, channel: "Channel", error: RefusedError) -> None:
        """End the channel, or the connection, otherwise than by its own request."""
        ...

    def confirm_soon(self, channel: "Channel") -> None:
        """Have `send_confirms` called when all that was received is done."""
        ...

    def write_confirms(self, data: bytes) -> None: ...


class Channel:
    """Open from its channel.open on; once closing it hears nothing but the end."""

    def __init__(self, number: int, link: Link) -> None:
        self.number = number
        self.is_open = True
        #: Index of the method that is being done, for error replies.
        self.current = 0
        self._link = link
        self._vhost = link.vhost
        self._requests = Requests(link.vhost, link.access, link)
        self.deliveries = Deliveries(number, link, self._requests, self.send, self._fail)
        self._ledger = self.deliveries.ledger
        self.confirms: Confirms | None = None
        self._transaction: Transaction | None = None
        self._intake = Intake(link.vhost.profile.largest_message)

    # -- frames --------------------------------------------------------------------------------------------

    def receive_method(self, payload: bytes) -> None:
        """Raises `RefusedError`."""
        if self._intake.is_waiting:
            raise self._intake.interrupted()
        if len(payload) < INDEX.size:
            raise unknown_frame(METHOD, payload)
        index = INDEX.unpack_from(payload)[0]
        self.current = index
        if index == PUBLISH:
            self._intake.begin(payload)
        elif not self.is_open:
            return
        elif index == ACK:
            if len(payload) < _SETTLED.size:
                raise undecodable(payload)
            tag, flags = _SETTLED.unpack_from(payload)
            self._settle(Settlement.ACK, tag, multiple=flags & 1 > 0)
        elif index == _ACCESS_REQUEST:
            self.send(_ACCESS_REQUEST_OK)
        else:
            self._do(decode(payload))

    def receive_header(self, payload: bytes) -> None:
        """Raises `RefusedError`."""
        if (whole := self._intake.header(payload)) is not None:
            self._publish(whole)

    def receive_body(self, payload: bytes) -> None:
        """Raises `RefusedError`."""
        if (whole := self._intake.body(payload)) is not None:
            self._publish(whole)

    def send(self, payload: bytes | None) -> None:
        """A method, after the confirms that are due; None is not sent."""
        if payload is not None:
            self.send_confirms()
            self._link.write(frame(self.number, payload))

    # -- publishing ----------------------------------------------------------------------------------------

    def _publish(self, whole: Publication) -> None:
        if not self.is_open:
            return
        self.current = PUBLISH
        if whole.is_immediate:
            raise unsupported("immediate=true")
        largest = self._vhost.profile.largest_message
        if whole.size > largest:
            raise failed(f"message size {whole.size} is larger than configured max size {largest}")
        self._link.access.check("write", "exchange", whole.exchange)
        if self._vhost.exchange(whole.exchange).is_internal:
            raise refused(f"cannot publish to internal {self._vhost.place('exchange', whole.exchange)}")
        message = self._checked(published(whole.exchange, whole.key, whole.properties, whole.body))
        if self._transaction is not None:
            self._transaction.publish(message, whole.is_mandatory, self._vhost.routed(message))
        else:
            self._enqueue(message, whole.is_mandatory)

    def _checked(self, message: Message) -> Message:
        user, reply_to = user_of(message), reply_to_of(message)
        if user is not None and user != self._link.access.user:
            raise failed(f"user_id property set to '{user}' but authenticated user was '{self._link.access.user}'")
        if reply_to == REPLY_TO.encode():
            if self.deliveries.reply_address is None:
                raise failed("fast reply consumer does not exist")
            return with_reply_to(message, self.deliveries.reply_address)
        return message

    def _enqueue(self, message: Message, is_mandatory: bool, names: tuple[str, ...] | None = None) -> bool:
        """Whether all queues took it."""
        count, is_taken = self._vhost.publish(message, names)
        if is_mandatory and count == 0:
            self._return(message)
        if self.confirms is not None and self.confirms.add(is_taken):
            self._link.confirm_soon(self)
        return is_taken

    def _return(self, message: Message) -> None:
        payload = method(
            commands.Basic.Return,
            reply_code=312,
            reply_text="NO_ROUTE",
            exchange=message.exchange,
            routing_key=message.keys[0],
        )
        whole = content(self.number, message.header, message.body, self._link.frame_max)
        self._link.write(frame(self.number, payload) + whole)

    def send_confirms(self) -> None:
        if self.confirms is not None:
            data = self.confirms.taken(self.number)
            if data:
                self._link.write_confirms(data)

    # -- requests ------------------------------------------------------------------------------------------

    def _do(self, asked: Frame) -> None:
        match asked:
            case commands.Basic.Nack():
                how = Settlement.NACK if asked.requeue else Settlement.DISCARD
                self._settle(how, asked.delivery_tag, multiple=asked.multiple)
            case commands.Basic.Reject():
                how = Settlement.REJECT if asked.requeue else Settlement.DISCARD_FAILED
                self._settle(how, asked.delivery_tag or 0, multiple=False)
            case commands.Basic.Get():
                self.deliveries.get(asked)
            case commands.Basic.Consume():
                self.deliveries.consume(asked)
            case commands.Basic.Cancel():
                self.deliveries.cancel(asked)
            case commands.Basic.Qos():
                self.deliveries.set_prefetch(asked)
            case commands.Basic.Recover() | commands.Basic.RecoverAsync():
                self._recover(asked)
            case commands.Confirm.Select():
                self._select_confirms(asked)
            case commands.Tx.Select() | commands.Tx.Commit() | commands.Tx.Rollback():
                self._transact(asked)
            case commands.Channel.Flow():
                if not asked.active:
                    raise unsupported("active=false")
                self.send(method(commands.Channel.FlowOk, active=True))
            case commands.Channel.Open():
                raise RefusedError(Code.CHANNEL_ERROR, "second 'channel.open' seen")
            case _:
                self.send(self._requests.answer(asked))

    def _select_confirms(self, asked: commands.Confirm.Select) -> None:
        if self._transaction is not None:
            raise failed("cannot switch from tx to confirm mode")
        self.confirms = self.confirms or Confirms()
        self.send(None if asked.nowait else method(commands.Confirm.SelectOk))

    # -- settling ------------------------------------------------------------------------------------------

    def _settle(self, how: Settlement, tag: int, *, multiple: bool) -> None:
        loans = self._ledger.take(tag, multiple=multiple)
        if self._transaction is not None:
            self._transaction.settle(how, loans)
        else:
            self._settle_loans(how, loans)

    def _settle_loans(self, how: Settlement, loans: list[Loan]) -> None:
        self.deliveries.release(loans)
        if len(loans) == 1:
            settle_in(loans[0].queue, how, [loans[0].entry])
            return
        for queue, entries in by_queue(loans).items():
            settle_in(queue, how, entries)

    def _recover(self, asked: commands.Basic.Recover | commands.Basic.RecoverAsync) -> None:
        if not asked.requeue:
            raise unsupported("requeue=false")
        self._settle_loans(Settlement.NACK, self._ledger.take_all())
        if isinstance(asked, commands.Basic.Recover):
            self.send(method(commands.Basic.RecoverOk))

    # -- transactions --------------------------------------------------------------------------------------

    def _transact(self, asked: commands.Tx.Select | commands.Tx.Commit | commands.Tx.Rollback) -> None:
        if isinstance(asked, commands.Tx.Select):
            if self.confirms is not None:
                raise failed("cannot switch from confirm to tx mode")
            alike = self._vhost.profile.does_nack_count
            self._transaction = self._transaction or Transaction(self._vhost.memory, are_returns_alike=alike)
            self.send(method(commands.Tx.SelectOk))
            return
        if self._transaction is None:
            raise failed("channel is not transactional")
        publications, settlements = self._transaction.take()
        if isinstance(asked, commands.Tx.Rollback):
            self._ledger.restore(loan for _, loans in settlements for loan in loans)
            self.send(method(commands.Tx.RollbackOk))
            return
        taken = [self._enqueue(*one) for one in publications]
        for how, loans in settlements:
            self._settle_loans(how, loans)
        if not all(taken):
            raise failed("partial tx completion")
        self.send(method(commands.Tx.CommitOk))

    # -- the end -------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give everything back. Any number of times."""
        if not self.is_open:
            return
        self.send_confirms()
        self.is_open = False
        settled = [] if self._transaction is None else self._transaction.take()[1]
        self.deliveries.close(loan for _, loans in settled for loan in loans)

    def _fail(self, error: RefusedError) -> None:
        self._link.refuse(self, error)


def settle_in(queue: Queue, how: Settlement, entries: list[Entry]) -> None:
    """Tell a queue what became of these."""
    match how:
        case Settlement.ACK:
            queue.settle(entries)
            queue.dispatch()
        case Settlement.DISCARD:
            queue.discard(entries, Return.DISCARDED)
            queue.dispatch()
        case Settlement.DISCARD_FAILED:
            queue.discard(entries, Return.REFUSED)
            queue.dispatch()
        case Settlement.NACK:
            queue.give_back(entries, Return.NACKED)
        case Settlement.REJECT:
            queue.give_back(entries, Return.REJECTED)
