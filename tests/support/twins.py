"""Two brokers that are told the same and must say the same: RabbitMQ, and the embedded one.

Every answer is compared at once. What is said unasked (deliveries, returns, confirms, cancellations, closed
channels) and how many messages and consumers each queue has is compared once both are quiet. RabbitMQ does much
of it later than it answers, so a difference only counts when it stays.

What is normalised, and nothing else: delivery tags, since two queues race for a channel's next one; the order of
deliveries of different consumers, of confirms, and of cancellations, for the same reason; how confirms are put
together; names that the broker makes up; the moments in x-death.
"""

import re
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import cast

from pamqp import commands
from pamqp.base import Frame

from tests.support.line import Line, Said

#: A connection and a channel on it.
Slot = tuple[str, int]
#: What RabbitMQ and the embedded broker said.
Both = tuple[Said, Said]
#: Messages and consumers of a queue, or why they are not known.
Count = tuple[int, int] | str
_MADE_UP = re.compile(r"(amq\.(?:gen|ctag)-)[\w-]{22}")
#: Seconds between two looks, while the brokers are not quiet.
_PAUSE = 0.003


class DifferenceError(AssertionError):
    """The two brokers do not behave alike."""


@dataclass(frozen=True, slots=True)
class ChannelNews:
    """What one channel was told, in a form in which two brokers can be compared."""

    deliveries: dict[str, list[Said]]
    returns: list[Said]
    confirmed: set[int]
    refused: set[int]
    cancelled: list[str]
    end: Said | None


@dataclass(frozen=True, slots=True)
class News:
    """All channels of a broker, and what its queues hold: messages and consumers, or why that is not known."""

    channels: dict[Slot, ChannelNews]
    ends: dict[str, Said]
    counts: dict[str, Count]


@dataclass(slots=True)
class Side:
    """One broker, and our connections to it."""

    name: str
    url: str
    within: float
    lines: dict[str, Line] = field(default_factory=dict[str, Line])
    #: Numbers of messages on confirming channels that wait for their confirm.
    unconfirmed: dict[Slot, set[int]] = field(default_factory=lambda: defaultdict(set))
    observer: Line = field(init=False)

    def __post_init__(self) -> None:
        self.observer = Line(self.url, within=self.within)
        self.observer.reopen(1)

    def dial(self, line: str) -> None:
        if (old := self.lines.get(line)) is not None:
            old.hang_up()
        self.lines[line] = Line(self.url, within=self.within)

    # -- looking -------------------------------------------------------------------------------------------

    def look(self, slots: Iterable[Slot], queues: Iterable[str]) -> News:
        """What was said since the last `forget`; the fences come back after what the broker does at once."""
        alive = [(line, number) for line, number in slots if self._hears(line, number)]
        for line, number in alive:
            self.lines[line].send(number, commands.Channel.Flow(active=True))
        for line, number in alive:
            self.lines[line].answer(number)
        counts = self._counts(list(queues))
        for each in self.lines.values():
            each.listen(0)
        channels = {slot: self._channel(slot) for slot in slots}
        return News(channels, {name: line.ends[0] for name, line in self.lines.items() if 0 in line.ends}, counts)

    def _hears(self, line: str, number: int) -> bool:
        it = self.lines[line]
        return not it.is_lost and 0 not in it.ends and number not in it.ends

    def _counts(self, queues: list[str]) -> dict[str, Count]:
        counts = dict[str, Count]()
        while queues:
            for name in queues:
                self.observer.send(1, commands.Queue.Declare(queue=name, passive=True))
            for name in queues:
                said = self.observer.answer(1)
                if said.name == "Channel.Close":
                    counts[name] = said.fields["reply_text"]
                    self.observer.reopen(1)
                    break
                counts[name] = said.fields["message_count"], said.fields["consumer_count"]
            queues = [name for name in queues if name not in counts]
        return counts

    def _channel(self, slot: Slot) -> ChannelNews:
        line, number = self.lines[slot[0]], slot[1]
        news = ChannelNews({}, [], set(), set(), [], line.ends.get(number))
        open_numbers = set(self.unconfirmed[slot])
        for said in line.heard[number]:
            match said.name:
                case "Basic.Deliver":
                    news.deliveries.setdefault(said.fields["consumer_tag"], []).append(normal(said))
                case "Basic.Return":
                    news.returns.append(normal(said))
                case "Basic.Cancel":
                    news.cancelled.append(said.fields["consumer_tag"])
                case _:
                    last, is_multiple = said.fields["delivery_tag"], said.fields["multiple"]
                    meant = {one for one in open_numbers if one == last or (is_multiple and one < last)}
                    (news.confirmed if said.name == "Basic.Ack" else news.refused).update(meant)
                    open_numbers -= meant
        news.cancelled.sort()
        return news

    def taken(self, slot: Slot) -> dict[str, list[Said]]:
        """Deliveries since the last time, as they came, by consumer; the rest is forgotten."""
        news, line = self._channel(slot), self.lines[slot[0]]
        self.unconfirmed[slot] -= news.confirmed | news.refused
        heard, line.heard[slot[1]] = line.heard[slot[1]], []
        deliveries = dict[str, list[Said]]()
        for said in heard:
            if said.name == "Basic.Deliver":
                deliveries.setdefault(said.fields["consumer_tag"], []).append(said)
        return deliveries


class Twins:
    """Both of them. Raises `DifferenceError` from `ask` and `settle`."""

    def __init__(self, rabbitmq: str, embedded: str, *, within: float, patience: float) -> None:
        self.sides = Side("RabbitMQ", rabbitmq, within), Side("The embedded broker", embedded, within)
        self._patience = patience
        #: Queues to watch, and those of them whose messages go away by themselves within a moment.
        self.queues: set[str] = set()
        self.fleeting: set[str] = set()
        self.slots: set[Slot] = set()
        #: Nothing is quiet before this moment: something will expire.
        self.not_before = 0.0

    def dial(self, line: str) -> None:
        for side in self.sides:
            side.dial(line)

    def ask(self, slot: Slot, asked: Frame) -> Both:
        """One request, and the answers, which are alike."""
        line, channel = slot
        for side in self.sides:
            side.lines[line].send(channel, asked)
        ours, theirs = (side.lines[line].answer(channel) for side in self.sides)
        if normal(ours) != normal(theirs):
            raise self._difference(f"the answer to {asked.name} {dict(asked)}", normal(ours), normal(theirs))
        return ours, theirs

    def tell(self, slot: Slot, *data: bytes | Frame) -> None:
        """What is not answered; the same bytes for both."""
        for side in self.sides:
            for one in data:
                if isinstance(one, bytes):
                    side.lines[slot[0]].send_raw(one)
                else:
                    side.lines[slot[0]].send(slot[1], one)

    def tell_each(self, slot: Slot, *asked: Frame) -> None:
        """Each its own: delivery tags may differ."""
        for side, one in zip(self.sides, asked, strict=True):
            side.lines[slot[0]].send(slot[1], one)

    def expect_confirm(self, slot: Slot, number: int) -> None:
        for side in self.sides:
            side.unconfirmed[slot].add(number)

    def wait(self, seconds: float) -> None:
        """Something expires in less than that."""
        self.not_before = max(self.not_before, time.monotonic() + seconds)

    def open(self, slot: Slot) -> None:
        for side in self.sides:
            side.lines[slot[0]].heard[slot[1]] = []
            side.unconfirmed[slot] = set()
            side.lines[slot[0]].reopen(slot[1])
        self.slots.add(slot)

    def settle(self) -> News:
        """Wait until both are quiet and alike; what the channels were told since the last time."""
        deadline = max(time.monotonic(), self.not_before) + self._patience
        while True:
            ours, theirs = (side.look(self.slots, self.queues) for side in self.sides)
            now = time.monotonic()
            if ours == theirs and now >= self.not_before and not self._is_fleeting(ours):
                return ours
            if now > deadline:
                if ours == theirs:
                    raise self._difference("nothing, but it does not end: is something never expiring?", ours, theirs)
                raise self._first_difference(ours, theirs)
            self.sides[0].observer.listen(_PAUSE)

    def deliveries(self, slot: Slot) -> dict[str, list[Both]]:
        """What was settled as alike, by consumer; the rest is forgotten."""
        ours, theirs = (side.taken(slot) for side in self.sides)
        return {tag: list(zip(ours[tag], theirs[tag], strict=True)) for tag in ours}

    def close(self, line: str, *, politely: bool) -> None:
        """All its channels end. It must be dialled again."""
        if politely:
            self.ask((line, 0), commands.Connection.Close(200, "", 0, 0))
        for side in self.sides:
            side.lines[line].hang_up()
        self.slots = {slot for slot in self.slots if slot[0] != line}

    def forget(self, queues: Iterable[str], exchanges: Iterable[str]) -> None:
        """Delete what there is of these, on both."""
        self.queues.clear()
        self.fleeting.clear()
        for side in self.sides:
            for name in queues:
                side.observer.ask(1, commands.Queue.Delete(queue=name))
            for name in exchanges:
                side.observer.ask(1, commands.Exchange.Delete(exchange=name))

    def _is_fleeting(self, news: News) -> bool:
        return any(_ready(news.counts.get(name)) for name in self.fleeting)

    def _first_difference(self, ours: News, theirs: News) -> DifferenceError:
        for name in sorted(ours.counts.keys() | theirs.counts.keys()):
            if ours.counts.get(name) != theirs.counts.get(name):
                what = f"messages and consumers of {name}"
                return self._difference(what, ours.counts.get(name), theirs.counts.get(name), ours, theirs)
        return self._difference("what channels were told", ours, theirs)

    def _difference(self, what: str, *said: object) -> DifferenceError:
        words = [f"{self.sides[number % 2].name}: {one}" for number, one in enumerate(said)]
        return DifferenceError("\n".join([f"They differ in {what}.", *words]))

    def leave(self) -> None:
        """For good."""
        self.hang_up()
        for side in self.sides:
            side.observer.hang_up()

    def hang_up(self) -> None:
        for side in self.sides:
            for line in side.lines.values():
                line.hang_up()
            side.lines.clear()
        self.slots.clear()


def normal(said: Said) -> Said:
    """Without what may differ."""
    fields = {name: _masked(value) for name, value in said.fields.items() if name != "delivery_tag"}
    return replace(said, fields=fields, properties=tuple(_masked(one) for one in said.properties))


def _masked(value: object) -> object:
    if isinstance(value, str):
        return _MADE_UP.sub(r"\1*", value)
    if isinstance(value, bytes):
        return _MADE_UP.sub(r"\1*", value.decode("latin-1")).encode("latin-1") if b"amq." in value else value
    return tuple(map(_masked, cast("tuple[object, ...]", value))) if isinstance(value, tuple) else value


def _ready(count: tuple[int, int] | str | None) -> int:
    return count[0] if isinstance(count, tuple) else 0
