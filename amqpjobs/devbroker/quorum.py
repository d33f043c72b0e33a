"""Quorum queues, as far as a client can tell them from classic ones.

They count how often a message came back, and give up on it at a limit; what comes back goes first; they are
full later than they should be; and they can keep a dead letter until its new queue has it.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from amqpjobs.devbroker.backlog import Backlog, Entry, ReturnsBacklog
from amqpjobs.devbroker.checks import REJECT_PUBLISH
from amqpjobs.devbroker.consumers import Consumers
from amqpjobs.devbroker.deadletter import Reason
from amqpjobs.devbroker.errors import locked, unsupported
from amqpjobs.devbroker.message import Message
from amqpjobs.devbroker.queue import Queue
from amqpjobs.devbroker.returns import Return
from amqpjobs.devbroker.table import Table, long
from amqpjobs.devbroker.timers import Timer

#: A queue that refused because it was full takes messages again below this part of its limit.
_LOW = 0.8
#: Dead letters that are on their way at once, and seconds until those that did not arrive are sent again.
_ON_THEIR_WAY, _AGAIN_AFTER = 32, 180.0


@dataclass(frozen=True, slots=True)
class _DeadLetter:
    entry: Entry
    reason: Reason


class QuorumQueue(Queue):
    """A queue of one replica."""

    _is_refusing = False
    #: What should not wait at all is still dropped first, if the queue is too long.
    _least_ttl = 1

    def _new_backlog(self) -> Backlog:
        self._dead: deque[_DeadLetter] = deque()
        self._stuck: list[_DeadLetter] = []
        self._again: Timer | None = None
        return ReturnsBacklog(self._host.profile.priorities)

    def _new_consumers(self) -> Consumers:
        return Consumers(
            is_single=self.arguments.has_single_active_consumer,
            does_priority_take_over=self._host.profile.does_priority_take_over,
            loses_turn_when_full=True,
        )

    @property
    def takes_back(self) -> bool:
        return self._host.profile.has_consumer_timeout

    def patience(self, asked: int | None) -> float | None:
        given = self.arguments.consumer_timeout if asked is None else asked
        return self.consumer_timeout if given is None else given / 1000

    def is_redelivered(self, entry: Entry) -> bool:
        return entry.acquired > 0 or entry.failures > 0

    def header_of(self, entry: Entry, *, is_get: bool = False) -> bytes:
        profile = self._host.profile
        if not self.is_redelivered(entry) and not (is_get and profile.are_deaths_headers):
            return entry.message.header
        counts, acquired = Table(), long(entry.acquired or entry.failures)
        if not profile.has_acquired_count:
            counts[b"x-delivery-count"] = acquired
        else:
            counts[b"x-acquired-count"] = acquired
            if entry.failures:
                counts[b"x-delivery-count"] = long(entry.failures)
        return entry.message.header_with(counts)

    def _weight(self, message: Message) -> int:
        return len(message.body) + (message.first_size if self._host.profile.has_heavy_properties else 0)

    # -- full ----------------------------------------------------------------------------------------------

    def is_full_for(self, message: Message) -> bool:
        """Only once it is over its limit, and until it is well below again."""
        if self.arguments.overflow == REJECT_PUBLISH:
            if self._exceeds(*self._load()):
                self._is_refusing = True
            elif self._is_refusing:
                self._is_refusing = not self._is_low()
        return self._is_refusing

    def _load(self) -> tuple[int, int]:
        kept = [*self._dead, *self._stuck]
        size: int = sum(self._weight(letter.entry.message) for letter in kept)
        return len(self.backlog) + len(kept), self.ready_bytes + size

    def _is_low(self) -> bool:
        count, size = self._load()
        longest, largest = self.arguments.max_length, self.arguments.max_bytes
        return (longest is None or count <= int(longest * _LOW)) and (largest is None or size <= int(largest * _LOW))

    # -- counted -------------------------------------------------------------------------------------------

    def _is_failure(self, why: Return) -> bool:
        return why in self._host.profile.failures

    def _return(self, entry: Entry, why: Return) -> None:
        limit = self.arguments.delivery_limit
        count = entry.acquired if self._host.profile.does_nack_count else entry.failures
        if limit is not None and count > limit:
            self._bury(entry, Reason.DELIVERY_LIMIT)
        elif limit is None and why is not Return.LOST and self._host.profile.does_nack_count:
            # Until 4.0, without a limit it is appended to the log once more, and so to the end of the queue.
            self.backlog.add(entry)
            self.ready_bytes += self._weight(entry.message)
        else:
            super()._return(entry, why)

    # -- dead letters that must arrive -----------------------------------------------------------------------

    def _bury(self, entry: Entry, reason: Reason) -> None:
        if not self.arguments.is_at_least_once:
            super()._bury(entry, reason)
            return
        self._dead.append(_DeadLetter(entry, reason))
        self._send_dead()

    def _send_dead(self) -> None:
        while self._dead and len(self._stuck) < _ON_THEIR_WAY and not self.is_deleted:
            letter = self._dead.popleft()
            if not self._arrives(letter):
                self._stuck.append(letter)
        if self._stuck and self._again is None:
            self._again = self._host.timers.at(self._host.timers.now() + _AGAIN_AFTER, self._send_stuck)

    def _send_stuck(self) -> None:
        self._again = None
        stuck, self._stuck = self._stuck, []
        self._stuck = [letter for letter in stuck if not self._arrives(letter)]
        self._send_dead()

    def _arrives(self, letter: _DeadLetter) -> bool:
        if not self._host.bury_surely(self._counted(letter.entry), letter.reason, self):
            return False
        self._host.memory.free(letter.entry.size)
        return True

    def redeclared(self) -> None:
        """Does not renew x-expires."""

    # -- refused -------------------------------------------------------------------------------------------

    def _entered(self) -> None:
        self._settle()

    def _returned(self) -> None:
        self._settle()

    def _expire_next(self) -> None:
        """It counts first, and expires then."""

    @property
    def consumer_count(self) -> int:
        """Who holds a message is one until that is settled, cancelled or not; each basic.get is another.

        Who waits to be the single active one is none.
        """
        holders = [consumer for consumer in self._lent.values() if consumer is not None]
        known = {(consumer.channel, consumer.tag) for consumer in (*self.consumers.served(), *holders)}
        return len(known) + len(self._lent) - len(holders)

    def settle(self, entries: Sequence[Entry]) -> None:
        super().settle(entries)
        self.touch()

    def discard(self, entries: Sequence[Entry], why: Return) -> None:
        super().discard(entries, why)
        self.touch()

    def give_back(self, entries: Sequence[Entry], why: Return) -> None:
        super().give_back(entries, why)
        self.touch()

    def _check_get(self) -> None:
        if self.consumers.is_single:
            raise locked(
                f"cannot obtain access to locked {self.place}. basic.get operations are not supported by "
                f"{self._host.profile.quorum_name} queues with single active consumer"
            )

    def check_consume(self, *, is_exclusive: bool, is_limited: bool, is_silent: bool, prefetch: int) -> None:
        if is_limited:
            raise unsupported(f"{self.place} does not support global qos")

    def delete(self) -> None:
        super().delete()
        if self._again is not None:
            self._again.cancel()
        for letter in (*self._dead, *self._stuck):
            self._host.memory.free(letter.entry.size)
        self._dead.clear()
        self._stuck.clear()
