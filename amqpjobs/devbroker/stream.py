"""Streams, as AMQP 0-9-1 reads them: a log that every consumer goes through on its own, from where it likes.

Nothing is taken out; an ack only makes room for more. What is too much or too old goes message by message,
where RabbitMQ lets whole segments go.
"""

from collections.abc import Iterable, Iterator, Sequence

from amqpjobs.devbroker.backlog import Backlog, Entry
from amqpjobs.devbroker.checks import seconds_of
from amqpjobs.devbroker.consumers import Consumer
from amqpjobs.devbroker.errors import failed, unsupported
from amqpjobs.devbroker.message import Message
from amqpjobs.devbroker.queue import Queue
from amqpjobs.devbroker.returns import Return
from amqpjobs.devbroker.table import Field, Table, long
from amqpjobs.devbroker.timers import Timer


class Log:
    """Entries by offset; a backlog from which nothing is taken but its oldest."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._moments: list[float] = []
        #: How many at the beginning are gone.
        self._gone = 0
        self._base = 0

    def __len__(self) -> int:
        return len(self._entries) - self._gone

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries[self._gone :])

    @property
    def start(self) -> int:
        """The offset of the oldest."""
        return self._base + self._gone

    @property
    def end(self) -> int:
        """The offset of the next."""
        return self._base + len(self._entries)

    def append(self, entry: Entry, moment: float) -> None:
        self._entries.append(entry)
        self._moments.append(moment)

    def at(self, offset: int) -> Entry:
        return self._entries[offset - self._base]

    def since(self, moment: float) -> int:
        """The offset of the first that came then or later."""
        return next((offset for offset in range(self.start, self.end) if self.moment(offset) >= moment), self.end)

    def moment(self, offset: int) -> float:
        """When one came."""
        return self._moments[offset - self._base]

    def add(self, entry: Entry) -> None:
        self.append(entry, 0.0)

    restore = add

    def first(self) -> Entry:
        return self.at(self.start)

    def take(self) -> Entry:
        entry = self.first()
        self._gone += 1
        if self._gone > len(self._entries) // 2:
            del self._entries[: self._gone], self._moments[: self._gone]
            self._base, self._gone = self._base + self._gone, 0
        return entry

    def heads(self) -> Iterable[Entry]:
        return ()

    def take_expired(self, now: float) -> Entry:
        return self.take()


class StreamQueue(Queue):
    """A stream."""

    def _new_backlog(self) -> Backlog:
        self._log = Log()
        self._cursors: dict[Consumer, int] = {}
        self._age_timer: Timer | None = None
        return self._log

    def is_redelivered(self, entry: Entry) -> bool:
        return False

    def patience(self, asked: int | None) -> float | None:
        return None

    def header_of(self, entry: Entry, *, is_get: bool = False) -> bytes:
        return entry.message.header_with(Table({b"x-stream-offset": long(entry.number)}))

    # -- coming in -----------------------------------------------------------------------------------------

    def offer(self, message: Message) -> bool:
        entry = Entry(self._log.end, _flat(message))
        self._host.memory.add(entry.size)
        self._log.append(entry, self._host.timers.now())
        self.ready_bytes += len(entry.message.body)
        self.dispatch()
        self._retain()
        return True

    def _retain(self) -> None:
        most, age, now = self.arguments.max_bytes, self.arguments.max_age, self._host.timers.now()
        while most is not None and self.ready_bytes > most and len(self._log) > 1:
            self._drop_oldest()
        while age is not None and len(self._log) and self._log.moment(self._log.start) + age <= now:
            self._drop_oldest()
        if age is not None and len(self._log) and (self._age_timer is None or not self._age_timer.is_waiting):
            self._age_timer = self._host.timers.at(self._log.moment(self._log.start) + age, self._retain)

    def _drop_oldest(self) -> None:
        self._host.memory.free(self._take().size)

    # -- going out -----------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        for consumer in list(self.consumers):
            cursor = max(self._cursors[consumer], self._log.start)
            while cursor < self._log.end and consumer.is_ready:
                consumer.lent += 1
                consumer.channel.deliver(consumer, self._log.at(cursor))
                cursor += 1
            self._cursors[consumer] = cursor

    def check_consume(self, *, is_exclusive: bool, is_limited: bool, is_silent: bool, prefetch: int) -> None:
        if is_limited:
            raise unsupported(f"{self.place} does not support global qos")
        if prefetch == 0:
            shown = f"'{self.place}'" if self._host.profile.are_deaths_headers else f"stream {self.place}"
            raise failed(f"consumer prefetch count is not set for {shown}")
        if is_silent:
            kind = "stream queues" if self._host.profile.are_deaths_headers else "stream"
            raise unsupported(f"automatic acknowledgement not supported by {kind} {self.place}")

    def add_consumer(self, consumer: Consumer, *, is_exclusive: bool) -> None:
        self._cursors[consumer] = self._offset(consumer.offset)
        super().add_consumer(consumer, is_exclusive=False)

    def remove_consumer(self, consumer: Consumer) -> None:
        super().remove_consumer(consumer)
        self._cursors.pop(consumer, None)

    def _offset(self, asked: Field | None) -> int:
        match None if asked is None else asked.text:
            case "first":
                return self._log.start
            case "last":
                return max(self._log.start, self._log.end - 1)
            case "next":
                return self._log.end
            case str() as span:
                return self._log.since(self._host.timers.now() - seconds_of(span))
            case None:
                pass
        if asked is None:
            return self._log.end
        number = asked.value if asked.letter == "T" else asked.integer
        assert isinstance(number, int)  # it was checked
        return self._log.since(float(number)) if asked.letter == "T" else number

    # -- what was lent: an ack is no more than that ----------------------------------------------------------

    def settle(self, entries: Sequence[Entry]) -> None:
        """They were read."""

    def discard(self, entries: Sequence[Entry], why: Return) -> None:
        self._check_returns()

    def give_back(self, entries: Sequence[Entry], why: Return) -> None:
        if why is not Return.LOST:
            self._check_returns()
        self.dispatch()

    def _check_returns(self) -> None:
        if self._host.profile.are_deaths_headers:
            raise unsupported(f"basic.nack and basic.reject not supported by stream queues {self.place}")

    # -- refused -------------------------------------------------------------------------------------------

    def get(self, *, is_silent: bool) -> Entry | None:
        raise unsupported(f"basic.get not supported by stream queues {self.place}")

    def purge(self) -> int:
        raise unsupported(f"queue.purge not supported by stream queues {self.place}")

    def forget_transient(self) -> None:
        """A stream keeps everything."""

    def delete(self) -> None:
        super().delete()
        if self._age_timer is not None:
            self._age_timer.cancel()


def _flat(message: Message) -> Message:
    """Without headers that hold others: streams do not keep them."""
    headers = message.properties.headers()
    kept = Table({name: field for name, field in headers.items() if field.letter not in "FA"})
    return message if len(kept) == len(headers) else message.with_headers(kept)
