"""What a channel is delivered: its consumers, what they are lent, and for how long."""

import secrets
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable
from typing import Protocol

from pamqp import commands

from amqpjobs.devbroker.arguments import check_consumer
from amqpjobs.devbroker.backlog import FOREVER, Entry
from amqpjobs.devbroker.consumers import Consumer
from amqpjobs.devbroker.errors import RefusedError, failed, forbidden, unsupported
from amqpjobs.devbroker.ledger import Ledger, Loan, by_queue
from amqpjobs.devbroker.message import Message
from amqpjobs.devbroker.queue import Queue
from amqpjobs.devbroker.requests import Requests
from amqpjobs.devbroker.returns import Return
from amqpjobs.devbroker.timers import Timer
from amqpjobs.devbroker.users import Access
from amqpjobs.devbroker.vhost import REPLY_TO, VHost
from amqpjobs.devbroker.wire import arguments_of, content, delivery, method, short


class Outward(Protocol):
    """What this needs of the connection."""

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
    def abort(self) -> None: ...


class Subscription(Consumer):
    """A consumer and its queue."""

    __slots__ = ("queue",)

    def __init__(self, channel: "Deliveries", tag: str, queue: Queue, *, is_silent: bool, prefetch: int, priority: int):
        super().__init__(channel, tag, is_silent=is_silent, prefetch=prefetch, priority=priority)
        self.queue = queue


class Deliveries:
    """Of one channel. It sends methods by `send`, and tells by `fail` when one was held too long."""

    def __init__(
        self,
        number: int,
        link: Outward,
        requests: Requests,
        send: Callable[[bytes | None], None],
        fail: Callable[[RefusedError], None],
    ) -> None:
        self.ledger = Ledger()
        self._number = number
        self._link = link
        self._vhost = link.vhost
        self._requests = requests
        self._send = send
        self._fail = fail
        self._is_open = True
        self._subscriptions: dict[str, Subscription] = {}
        self._next_tag = 1
        self._prefetch = 0
        #: Of the whole channel, and how much of it is used.
        self._limit = 0
        self._lent = 0
        #: The tag of its consumer of direct replies, and its address.
        self._replies: tuple[str, str] | None = None
        self._due_timer: Timer | None = None

    @property
    def reply_address(self) -> str | None:
        """Where direct replies to this channel go, if it consumes them."""
        return None if self._replies is None else self._replies[1]

    def cut(self) -> None:
        """End the connection without a word."""
        self._link.abort()

    def queues(self) -> list[Queue]:
        """Those it consumes from."""
        return [subscription.queue for subscription in self._subscriptions.values()]

    # -- requests ------------------------------------------------------------------------------------------

    def set_prefetch(self, asked: commands.Basic.Qos) -> None:
        if asked.prefetch_size:
            raise unsupported(f"prefetch_size!=0 ({asked.prefetch_size})")
        if asked.global_ and self._vhost.profile.has_deprecated:
            self._limit = asked.prefetch_count
        else:
            self._prefetch, self._limit = asked.prefetch_count, 0
        self._wake()
        self._send(method(commands.Basic.QosOk))

    def get(self, asked: commands.Basic.Get) -> None:
        name = self._requests.named(asked.queue)
        self._link.access.check("read", "queue", name)
        queue = self._requests.queue(name)
        entry = queue.get(is_silent=asked.no_ack)
        if entry is None:
            self._send(method(commands.Basic.GetEmpty))
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
        self._send(payload)
        header = queue.header_of(entry, is_get=True)
        self._link.write(content(self._number, header, message.body, self._link.frame_max))

    def consume(self, asked: commands.Basic.Consume) -> None:
        tag = asked.consumer_tag
        if tag in self._subscriptions or (self._replies is not None and self._replies[0] == tag):
            raise forbidden(f"attempt to reuse consumer tag '{tag}'")
        tag = tag or "amq.ctag-" + _token()
        answer = None if asked.nowait else method(commands.Basic.ConsumeOk, consumer_tag=tag)
        if asked.queue == REPLY_TO:
            self._consume_replies(tag, is_silent=asked.no_ack)
            self._send(answer)
            return
        name = self._requests.named(asked.queue)
        self._link.access.check("read", "queue", name)
        queue = self._requests.queue(name)
        asked_for = check_consumer(arguments_of(asked), queue.arguments.kind, queue.place, self._vhost.profile)
        queue.check_consume(
            is_exclusive=asked.exclusive,
            is_limited=self._limit > 0,
            is_silent=asked.no_ack,
            prefetch=self._prefetch,
        )
        self._send(answer)
        subscription = Subscription(
            self, tag, queue, is_silent=asked.no_ack, prefetch=self._prefetch, priority=asked_for.priority
        )
        subscription.offset = asked_for.offset
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

    def cancel(self, asked: commands.Basic.Cancel) -> None:
        tag = asked.consumer_tag or ""
        if self._replies is not None and self._replies[0] == tag:
            self._end_replies()
        self._send(None if asked.nowait else method(commands.Basic.CancelOk, consumer_tag=tag))
        if (subscription := self._subscriptions.pop(tag, None)) is not None:
            subscription.queue.remove_consumer(subscription)

    def _end_replies(self) -> None:
        if self._replies is not None:
            del self._vhost.reply_takers[self._replies[1]]
            self._replies = None

    def has_room(self) -> bool:
        return self._is_open and self._link.is_writable and (self._limit == 0 or self._lent < self._limit)

    def deliver(self, consumer: Consumer, entry: Entry) -> None:
        assert isinstance(consumer, Subscription)
        queue, message, link = consumer.queue, entry.message, self._link
        tag = self._lend(queue, entry, consumer, is_silent=consumer.is_silent)
        link.write(
            delivery(self._number, consumer.wire_tag, tag, queue.is_redelivered(entry), message.way)
            + content(self._number, queue.header_of(entry), message.body, link.frame_max)
        )

    def _lend(self, queue: Queue, entry: Entry, consumer: Consumer | None, *, is_silent: bool) -> int:
        tag = self._next_tag
        self._next_tag += 1
        if not is_silent:
            patience = queue.patience(None) if consumer is None else consumer.patience
            due = FOREVER if patience is None else self._vhost.timers.now() + patience
            self.ledger.add(Loan(tag, queue, entry, consumer, due))
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
        overdue = self.ledger.overdue(self._vhost.timers.now())
        for consumer in dict.fromkeys(loan.consumer for loan in overdue):
            held = [loan for loan in overdue if loan.consumer is consumer]
            is_told = self._link.has_cancel_notices and isinstance(consumer, Subscription)
            if not (is_told and all(loan.queue.takes_back for loan in held)):
                self._fail(self._overdue(held[0]))
                return
            assert isinstance(consumer, Subscription)
            self.ledger.take_back(held)
            self.release(held)
            consumer.queue.remove_consumer(consumer)
            self.end_consumer(consumer)
            consumer.queue.give_back([loan.entry for loan in held], Return.NACKED)
        self._watch_due(self.ledger.next_due())

    def _overdue(self, loan: Loan) -> RefusedError:
        patience = loan.queue.patience(None) if loan.consumer is None else loan.consumer.patience
        used = -1 if loan.queue.takes_back else round(1000 * (patience or 0))
        return failed(
            f"delivery acknowledgement on channel {self._number} timed out. Timeout value used: {used} ms. "
            "This timeout value can be configured, see consumers doc guide to learn more"
        )

    def deliver_reply(self, message: Message) -> None:
        """A direct reply. One that the client is too slow for is lost, as direct replies may be."""
        if self._replies is None or self._link.is_overflowing:
            return
        number, self._next_tag = self._next_tag, self._next_tag + 1
        head = delivery(self._number, short(self._replies[0]), number, False, message.way)
        self._link.write(head + content(self._number, message.header, message.body, self._link.frame_max))

    def end_consumer(self, consumer: Consumer) -> None:
        self._subscriptions.pop(consumer.tag, None)
        if self._is_open and self._link.has_cancel_notices:
            self._send(method(commands.Basic.Cancel, consumer_tag=consumer.tag, nowait=True))

    def release(self, loans: Iterable[Loan]) -> None:
        """These count no more towards any prefetch."""
        was_full = self._limit > 0 and self._lent >= self._limit
        for loan in loans:
            if (consumer := loan.consumer) is not None:
                is_freed = consumer.lent == consumer.prefetch
                consumer.lent -= 1
                self._lent -= 1
                if is_freed:
                    loan.queue.consumers.has_room_again(consumer)
        if was_full:
            self._wake()

    def _wake(self) -> None:
        for subscription in list(self._subscriptions.values()):
            subscription.queue.dispatch()

    def stop(self) -> None:
        """Take no more."""
        self._is_open = False

    def close(self, settled: Iterable[Loan]) -> None:
        """Give everything back, what was settled in a transaction too."""
        self.stop()
        self._watch_due(FOREVER)
        self._end_replies()
        loans = sorted([*self.ledger.take_all(), *settled], key=lambda loan: loan.tag)
        self.release(loans)
        for queue, entries in by_queue(loans).items():
            queue.give_back(entries, Return.LOST)
        subscriptions, self._subscriptions = list(self._subscriptions.values()), {}
        for subscription in subscriptions:
            subscription.queue.remove_consumer(subscription)


def _token() -> str:
    return urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
