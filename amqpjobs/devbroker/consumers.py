"""Who consumes from a queue, and whose turn it is."""

from collections import deque
from collections.abc import Iterator
from typing import Protocol

from amqpjobs.devbroker.backlog import Entry
from amqpjobs.devbroker.table import Field
from amqpjobs.devbroker.wire import short


class Receiver(Protocol):
    """What a queue needs of a channel."""

    def has_room(self) -> bool:
        """Whether it takes a delivery now: its socket is not full, its own prefetch not used up."""
        ...

    def deliver(self, consumer: "Consumer", entry: Entry) -> None: ...

    def end_consumer(self, consumer: "Consumer") -> None:
        """The queue is gone, or gave it up."""
        ...

    def cut(self) -> None:
        """End its connection without a word."""
        ...


class Consumer:
    """One basic.consume."""

    __slots__ = (
        "channel",
        "is_passed_over",
        "is_silent",
        "lent",
        "offset",
        "patience",
        "prefetch",
        "priority",
        "tag",
        "wire_tag",
    )

    def __init__(self, channel: Receiver, tag: str, *, is_silent: bool, prefetch: int, priority: int) -> None:
        self.channel = channel
        self.tag = tag
        self.wire_tag = short(tag)
        #: It acks nothing: what is sent to it is gone, and its prefetch means nothing.
        self.is_silent = is_silent
        self.prefetch = 0 if is_silent else prefetch
        self.priority = priority
        #: Where in a stream it begins.
        self.offset: Field | None = None
        #: Seconds that it may hold a delivery.
        self.patience: float | None = None
        #: Whether it could not take a delivery when it was its turn.
        self.is_passed_over = False
        #: Deliveries that it has not settled.
        self.lent = 0

    @property
    def is_ready(self) -> bool:
        return (self.prefetch == 0 or self.lent < self.prefetch) and self.channel.has_room()


class Consumers:
    """By priority, and in turns within one; or the first of them alone, if only one may be active."""

    def __init__(
        self, *, is_single: bool, does_priority_take_over: bool = False, loses_turn_when_full: bool = False
    ) -> None:
        self._rows: dict[int, deque[Consumer]] = {}
        self._order: list[int] = []
        self._is_single = is_single
        #: Whether that happens as soon as its prefetch is used up, and not first when it is passed over.
        self._loses_turn_when_full = loses_turn_when_full
        self._does_priority_take_over = does_priority_take_over
        self._active: Consumer | None = None
        self._exclusive: Consumer | None = None
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Consumer]:
        for priority in self._order:
            yield from self._rows[priority]

    @property
    def has_exclusive(self) -> bool:
        return self._exclusive is not None

    @property
    def is_single(self) -> bool:
        """Whether only one may be active."""
        return self._is_single

    def served(self) -> list[Consumer]:
        """Those that do not wait for another to end."""
        if not self._is_single or not self._order:
            return list(self)
        return [self._active or self._rows[self._order[0]][0]]

    def add(self, consumer: Consumer, *, is_exclusive: bool = False) -> None:
        self._rows.setdefault(consumer.priority, deque()).append(consumer)
        self._order = sorted(self._rows, reverse=True)
        self._size += 1
        if is_exclusive:
            self._exclusive = consumer
        if self._is_single and self._active is None:
            self._active = consumer

    def remove(self, consumer: Consumer) -> bool:
        """Whether it was there."""
        row = self._rows.get(consumer.priority)
        if row is None or consumer not in row:
            return False
        row.remove(consumer)
        if not row:
            del self._rows[consumer.priority]
            self._order = sorted(self._rows, reverse=True)
        self._size -= 1
        if consumer is self._exclusive:
            self._exclusive = None
        if consumer is self._active:
            self._active = None
        return True

    def next_ready(self) -> Consumer | None:
        """Whose turn it is, if it can take a delivery."""
        if self._is_single:
            return self._only()
        for priority in self._order:
            row = self._rows[priority]
            for consumer in row:
                if consumer.is_ready:
                    self._requeue(consumer)
                    return consumer
                consumer.is_passed_over = True
        return None

    def has_room_again(self, consumer: Consumer) -> None:
        """Its prefetch was used up, and is not any more: it is the last of its row, if it lost its turn meanwhile."""
        if (consumer.is_passed_over or self._loses_turn_when_full) and consumer in self._rows.get(
            consumer.priority, ()
        ):
            self._requeue(consumer)

    def _requeue(self, consumer: Consumer) -> None:
        consumer.is_passed_over = False
        row = self._rows[consumer.priority]
        if len(row) > 1:
            row.remove(consumer)
            row.append(consumer)

    def _only(self) -> Consumer | None:
        if self._order and (self._active is None or self._is_outranked(self._active)):
            if self._active is not None and self._active.lent:
                return None  # it first finishes what it has
            self._active = self._rows[self._order[0]][0]
        return self._active if self._active is not None and self._active.is_ready else None

    def _is_outranked(self, active: Consumer) -> bool:
        return self._does_priority_take_over and active.priority < self._order[0]
