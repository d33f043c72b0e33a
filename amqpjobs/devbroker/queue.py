"""Queues: what waits, who is lent what, and what happens to a message that is not taken in time.

All of it is synchronous: a call leaves the queue settled, with everything delivered that can be. `Queue` is
RabbitMQ's classic queue; quorum queues differ in what they count and in which order they give.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from amqpjobs.devbroker.arguments import QueueArguments
from amqpjobs.devbroker.backlog import FOREVER, Backlog, Entry, PriorityBacklog
from amqpjobs.devbroker.checks import DROP_HEAD, REJECT_PUBLISH_DLX
from amqpjobs.devbroker.consumers import Consumer, Consumers
from amqpjobs.devbroker.deadletter import Reason
from amqpjobs.devbroker.errors import place, refused
from amqpjobs.devbroker.memory import Memory
from amqpjobs.devbroker.message import Message
from amqpjobs.devbroker.profile import Profile
from amqpjobs.devbroker.returns import Return
from amqpjobs.devbroker.timers import Timer, Timers


class Host(Protocol):
    """What a queue needs of its vhost."""

    name: str
    profile: Profile
    timers: Timers
    memory: Memory
    #: Seconds that a consumer may hold a message.
    consumer_timeout: float | None

    def bury(self, queue: "Queue", message: Message, reason: Reason) -> None:
        """Send a message that left the queue where its dead letters go, if anywhere."""
        ...

    def bury_surely(self, message: Message, reason: Reason, queue: "Queue") -> bool:
        """The same, and whether every queue it was meant for took it."""
        ...

    def remove_queue(self, queue: "Queue") -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Attributes:
    """How a queue was declared, arguments apart."""

    is_durable: bool = True
    #: The connection whose queue it is, if it is exclusive.
    owner: object | None = None
    is_auto_delete: bool = False


class Queue:
    """A classic queue."""

    #: Milliseconds.
    _least_ttl = 0

    def __init__(self, name: str, host: Host, arguments: QueueArguments, attributes: Attributes) -> None:
        self.name = name
        self.arguments = arguments
        self.attributes = attributes
        #: Seconds that a message may be held by whom neither the queue's arguments nor a consumer's say otherwise.
        self.consumer_timeout = host.consumer_timeout
        self._host = host
        self.backlog = self._new_backlog()
        self.consumers = self._new_consumers()
        self.is_deleted = False
        self._numbers = 0
        #: Bytes of the bodies that wait.
        self.ready_bytes: int = 0
        #: To whom; to nobody's consumer by basic.get.
        self._lent: dict[Entry, Consumer | None] = {}
        self._has_ttl = arguments.ttl is not None
        self._head_timer: Timer | None = None
        self._unused_timer: Timer | None = None
        self.touch()

    def _new_backlog(self) -> Backlog:
        return PriorityBacklog(self.arguments.max_priority)

    def _new_consumers(self) -> Consumers:
        return Consumers(is_single=self.arguments.has_single_active_consumer)

    @property
    def place(self) -> str:
        return place("queue", self.name, self._host.name)

    @property
    def lent(self) -> int:
        """How many messages consumers have, and did not settle."""
        return len(self._lent)

    @property
    def takes_back(self) -> bool:
        """Whether it takes back what was held too long; otherwise the channel ends."""
        return False

    def patience(self, asked: int | None) -> float | None:
        """Seconds that a delivery may be held, for a consumer that asked for so many milliseconds."""
        given = self.arguments.consumer_timeout if asked is None else asked
        if self._host.profile.has_consumer_timeout:
            return None
        return self.consumer_timeout if given is None else given / 1000

    def is_redelivered(self, entry: Entry) -> bool:
        return entry.acquired > 0 or (entry.failures > 0 and bool(self._host.profile.classic_failures))

    def header_of(self, entry: Entry, *, is_get: bool = False) -> bytes:
        """The content header to deliver; quorum queues add their counts."""
        return entry.message.header

    # -- coming in -----------------------------------------------------------------------------------------

    def offer(self, message: Message) -> bool:
        """Take a message, or refuse it because the queue is full."""
        if self.arguments.overflow != DROP_HEAD and self.is_full_for(message):
            if self.arguments.overflow == REJECT_PUBLISH_DLX:
                self._host.bury(self, message, Reason.MAXLEN)
            return False
        self._numbers += 1
        entry = Entry(self._numbers, message, self._expiry_of(message))
        self._host.memory.add(entry.size)
        self._enter(entry)
        return True

    def is_full_for(self, message: Message) -> bool:
        return self._exceeds(len(self.backlog) + 1, self.ready_bytes + self._weight(message))

    def _enter(self, entry: Entry) -> None:
        if not self.backlog and (consumer := self.consumers.next_ready()) is not None:
            self._lend(consumer, entry)
            return
        self.backlog.add(entry)
        self.ready_bytes += self._weight(entry.message)
        self._entered()

    def _entered(self) -> None:
        """Of a higher priority than those before it, it is first, but nobody looks whether it expires."""
        if self._drop_surplus() or len(self.backlog) == 1:
            self._drop_expired()
            self._watch_head()

    def _weight(self, message: Message) -> int:
        """What it counts towards x-max-length-bytes."""
        return len(message.body)

    def _expiry_of(self, message: Message) -> float:
        if message.ttl is None and self.arguments.ttl is None:
            return FOREVER
        self._has_ttl = True
        ttls = [ttl for ttl in (message.ttl, self.arguments.ttl) if ttl is not None]
        return self._host.timers.now() + max(min(ttls), self._least_ttl) / 1000

    def _exceeds(self, count: int, size: int) -> bool:
        longest, largest = self.arguments.max_length, self.arguments.max_bytes
        return (longest is not None and count > longest) or (largest is not None and size > largest)

    # -- going out -----------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Deliver as much as consumers take."""
        if self._has_ttl:
            self._drop_expired()
        while self.backlog and (consumer := self.consumers.next_ready()) is not None:
            self._lend(consumer, self._take())
            if self._has_ttl:
                self._drop_expired()
        self._watch_head()

    def get(self, *, is_silent: bool) -> Entry | None:
        """basic.get: the next message, lent unless it need not be acked."""
        self._check_get()
        self._drop_expired()
        entry = self._taken(is_silent) if self.backlog else None
        self.touch()
        return entry

    def _taken(self, is_silent: bool) -> Entry:
        entry = self._take()
        if is_silent:
            self._host.memory.free(entry.size)
        else:
            self._lent[entry] = None
        self._expire_next()
        self._watch_head()
        return entry

    def _expire_next(self) -> None:
        """After basic.get, before it says how many are left."""
        self._drop_expired()

    def _check_get(self) -> None:
        """Raises `RefusedError` if it gives to consumers only."""

    def _take(self) -> Entry:
        entry = self.backlog.take()
        self.ready_bytes -= self._weight(entry.message)
        return entry

    def _lend(self, consumer: Consumer, entry: Entry) -> None:
        if consumer.is_silent:
            self._host.memory.free(entry.size)
        else:
            consumer.lent += 1
            self._lent[entry] = consumer
        consumer.channel.deliver(consumer, entry)

    def cut_holders(self) -> None:
        """End the connections of its consumers that hold something, without a word."""
        for consumer in set(self._lent.values()):
            if consumer is not None:
                consumer.channel.cut()

    # -- what was lent -------------------------------------------------------------------------------------

    def settle(self, entries: Sequence[Entry]) -> None:
        """These are done."""
        for entry in entries:
            self._forget(entry)

    def discard(self, entries: Sequence[Entry], why: Return) -> None:
        """These are refused for good."""
        for entry in entries:
            if entry in self._lent:
                del self._lent[entry]
                self._count(entry, why)
                self._bury(entry, Reason.REJECTED)

    def give_back(self, entries: Sequence[Entry], why: Return) -> None:
        """These come back, in this order."""
        for entry in entries:
            if entry in self._lent:
                del self._lent[entry]
                self._count(entry, why)
                self._return(entry, why)
        self._returned()

    def _returned(self) -> None:
        """What is too many goes before anything is delivered, also when it just came back."""
        self._drop_surplus()
        self._settle()

    def _count(self, entry: Entry, why: Return) -> None:
        entry.acquired += 1
        entry.failures += self._is_failure(why)

    def _is_failure(self, why: Return) -> bool:
        return why in self._host.profile.classic_failures

    def _return(self, entry: Entry, why: Return) -> None:
        self.backlog.restore(entry)
        self.ready_bytes += self._weight(entry.message)

    def _forget(self, entry: Entry) -> bool:
        if entry not in self._lent:
            return False
        del self._lent[entry]
        self._host.memory.free(entry.size)
        return True

    # -- limits and time -----------------------------------------------------------------------------------

    def _settle(self) -> None:
        self.dispatch()
        self._drop_surplus()
        self._watch_head()

    def _drop_surplus(self) -> bool:
        """Whether there was any."""
        count = len(self.backlog)
        if self.arguments.overflow == DROP_HEAD:
            while self.backlog and self._exceeds(len(self.backlog), self.ready_bytes):
                self._bury(self._take(), Reason.MAXLEN)
        return len(self.backlog) < count

    def _bury(self, entry: Entry, reason: Reason) -> None:
        self._host.memory.free(entry.size)
        self._host.bury(self, self._counted(entry), reason)

    def _counted(self, entry: Entry) -> Message:
        """The message, with what the next queue is told of its past."""
        if entry.failures == entry.message.failures or self._host.profile.are_deaths_headers:
            return entry.message
        return replace(entry.message, failures=entry.failures)

    def _drop_expired(self) -> None:
        if not self._has_ttl:
            return
        now = self._host.timers.now()
        while any(head.expires_at <= now for head in self.backlog.heads()):
            self._bury(self._take_expired(now), Reason.EXPIRED)

    def _take_expired(self, now: float) -> Entry:
        entry = self.backlog.take_expired(now)
        self.ready_bytes -= self._weight(entry.message)
        return entry

    def _watch_head(self) -> None:
        """Have a timer for the next head that expires."""
        if not self._has_ttl:
            return
        soonest = min((head.expires_at for head in self.backlog.heads()), default=FOREVER)
        if self._head_timer is not None:
            if self._head_timer.is_waiting and self._head_timer.at == soonest:
                return
            self._head_timer.cancel()
        self._head_timer = None if soonest == FOREVER else self._host.timers.at(soonest, self._heads_expired)

    def _heads_expired(self) -> None:
        self._drop_expired()
        self._watch_head()

    def touch(self) -> None:
        """It is in use: x-expires starts anew."""
        if self._unused_timer is not None:
            self._unused_timer.cancel()
            self._unused_timer = None
        if self.arguments.expires is not None and not self.consumer_count:
            moment = self._host.timers.now() + self.arguments.expires / 1000
            self._unused_timer = self._host.timers.at(moment, lambda: self._host.remove_queue(self))

    def redeclared(self) -> None:
        """Declared again just as it is."""
        self.touch()

    @property
    def consumer_count(self) -> int:
        """As a declaration is told it; without any, the queue is not in use."""
        return len(self.consumers)

    # -- consumers -----------------------------------------------------------------------------------------

    def check_consume(self, *, is_exclusive: bool, is_limited: bool, is_silent: bool, prefetch: int) -> None:
        """Raises `RefusedError` if a consumer may not join; `is_limited` by a prefetch of its whole channel."""
        is_taken = self.consumers.has_exclusive or (is_exclusive and len(self.consumers) > 0)
        if is_taken or (is_exclusive and self.consumers.is_single):
            raise refused(f"{self.place} in exclusive use")

    def add_consumer(self, consumer: Consumer, *, is_exclusive: bool) -> None:
        self.consumers.add(consumer, is_exclusive=is_exclusive)
        self.touch()
        self._settle()

    def remove_consumer(self, consumer: Consumer) -> None:
        """It may still settle what it has."""
        if not self.consumers.remove(consumer):
            return
        if self.attributes.is_auto_delete and not self.consumers:
            self._host.remove_queue(self)
            return
        self.touch()
        self._settle()

    # -- as a whole ----------------------------------------------------------------------------------------

    def purge(self) -> int:
        """Remove what waits; how many that were."""
        return self._clear(lambda entry: True)

    def forget_transient(self) -> None:
        """What a restart leaves: persistent messages."""
        self._clear(lambda entry: not entry.message.is_persistent)

    def _clear(self, is_to_go: Callable[[Entry], bool]) -> int:
        waiting = [self._take() for _ in range(len(self.backlog))]
        gone = [entry for entry in waiting if is_to_go(entry)]
        for entry in waiting:
            if is_to_go(entry):
                self._host.memory.free(entry.size)
            else:
                self._return(entry, Return.LOST)
        self._watch_head()
        return len(gone)

    def delete(self) -> None:
        """End its consumers and forget its messages. The vhost calls this."""
        self.is_deleted = True
        for timer in (self._head_timer, self._unused_timer):
            if timer is not None:
                timer.cancel()
        self._clear(lambda entry: True)
        for entry in self._lent:
            self._host.memory.free(entry.size)
        self._lent.clear()
        for consumer in list(self.consumers):
            self.consumers.remove(consumer)
            consumer.channel.end_consumer(consumer)
