"""Every exchange, queue and binding, as data; the only room that spells their names.

Nothing here talks to a broker: `amqp/declare.py` sends these plans. Arguments come from the
fixed tables below and from `Queue(…)` alone, never from a handler's options or the broker's
version, because a declared queue keeps its arguments for ever.

How a delay works: one queue per bit. Level n holds a message for 2ⁿ units of 100 ms, then
dead-letters it to the exchange of level n−1, where the routing key's n−1th bit says whether
to wait there too. The key is 32 words of 0 and 1, then the destination; a message enters at
its highest set bit and leaves at `due`. Work queues bind to `due` themselves, with 32 stars
before their own part. (Were `due` bound to the jobs exchange instead, a job that no queue
wants would count as routed there, never reach `unroutable`, and after 32 of them the
broker's dead-letter worker would hold up every other delay: seen on RabbitMQ 4.0.)

How a queue is sharded: whatever would lead to it leads to its own exchange instead, and from there
to the one exchange that knows its number of shards, where 64 slots are bound to its shards. A
message says its slot in a `BCC` header, by which the broker routes wherever the message comes, out
of the delay levels too. What says none, as a foreign producer's, takes the alternate exchange to the
first shard. A change of the number moves one binding; until that is made, all goes to the first shard.
"""

import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from amqpjobs.clock import Seconds, in_seconds
from amqpjobs.errors import DefinitionError
from amqpjobs.job import check_name
from amqpjobs.sharding import SHARD_COUNTS, SLOTS, slot_word

LEVELS = 32
#: One unit of delay, in seconds and as the broker wants it.
UNIT = 0.1
UNIT_MS = 100
#: 2³² − 1 units: 13.6 years.
LONGEST_DELAY: float = (2**LEVELS - 1) * UNIT
#: A guard against endless crashes only; attempts are counted in a header. Never absent (4.x
#: then takes 20, and reading a queue by get and nack counts) and never -1 (≤ 3.13: "at once").
DELIVERY_LIMIT = 1_000_000

#: Ten years in seconds: RabbitMQ takes no longer time to live.
LONGEST_RETENTION = 10 * 365 * 86_400
#: 2³² − 1 ms, 49 days: what every version takes as a consumer timeout.
LONGEST_CONSUMER_TIMEOUT = (2**32 - 1) // 1000

#: Tokens that wait in a lease, the newest; they tell only that somebody is there.
LEASE_LENGTH = 100
#: Bytes a register keeps, and those of a segment, the piece in which it lets go of old ones.
REGISTER_BYTES = 32 * 1024 * 1024
REGISTER_SEGMENT = 2 * 1024 * 1024
#: The same of the notices of ticks' runs, some 200 bytes each.
RUNS_BYTES = 16 * 1024 * 1024
RUNS_SEGMENT = 2 * 1024 * 1024
#: Commands that may wait for a beat, and their bytes; more are refused, not dropped.
CONTROL_LENGTH, CONTROL_BYTES = 20_000, 64 * 1024 * 1024

Arguments = Mapping[str, str | int | bool]
QueueType = Literal["quorum", "classic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeSpec:
    name: str
    type: str = "topic"
    arguments: Arguments = field(default_factory=dict[str, str | int | bool])
    #: Somebody else's, perhaps: taken as it is when it exists.
    adopted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSpec:
    name: str
    arguments: Arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    source: str
    destination: str
    key: str
    to_exchange: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What should be there, in the order it is declared, and which bindings should not."""

    exchanges: Sequence[ExchangeSpec] = ()
    queues: Sequence[QueueSpec] = ()
    bindings: Sequence[Binding] = ()
    stale: Sequence[Binding] = ()
    #: Stale too, and gone before the others are made: no message may find both.
    moved: Sequence[Binding] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a publication goes."""

    exchange: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """One kind that one queue wants from one exchange ("" is the namespace's own)."""

    kind: str
    queue: str
    exchange: str = ""


class Queue:
    """A work queue of an app, and how a worker takes from it.

    `type` is "quorum" (replicated, survives the loss of a node) or "classic" (lives on one
    node). `max_priority` gives a classic queue so many priority levels; quorum queues have
    their own since RabbitMQ 4. These two are for ever once the queue is declared.
    `prefetch` (default: the worker's concurrency; with batch handlers, as many as its batches
    need) is how many unfinished jobs a process may hold of it; `weight` is its share of the
    slots beside the app's other queues.
    `shards` (1, 2, 4 … 64) splits it into so many queues, each with one active consumer at a time,
    so that it is not one core of one node; jobs of one key (`shard_by` of their class) run one after
    another, in their order. How many may change; whether it is sharded at all is for ever.
    `prefetch` is then for each shard.
    `dead_retention` (seconds or a timedelta; default: for ever) is how long its dead letters
    are kept before the broker deletes them. It too is for ever once the queue is declared.
    `consumer_timeout` (seconds or a timedelta; default: the broker's own, 30 minutes) is how long
    a worker may hold a delivery before the broker takes it away; job timeouts must fit in it.
    RabbitMQ heeds it from 3.12 on, looks once a minute, and keeps it for ever from 4.3 on.
    """

    __slots__ = ("consumer_timeout", "dead_retention", "max_priority", "name", "prefetch", "shards", "type", "weight")

    def __init__(
        self,
        name: str,
        *,
        type: QueueType = "quorum",  # noqa: A002  (the broker's own word)
        max_priority: int | None = None,
        shards: int | None = None,
        prefetch: int | None = None,
        weight: int = 1,
        dead_retention: Seconds | None = None,
        consumer_timeout: Seconds | None = None,
    ) -> None:
        self.name = check_name(name, "Queue")
        self.type: QueueType = type
        self.max_priority = max_priority
        self.shards = shards
        self.prefetch = prefetch
        self.weight = weight
        self.dead_retention = None if dead_retention is None else in_seconds(dead_retention)
        self.consumer_timeout = None if consumer_timeout is None else in_seconds(consumer_timeout)
        if type not in ("quorum", "classic"):
            raise DefinitionError(f"Queue {name!r} can be 'quorum' or 'classic', not {type!r}.")
        if max_priority is not None and (type != "classic" or not 1 <= max_priority <= 255):
            raise DefinitionError(
                f"max_priority of queue {name!r} must be from 1 to 255, and is for type='classic' only: "
                "quorum queues have priorities of their own since RabbitMQ 4.0, and none before."
            )
        if shards is not None and shards not in SHARD_COUNTS:
            raise DefinitionError(
                f"shards of queue {name!r} must be one of {', '.join(map(str, SHARD_COUNTS))}, not {shards!r}: "
                f"each gets as many of {SLOTS} slots. Leave it out for a queue in one piece."
            )
        if shards is not None and max_priority is not None:
            raise DefinitionError(f"Queue {name!r} cannot have shards, which keep an order, and max_priority.")
        if weight < 1 or (prefetch is not None and not 1 <= prefetch <= 65_535):
            raise DefinitionError(f"weight of queue {name!r} must be 1 or more, prefetch from 1 to 65,535.")
        if self.dead_retention is not None and not 1 <= self.dead_retention <= LONGEST_RETENTION:
            raise DefinitionError(
                f"dead_retention of queue {name!r} must be from 1 to {LONGEST_RETENTION:,} seconds (10 years), "
                f"not {self.dead_retention!r}. Leave it out to keep dead letters for ever."
            )
        if self.consumer_timeout is not None and not 1 <= self.consumer_timeout <= LONGEST_CONSUMER_TIMEOUT:
            raise DefinitionError(
                f"consumer_timeout of queue {name!r} must be from 1 to {LONGEST_CONSUMER_TIMEOUT:,} seconds (49 days), "
                f"not {self.consumer_timeout!r}. Leave it out for the broker's own."
            )

    def __repr__(self) -> str:
        return f"Queue({self.name!r}, type={self.type!r})"


class Topology:
    """The plans and routes of one namespace."""

    def __init__(self, namespace: str) -> None:
        self.jobs = namespace
        self.queues = f"{namespace}.queues"
        self.due = f"{namespace}.due.v1"
        self.unroutable = f"{namespace}.unroutable.v1"
        self.parked = f"{namespace}.parked.v1"
        #: Of its own, so that who may enqueue cannot write into leases and registers, nor command a beat.
        self.beats = f"{namespace}.beat.v1"
        #: Declared last: who finds it finds all of `infrastructure`.
        self.marker = ExchangeSpec(name=f"{namespace}.ready.v1", type="fanout")

    def work_queue(self, name: str) -> str:
        return f"{self.jobs}.queue.{name}"

    def shard(self, name: str, number: int) -> str:
        """One of a sharded queue's. The first has the plain name, so that no queue is both."""
        return f"{self.jobs}.shard.{name}.{number:02}" if number else self.work_queue(name)

    def parts(self, queue: Queue) -> list[str]:
        """The broker's names of all that a queue consists of."""
        return [self.shard(queue.name, number) for number in range(queue.shards or 1)]

    def former_parts(self, queue: Queue) -> list[str]:
        """Shards that it may have had when it had more of them."""
        return [] if queue.shards is None else [self.shard(queue.name, each) for each in range(queue.shards, SLOTS)]

    def sharded(self, name: str) -> str:
        """The exchange of a sharded queue, to which all leads that is for it."""
        return f"{self.jobs}.sharded.v1.{name}"

    def slots(self, name: str, count: int) -> str:
        """Where the slots are bound to so many shards."""
        return f"{self.jobs}.slots.v1.{count}.{name}"

    def crew(self, name: str) -> str:
        """Where the workers of a sharded queue are counted."""
        return f"{self.jobs}.crew.v1.{name}"

    def unslotted(self, name: str) -> str:
        """For what says no slot."""
        return f"{self.jobs}.unslotted.v1.{name}"

    def dead_queue(self, name: str) -> str:
        return f"{self.jobs}.dead.{name}"

    def beat_lease(self, app: str) -> str:
        return f"{self.jobs}.beat.lease.v1.{app}"

    def beat_register(self, app: str) -> str:
        return f"{self.jobs}.beat.register.v1.{app}"

    def beat_runs(self, app: str) -> str:
        return f"{self.jobs}.beat.runs.v1.{app}"

    def beat_control(self, app: str) -> str:
        return f"{self.jobs}.beat.control.v1.{app}"

    def reply_queue(self, token: str) -> str:
        """Where one process hears the answers to its jobs; `token` is letters and digits that no other one has."""
        return f"{self.jobs}.replies.v1.{token}"

    def level(self, number: int) -> str:
        return f"{self.jobs}.delay.v1.{number:02}"

    # Routes: where a publication goes.

    def by_kind(self, kind: str, exchange: str = "") -> Route:
        return _usual_route(exchange or self.jobs, kind)

    def to_queue(self, name: str) -> Route:
        return Route(exchange=self.queues, key=self.work_queue(name))

    def to_dead(self, name: str) -> Route:
        return Route(exchange=self.queues, key=self.dead_queue(name))

    def to_beat_lease(self, app: str) -> Route:
        return Route(exchange=self.beats, key=self.beat_lease(app))

    def to_beat_register(self, app: str) -> Route:
        return Route(exchange=self.beats, key=self.beat_register(app))

    def to_beat_runs(self, app: str) -> Route:
        """Through the exchange that each worker may write to anyway; it is there also where no beat ever was."""
        return Route(exchange=self.queues, key=self.beat_runs(app))

    def to_beat_control(self, app: str) -> Route:
        return Route(exchange=self.beats, key=self.beat_control(app))

    def to_parked(self) -> Route:
        return Route(exchange=self.queues, key=self.parked)

    def to_reply(self, name: str) -> Route | None:
        """Where an answer goes; None for what is no reply queue of this namespace, whoever asks for it."""
        prefix, token = name[: len(self.reply_queue(""))], name[len(self.reply_queue("")) :]
        is_ours = prefix == self.reply_queue("") and _TOKEN.fullmatch(token)
        return Route(exchange=self.queues, key=name) if is_ours else None

    def delayed(self, seconds: float, *, kind: str = "", exchange: str = "", queue: str = "") -> Route:
        """Through the delay levels: never earlier than asked, at most one unit later by rounding."""
        units = max(1, math.ceil(round(seconds / UNIT, 6)))
        if units >= 2**LEVELS:
            raise ValueError(f"A delay may be {LONGEST_DELAY:,.0f} s (13.6 years) at most, not {seconds:,.0f} s.")
        goal = _queue_key(queue) if queue else _kind_key(kind, exchange)
        return Route(exchange=self.level(units.bit_length() - 1), key=f"{units:032b}".translate(_DOTTED) + goal)

    # Plans: what should be there.

    def infrastructure(self) -> Plan:
        """What all apps of a namespace share: exchanges, the 32 levels, unroutable, parked."""
        levels = range(LEVELS)
        return Plan(
            exchanges=(
                ExchangeSpec(name=self.jobs),
                ExchangeSpec(name=self.queues, type="direct"),
                ExchangeSpec(name=self.unroutable, type="fanout"),
                ExchangeSpec(name=self.due, arguments={"alternate-exchange": self.unroutable}),
                *(ExchangeSpec(name=self.level(number)) for number in levels),
            ),
            queues=(
                QueueSpec(name=self.unroutable, arguments=_QUORUM),
                QueueSpec(name=self.parked, arguments=_QUORUM),
                *(self._level_queue(number) for number in levels),
            ),
            bindings=(
                Binding(source=self.unroutable, destination=self.unroutable, key=""),
                Binding(source=self.queues, destination=self.parked, key=self.parked),
                *(binding for number in levels for binding in self._level_bindings(number)),
            ),
        )

    def app(self, queues: Iterable[Queue], wanted: Sequence[Subscription]) -> Plan:
        """An app's own queues with their dead letters, and just the kinds each should get."""
        own = list(queues)
        sharded = [queue for queue in own if queue.shards is not None]
        split = {queue.name for queue in sharded}
        moved = [binding for queue in sharded for binding in self._moved(queue)]
        stale = [
            Subscription(kind=each.kind, queue=queue.name, exchange=each.exchange)
            for each in wanted
            for queue in own
            if Subscription(kind=each.kind, queue=queue.name, exchange=each.exchange) not in wanted
        ]
        foreign = sorted({each.exchange for each in wanted if each.exchange})
        return Plan(
            exchanges=[
                *(ExchangeSpec(name=name, adopted=True) for name in foreign),
                *(exchange for queue in sharded for exchange in self._shard_exchanges(queue)),
            ],
            queues=[spec for queue in own for spec in (*self._work_queues(queue), self._dead_queue(queue))],
            bindings=[
                *(binding for queue in own for binding in self._queue_bindings(queue)),
                *self.subscribed(wanted, split),
            ],
            # Once more after the others: a worker of another release may have bound meanwhile.
            stale=[*self.subscribed(stale, split), *moved],
            moved=moved,
        )

    def subscribed(self, wanted: Iterable[Subscription], split: Container[str]) -> list[Binding]:
        """What leads kinds to their queues, of which those in `split` are sharded."""
        return [binding for each in wanted for binding in self._subscription(each, split)]

    def shard_exchanges(self, name: str) -> list[str]:
        """All that a queue may have had for its shards, whatever their number; the first leads to the others."""
        return [self.sharded(name), *(self.slots(name, count) for count in SHARD_COUNTS), self.unslotted(name)]

    def beat(self, app: str) -> Plan:
        """What the beats of an app share: who leads, what they remember, and what they are told, of runs too."""
        own = {
            self.beat_lease(app): _LEASE,
            self.beat_register(app): _REGISTER,
            self.beat_control(app): _CONTROL,
        }
        runs = self.beat_runs(app)
        return Plan(
            exchanges=[ExchangeSpec(name=self.beats, type="direct")],
            queues=[QueueSpec(name=name, arguments=arguments) for name, arguments in {**own, runs: _RUNS}.items()],
            bindings=[
                *(Binding(source=self.beats, destination=name, key=name) for name in own),
                Binding(source=self.queues, destination=runs, key=runs),
            ],
        )

    def replies(self, name: str, expires: float) -> Plan:
        """The reply queue of one process, gone when nobody has consumed it for `expires` seconds.

        Not exclusive: such a one dies with its connection. Classic: it is one process's, whose answers are worth as
        much as a wait for them, and a quorum queue would cost each process a Raft group and each answer an fsync.
        Durable, since RabbitMQ 4.3 takes no other.
        """
        arguments: Arguments = {"x-queue-type": "classic", "x-expires": max(1, round(expires * 1000))}
        return Plan(
            queues=[QueueSpec(name=name, arguments=arguments)],
            bindings=[Binding(source=self.queues, destination=name, key=name)],
        )

    def _level_queue(self, number: int) -> QueueSpec:
        return QueueSpec(
            name=self.level(number),
            arguments={
                **_QUORUM,
                # The TTL belongs to the queue: RabbitMQ expires only from the head, so mixed
                # delays in one queue would wait for the slowest.
                "x-message-ttl": 2**number * UNIT_MS,
                "x-dead-letter-exchange": self.level(number - 1) if number else self.due,
                **_AT_LEAST_ONCE,
            },
        )

    def _level_bindings(self, number: int) -> tuple[Binding, Binding]:
        here, below = self.level(number), self.level(number - 1) if number else self.due
        before = "*." * (LEVELS - 1 - number)
        return (
            Binding(source=here, destination=here, key=f"{before}1.#"),
            Binding(source=here, destination=below, key=f"{before}0.#", to_exchange=True),
        )

    def _work_queues(self, queue: Queue) -> list[QueueSpec]:
        arguments = self._work_arguments(queue)
        parts = [QueueSpec(name=name, arguments=arguments) for name in self.parts(queue)]
        return parts if queue.shards is None else [*parts, QueueSpec(name=self.crew(queue.name), arguments=_QUORUM)]

    def _work_arguments(self, queue: Queue) -> Arguments:
        # `reject` is our last resort for a message the broker will not take back from us; then
        # its own dead-lettering moves it. There is no length limit, so nothing is ever refused:
        # a full target would block the delay levels for everybody.
        own: dict[str, str | int | bool] = {
            "x-dead-letter-exchange": self.queues,
            "x-dead-letter-routing-key": self.dead_queue(queue.name),
        }
        if queue.consumer_timeout is not None:
            own["x-consumer-timeout"] = round(queue.consumer_timeout * 1000)
        if queue.shards is not None:
            own[SINGLE] = True
        if queue.type == "quorum":
            return {**_QUORUM, **own, **_AT_LEAST_ONCE}
        priority: Arguments = {} if queue.max_priority is None else {"x-max-priority": queue.max_priority}
        return {"x-queue-type": "classic", **own, **priority}

    def _dead_queue(self, queue: Queue) -> QueueSpec:
        kept: Arguments = {} if queue.dead_retention is None else {"x-message-ttl": round(queue.dead_retention * 1000)}
        return QueueSpec(name=self.dead_queue(queue.name), arguments={**_QUORUM, **kept})

    def _queue_bindings(self, queue: Queue) -> Iterable[Binding]:
        name, is_split = queue.name, queue.shards is not None
        work, dead = self.work_queue(name), self.dead_queue(name)
        goal = self.sharded(name) if is_split else work
        yield Binding(source=self.queues, destination=goal, key=work, to_exchange=is_split)
        yield Binding(source=self.queues, destination=dead, key=dead)
        yield Binding(source=self.due, destination=goal, key=_STARS + _queue_key(name), to_exchange=is_split)
        if queue.shards is not None:
            yield from self._shard_bindings(name, queue.shards)

    def _shard_exchanges(self, queue: Queue) -> Iterable[ExchangeSpec]:
        name, rest = queue.name, self.unslotted(queue.name)
        # Should somebody delete all shards, jobs must be routed all the same: see `due` above.
        yield ExchangeSpec(name=rest, type="fanout", arguments={"alternate-exchange": self.unroutable})
        yield ExchangeSpec(name=self.sharded(name), type="fanout", arguments={"alternate-exchange": rest})
        slots = self.slots(name, queue.shards or 1)
        yield ExchangeSpec(name=slots, type="direct", arguments={"alternate-exchange": rest})

    def _shard_bindings(self, name: str, count: int) -> Iterable[Binding]:
        slots = self.slots(name, count)
        yield Binding(source=self.unslotted(name), destination=self.shard(name, 0), key="")
        for slot in range(SLOTS):
            yield Binding(source=slots, destination=self.shard(name, slot % count), key=slot_word(slot))
        yield Binding(source=self.sharded(name), destination=slots, key="", to_exchange=True)

    def _moved(self, queue: Queue) -> Iterable[Binding]:
        """What leads to the slots of another number of shards."""
        for count in SHARD_COUNTS:
            if count != queue.shards:
                there = self.slots(queue.name, count)
                yield Binding(source=self.sharded(queue.name), destination=there, key="", to_exchange=True)

    def _subscription(self, wanted: Subscription, split: Container[str]) -> Iterable[Binding]:
        """`split` are the queues that are sharded."""
        is_split = wanted.queue in split
        goal = self.sharded(wanted.queue) if is_split else self.work_queue(wanted.queue)
        source, key = wanted.exchange or self.jobs, _STARS + _kind_key(wanted.kind, wanted.exchange)
        yield Binding(source=source, destination=goal, key=wanted.kind, to_exchange=is_split)
        yield Binding(source=self.due, destination=goal, key=key, to_exchange=is_split)


def few_hops(seconds: float) -> float:
    """A delay rounded up to five significant bits: at most five levels, at most 6 % longer.

    For retries, whose delays are nobody's appointment; each level costs the broker a hop.
    """
    if seconds >= LONGEST_DELAY:
        return LONGEST_DELAY
    units = math.ceil(round(seconds / UNIT, 6))
    spare = 2.0 ** max(0, units.bit_length() - 5)
    rounded = math.ceil(units / spare) * spare * UNIT
    return rounded if rounded < LONGEST_DELAY else LONGEST_DELAY


_QUORUM: Arguments = {
    "x-queue-type": "quorum",
    "x-queue-leader-locator": "balanced",
    "x-delivery-limit": DELIVERY_LIMIT,
}
#: What makes a queue a shard.
SINGLE = "x-single-active-consumer"
_LEASE: Arguments = {**_QUORUM, SINGLE: True, "x-max-length": LEASE_LENGTH}
#: A stream, because a queue of length one loses its value when somebody peeks while it is replaced.
_REGISTER: Arguments = {
    "x-queue-type": "stream",
    "x-max-length-bytes": REGISTER_BYTES,
    "x-stream-max-segment-size-bytes": REGISTER_SEGMENT,
}
_RUNS: Arguments = {
    "x-queue-type": "stream",
    "x-max-length-bytes": RUNS_BYTES,
    "x-stream-max-segment-size-bytes": RUNS_SEGMENT,
}
#: No dead-lettering: a command that cannot be read is told, and gone.
_CONTROL: Arguments = {
    **_QUORUM,
    "x-max-length": CONTROL_LENGTH,
    "x-max-length-bytes": CONTROL_BYTES,
    "x-overflow": "reject-publish",
}
#: All three are needed, or dead-lettering silently becomes at-most-once.
_AT_LEAST_ONCE: Arguments = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
#: Arguments that may differ from ours on a queue that exists: a warning, not an error.
SAFE_TO_LEAVE = frozenset({"x-delivery-limit", "x-queue-leader-locator", "x-consumer-timeout"})

_STARS = "*." * LEVELS
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DOTTED = str.maketrans({"0": "0.", "1": "1."})


@lru_cache(1024)
def _usual_route(exchange: str, key: str) -> Route:
    return Route(exchange=exchange, key=key)


def _queue_key(name: str) -> str:
    return f"queue.{name}"


def _kind_key(kind: str, exchange: str) -> str:
    # An exchange's dots become slashes: one word, so that no name is another one's beginning.
    return f"exchange.{exchange.replace('.', '/')}.{kind}" if exchange else f"kind.{kind}"
