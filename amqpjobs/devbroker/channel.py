"""A channel: messages in, deliveries out, and what is settled between.

Requests about queues and exchanges are `requests`'. What goes wrong is raised as `RefusedError`; the
connection tells the client and ends what has to end.
"""

import secrets
import struct
from base64 import urlsafe_b64encode
from typing import Protocol

from pamqp import commands
from pamqp.base import Frame

from amqpjobs.devbroker.arguments import check_consumer
from amqpjobs.devbroker.backlog import FOREVER, Entry
from amqpjobs.devbroker.confirms import Confirms
from amqpjobs.devbroker.consumers import Consumer
from amqpjobs.devbroker.errors import Code, RefusedError, failed, forbidden, refused, unsupported
from amqpjobs.devbroker.intake import Intake, Publication
from amqpjobs.devbroker.ledger import Ledger, Loan, by_queue
from amqpjobs.devbroker.message import Message, published, reply_to_of, user_of, with_reply_to
from amqpjobs.devbroker.queue import Queue
from amqpjobs.devbroker.requests import Requests
from amqpjobs.devbroker.returns import Return
from amqpjobs.devbroker.timers import Timer
from amqpjobs.devbroker.transaction import Settlement, Transaction
from amqpjobs.devbroker.users import Access
from amqpjobs.devbroker.vhost import REPLY_TO, VHost
from amqpjobs.devbroker.wire import (
    ACK,
    INDEX,
    PUBLISH,
    arguments_of,
    content,
    decode,
    delivery,
    frame,
    method,
    short,
)

_SETTLED = struct.Struct(">4xQB")
_ACCESS_REQUEST, _ACCESS_REQUEST_OK = 0x001E000A, b"\x00\x1e\x00\x0b\x00\x01"


class Link(Protocol):
    """What a channel needs of its connection."""

    vhost: VHost
    access: Access
    frame_max: int
    is_writable: bool

    @property
    def is_overflowing(self) -> bool:
        """Whether even replies are too much for it."""
        ...

    @property
    def has_cancel_notices(self) -> bool:
        """Whether it wants to hear of consumers that end."""
        ...

    def write(self, data: bytes) -> None: ...

    def refuse(self, channel: "Channel", error: RefusedError) -> None:
        """End the channel, or the connection, otherwise than by its own request."""
        ...

    def confirm_soon(self, channel: "Channel") -> None:
        """Have `send_confirms` called when all that was received is done."""
        ...


class Subscription(Consumer):
    """A consumer and its queue."""

    __slots__ = ("queue",)

    def __init__(self, channel: "Channel", tag: str, queue: Queue, *, is_silent: bool, prefetch: int, priority: int):
        super().__init__(channel, tag, is_silent=is_silent, prefetch=prefetch, priority=priority)
        self.queue = queue


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
        self._subscriptions: dict[str, Subscription] = {}
        self._ledger = Ledger()
        self._next_tag = 1
        self._prefetch = 0
        #: Of the whole channel, and how much of it is used.
        self._limit = 0
        self._lent = 0
        self.confirms: Confirms | None = None
        self._transaction: Transaction | None = None
        self._replies: tuple[str, str] | None = None
        self._due_timer: Timer | None = None
        self._intake = Intake(link.vhost.profile.largest_message)

    # -- frames --------------------------------------------------------------------------------------------

    def receive_method(self, payload: bytes) -> None:
        """Raises `RefusedError`."""
        if self._intake.is_waiting:
            raise self._intake.interrupted()
        if len(payload) < INDEX.size:
            raise RefusedError(Code.FRAME_ERROR, "a method frame without a method")
        index = INDEX.unpack_from(payload)[0]
        self.current = index
        if index == PUBLISH:
            self._intake.begin(payload)
        elif not self.is_open:
            return
        elif index == ACK:
            if len(payload) < _SETTLED.size:
                raise RefusedError(Code.FRAME_ERROR, "cannot decode the method's fields")
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
            self._transaction.publish(message, whole.is_mandatory)
        else:
            self._enqueue(message, whole.is_mandatory)

    def _checked(self, message: Message) -> Message:
        user, reply_to = user_of(message), reply_to_of(message)
        if user is not None and user != self._link.access.user:
            raise failed(f"user_id property set to '{user}' but authenticated user was '{self._link.access.user}'")
        if reply_to == REPLY_TO.encode():
            if self._replies is None:
                raise failed("fast reply consumer does not exist")
            return with_reply_to(message, self._replies[1])
        return message

    def _enqueue(self, message: Message, is_mandatory: bool) -> bool:
        """Whether all queues took it."""
        count, is_taken = self._vhost.publish(message)
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
                self._link.write(data)

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
                self._get(asked)
            case commands.Basic.Consume():
                self._consume(asked)
            case commands.Basic.Cancel():
                self._cancel(asked)
            case commands.Basic.Qos():
                self._set_prefetch(asked)
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

    def _set_prefetch(self, asked: commands.Basic.Qos) -> None:
        if asked.prefetch_size:
            raise unsupported(f"prefetch_size!=0 ({asked.prefetch_size})")
        if asked.global_ and self._vhost.profile.has_deprecated:
            self._limit = asked.prefetch_count
            self._wake()
        else:
            self._prefetch, self._limit = asked.prefetch_count, 0
        self.send(method(commands.Basic.QosOk))

    def _select_confirms(self, asked: commands.Confirm.Select) -> None:
        if self._transaction is not None:
            raise failed("cannot switch from tx to confirm mode")
        self.confirms = self.confirms or Confirms()
        self.send(None if asked.nowait else method(commands.Confirm.SelectOk))

    # -- consuming -----------------------------------------------------------------------------------------

    def _get(self, asked: commands.Basic.Get) -> None:
        name = self._requests.named(asked.queue)
        self._link.access.check("read", "queue", name)
        queue = self._requests.queue(name)
        entry = queue.get(is_silent=asked.no_ack)
        if entry is None:
            self.send(method(commands.Basic.GetEmpty))
            return
        tag = self._lend(queue, entry, None, is_silent=asked.no_ack)
        message = entry.message
        payload = method(
            commands.Basic.GetOk,
            delivery_tag=tag,
            redelivered=queue.is_redelivered(entry),
            exchange=message.exchange,
            routing_key=message.keys[0],
            message_count=len(queue.backlog),
        )
        self.send(payload)
        header = queue.header_of(entry, is_get=True)
        self._link.write(content(self.number, header, message.body, self._link.frame_max))

    def _consume(self, asked: commands.Basic.Consume) -> None:
        tag = asked.consumer_tag
        if tag in self._subscriptions or (self._replies is not None and self._replies[0] == tag):
            raise forbidden(f"attempt to reuse consumer tag '{tag}'")
        tag = tag or "amq.ctag-" + _token()
        answer = None if asked.nowait else method(commands.Basic.ConsumeOk, consumer_tag=tag)
        if asked.queue == REPLY_TO:
            self._consume_replies(tag, is_silent=asked.no_ack)
            self.send(answer)
            return
        name = self._requests.named(asked.queue)
        self._link.access.check("read", "queue", name)
        queue = self._requests.queue(name)
        asked_for = check_consumer(arguments_of(asked), queue.arguments.kind, queue.place, self._vhost.profile)
        queue.check_consume(is_exclusive=asked.exclusive, is_limited=self._limit > 0)
        self.send(answer)
        subscription = Subscription(
            self, tag, queue, is_silent=asked.no_ack, prefetch=self._prefetch, priority=asked_for.priority
        )
        subscription.patience = queue.patience(asked_for.timeout)
        self._subscriptions[tag] = subscription
        queue.add_consumer(subscription, is_exclusive=asked.exclusive)

    def _consume_replies(self, tag: str, *, is_silent: bool) -> None:
        if not is_silent:
            raise failed("reply consumer cannot acknowledge")
        if self._replies is not None:
            raise failed("reply consumer already set")
        self._replies = tag, f"{REPLY_TO}.{_token()}"
        self._vhost.reply_takers[self._replies[1]] = self

    def _cancel(self, asked: commands.Basic.Cancel) -> None:
        tag = asked.consumer_tag or ""
        if self._replies is not None and self._replies[0] == tag:
            self._end_replies()
        self.send(None if asked.nowait else method(commands.Basic.CancelOk, consumer_tag=tag))
        if (subscription := self._subscriptions.pop(tag, None)) is not None:
            subscription.queue.remove_consumer(subscription)

    def _end_replies(self) -> None:
        if self._replies is not None:
            del self._vhost.reply_takers[self._replies[1]]
            self._replies = None

    def has_room(self) -> bool:
        return self.is_open and self._link.is_writable and (self._limit == 0 or self._lent < self._limit)

    def deliver(self, consumer: Consumer, entry: Entry) -> None:
        assert isinstance(consumer, Subscription)
        queue, message, link = consumer.queue, entry.message, self._link
        tag = self._lend(queue, entry, consumer, is_silent=consumer.is_silent)
        link.write(
            delivery(self.number, consumer.wire_tag, tag, queue.is_redelivered(entry), message.way)
            + content(self.number, queue.header_of(entry), message.body, link.frame_max)
        )

    def _lend(self, queue: Queue, entry: Entry, consumer: Consumer | None, *, is_silent: bool) -> int:
        tag = self._next_tag
        self._next_tag += 1
        if not is_silent:
            patience = queue.patience(None) if consumer is None else consumer.patience
            due = FOREVER if patience is None else self._vhost.timers.now() + patience
            self._ledger.add(Loan(tag, queue, entry, consumer, due))
            if consumer is not None:
                self._lent += 1
            if due != FOREVER and (self._due_timer is None or due < self._due_timer.at):
                self._watch_due(due)
        return tag

    # -- held too long ---------------------------------------------------------------------------------------

    def _watch_due(self, due: float) -> None:
        if self._due_timer is not None:
            self._due_timer.cancel()
        self._due_timer = None if due == FOREVER else self._vhost.timers.at(due, self._take_back)

    def _take_back(self) -> None:
        self._due_timer = None
        overdue = self._ledger.overdue(self._vhost.timers.now())
        for consumer in dict.fromkeys(loan.consumer for loan in overdue):
            held = [loan for loan in overdue if loan.consumer is consumer]
            is_told = self._link.has_cancel_notices and isinstance(consumer, Subscription)
            if not (is_told and all(loan.queue.takes_back for loan in held)):
                self._link.refuse(self, self._overdue(held[0]))
                return
            assert isinstance(consumer, Subscription)
            self._ledger.take_back(held)
            self._release(held)
            consumer.queue.remove_consumer(consumer)
            self.end_consumer(consumer)
            consumer.queue.give_back([loan.entry for loan in held], Return.NACKED)
        self._watch_due(self._ledger.next_due())

    def _overdue(self, loan: Loan) -> RefusedError:
        patience = loan.queue.patience(None) if loan.consumer is None else loan.consumer.patience
        used = -1 if loan.queue.takes_back else round(1000 * (patience or 0))
        return failed(
            f"delivery acknowledgement on channel {self.number} timed out. Timeout value used: {used} ms. "
            "This timeout value can be configured, see consumers doc guide to learn more"
        )

    def deliver_reply(self, message: Message) -> None:
        """A direct reply. One that the client is too slow for is lost, as direct replies may be."""
        if self._replies is None or self._link.is_overflowing:
            return
        number, self._next_tag = self._next_tag, self._next_tag + 1
        head = delivery(self.number, short(self._replies[0]), number, False, message.way)
        self._link.write(head + content(self.number, message.header, message.body, self._link.frame_max))

    def end_consumer(self, consumer: Consumer) -> None:
        self._subscriptions.pop(consumer.tag, None)
        if self.is_open and self._link.has_cancel_notices:
            self.send(method(commands.Basic.Cancel, consumer_tag=consumer.tag, nowait=True))

    # -- settling ------------------------------------------------------------------------------------------

    def _settle(self, how: Settlement, tag: int, *, multiple: bool) -> None:
        loans = self._ledger.take(tag, multiple=multiple)
        if self._transaction is not None:
            self._transaction.settle(how, loans)
        else:
            self._settle_loans(how, loans)

    def _settle_loans(self, how: Settlement, loans: list[Loan]) -> None:
        self._release(loans)
        if len(loans) == 1:
            settle_in(loans[0].queue, how, [loans[0].entry])
            return
        for queue, entries in by_queue(loans).items():
            settle_in(queue, how, entries)

    def _release(self, loans: list[Loan]) -> None:
        was_full = self._limit > 0 and self._lent >= self._limit
        for loan in loans:
            if loan.consumer is not None:
                loan.consumer.lent -= 1
                self._lent -= 1
        if was_full:
            self._wake()

    def _recover(self, asked: commands.Basic.Recover | commands.Basic.RecoverAsync) -> None:
        if not asked.requeue:
            raise unsupported("requeue=false")
        self._settle_loans(Settlement.NACK, self._ledger.take_all())
        if isinstance(asked, commands.Basic.Recover):
            self.send(method(commands.Basic.RecoverOk))

    def _wake(self) -> None:
        for subscription in list(self._subscriptions.values()):
            subscription.queue.dispatch()

    def queues(self) -> list[Queue]:
        """Those it consumes from."""
        return [subscription.queue for subscription in self._subscriptions.values()]

    # -- transactions --------------------------------------------------------------------------------------

    def _transact(self, asked: commands.Tx.Select | commands.Tx.Commit | commands.Tx.Rollback) -> None:
        if isinstance(asked, commands.Tx.Select):
            if self.confirms is not None:
                raise failed("cannot switch from confirm to tx mode")
            self._transaction = self._transaction or Transaction(self._vhost.memory)
            self.send(method(commands.Tx.SelectOk))
            return
        if self._transaction is None:
            raise failed("channel is not transactional")
        publications, settlements = self._transaction.take()
        if isinstance(asked, commands.Tx.Rollback):
            self._ledger.restore(loan for _, loans in settlements for loan in loans)
            self.send(method(commands.Tx.RollbackOk))
            return
        taken = [self._enqueue(message, is_mandatory) for message, is_mandatory in publications]
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
        self._watch_due(FOREVER)
        self._end_replies()
        loans = self._ledger.take_all()
        if self._transaction is not None:
            _, settlements = self._transaction.take()
            loans = sorted([*loans, *(loan for _, taken in settlements for loan in taken)], key=lambda loan: loan.tag)
        self._release(loans)
        for queue, entries in by_queue(loans).items():
            queue.give_back(entries, Return.LOST)
        subscriptions, self._subscriptions = list(self._subscriptions.values()), {}
        for subscription in subscriptions:
            subscription.queue.remove_consumer(subscription)


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


def _token() -> str:
    return urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
