"""Random operations for two brokers, as a hypothesis state machine.

What it knows of the brokers is only what it needs to ask sensible things: which names exist, who consumes, what is
held. It never says what should happen; `Twins` compares what does.

Its queues are of two roles, so that no two queues race for a third one: what is published through exchanges goes to
work queues, and each queue is sent dead letters by one other at most.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar

from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from pamqp import commands
from pamqp.base import Frame
from pamqp.commands import Basic

from tests.support.line import Said, publication
from tests.support.twins import Both, Slot, Twins

WORK, DEAD = ("w0", "w1", "w2"), ("d0", "d1", "d2")
QUEUES = (*WORK, *DEAD)
EXCHANGES = ("e0", "e1", "e2", "e3")
SLOTS: tuple[Slot, ...] = (("a", 1), ("a", 2), ("b", 1))
#: Its connection has no other channel. What may end a connection is said here: of two channels that end together,
#: RabbitMQ may deliver what the one gives back to the other, and count that.
ALONE = SLOTS[2]
#: Which queue's dead letters go where.
LAYOUTS: tuple[Mapping[str, str], ...] = (
    {"w0": "d0", "w1": "d1", "w2": "d2"},
    {"w0": "d0", "d0": "w0", "w1": "d1", "d1": "d2"},
    {"w0": "d0", "d0": "d1", "d1": "d2", "w1": "w1"},
    {"w0": "d0", "d0": "d1", "d1": "w0", "w2": "d2"},
)
#: Milliseconds: a message with this TTL goes away within the step, one with the other never.
SOON, NEVER = 30, 3_600_000
#: Milliseconds after which a queue that nobody uses is deleted: enough for a few operations on a busy machine.
UNUSED = 2_000
#: Seconds until what expires soon has done so, also on a busy machine.
_SURELY = 0.1

SETTLED = ("ack", "ack", "nack", "reject", "discard", "refuse")
HOW = (*SETTLED * 4, "ack all", "nack all", "recover", "cancel", "unknown")

queues, exchanges, slots = st.sampled_from(QUEUES), st.sampled_from(EXCHANGES), st.sampled_from(SLOTS)
keys = st.sampled_from(("w0", "w1", "a", "a.b", "a.b.c", ""))
patterns = st.sampled_from(("w0", "w1", "a", "a.b", "a.*", "#", "*.b.#", ""))
headers = st.sampled_from(({}, {"x": 1}, {"x": 1, "y": "z"}, {"x": 2, "n": True}, {"n": True}))
matches = st.sampled_from(
    ({}, {"x": 1}, {"x-match": "any", "x": 1, "n": True}, {"x-match": "all", "x": 1, "y": "z"}, {"x-match": "any"})
)
#: What is settled, and how: one of those that are held, and with `multiple` if the flag says so.
wanted = st.lists(st.tuples(st.integers(0, 9), st.sampled_from(HOW), st.booleans()), max_size=2)
rarely = st.integers(0, 7).map(lambda number: number == 7)
sometimes = st.booleans()


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Of a queue, its dead-letter exchange apart."""
    given: dict[str, Any] = {}
    kind = draw(st.sampled_from(("classic", "classic", "quorum", "quorum", "none")))
    if kind != "none":
        given["x-queue-type"] = kind
    if (longest := draw(st.sampled_from((None, None, None, None, 0, 1, 2, 3, 3)))) is not None:
        given["x-max-length"] = longest
    if draw(rarely):
        given["x-max-length-bytes"] = draw(st.sampled_from((0, 3, 8)))
    overflow = draw(st.sampled_from((None, "drop-head", "reject-publish", "reject-publish-dlx")))
    if overflow is not None:
        given["x-overflow"] = overflow
    ttl = draw(st.sampled_from((None, None, None, None, None, None, 0, SOON, NEVER, NEVER)))
    if ttl is not None:
        given["x-message-ttl"] = ttl
    if draw(rarely):
        given["x-single-active-consumer"] = True
    if kind == "quorum" and (limit := draw(st.sampled_from((None, 0, 1, 2, -1, 5)))) is not None:
        given["x-delivery-limit"] = limit
    if kind == "quorum" and draw(sometimes):
        given["x-dead-letter-strategy"] = draw(st.sampled_from(("at-least-once", "at-most-once")))
    if kind != "quorum" and draw(st.integers(0, 3)) == 3:
        given["x-max-priority"] = draw(st.sampled_from((1, 4)))
    return given


properties = st.fixed_dictionaries(
    {"delivery_mode": st.sampled_from((1, 2))},
    optional={
        "priority": st.sampled_from((0, 1, 3, 5, 9)),
        "expiration": st.sampled_from((*[str(NEVER)] * 8, "0", str(SOON))),
        "message_id": st.just("m"),
        "headers": headers,
    },
)


Wish = tuple[int, str, bool]


@dataclass(slots=True)
class Held:
    """A delivery that is not settled: its body, and its tag on either broker."""

    body: bytes
    tags: tuple[int, int]


@dataclass(slots=True)
class Desk:
    """What the machine knows of a channel."""

    #: plain, confirm or tx.
    mode: str
    held: list[Held] = field(default_factory=list[Held])
    #: What was settled in the transaction that is going on.
    settled: list[Held] = field(default_factory=list[Held])
    #: Queues by consumer tag, and which of them ack nothing.
    consumers: dict[str, str] = field(default_factory=dict[str, str])
    silent: set[str] = field(default_factory=set[str])
    is_limited: bool = False
    published: int = 0

    def has_rivals(self) -> bool:
        """Whether two of its consumers share a queue: what comes back at once goes to either, as it happens."""
        return len(set(self.consumers.values())) < len(self.consumers)


class Machine(RuleBasedStateMachine):
    """Subclass it with `twins`; `made` counts what was done in all runs of it."""

    twins: ClassVar[Twins]
    prefix: ClassVar[str]
    made: ClassVar[Counter[str]] = Counter()
    examples: ClassVar["count[int]"] = count()

    def __init__(self) -> None:
        super().__init__()
        self.run = f"{self.prefix}-{next(self.examples)}"
        self.desks: dict[Slot, Desk] = {}
        self.layout: Mapping[str, str] = {}
        self.numbers = count()
        self.soft = set[str]()
        self.owned: dict[str, str] = {}
        self.twins.not_before = 0.0
        for line in ("a", "b"):
            self.twins.dial(line)

    def teardown(self) -> None:
        self.twins.hang_up()
        self.twins.forget(
            [self.name(queue) for queue in (*QUEUES, "x")],
            [self.name(exchange) for exchange in (*EXCHANGES, "dx", *(f"fx-{queue}" for queue in QUEUES))],
        )

    # -- words ---------------------------------------------------------------------------------------------

    def name(self, short: str) -> str:
        """Of a queue or an exchange; no two examples share one."""
        return f"{self.run}.{short}"

    def desk(self, slot: Slot, mode: str = "confirm") -> Desk:
        """The channel's, which is opened if it is not."""
        if slot not in self.desks:
            self.twins.open(slot)
            select: dict[str, Frame] = {"confirm": commands.Confirm.Select(), "tx": commands.Tx.Select()}
            if mode in select:
                self.twins.ask(slot, select[mode])
            self.desks[slot] = Desk(mode)
        return self.desks[slot]

    def ask(self, slot: Slot, asked: Frame) -> Said:
        """And see what came of it."""
        self.desk(slot)
        return self.both(slot, asked)[0]

    def both(self, slot: Slot, asked: Frame) -> Both:
        said = self.twins.ask(slot, asked)
        self.done(asked.name)
        return said

    def done(self, what: str) -> None:
        self.made[what] += 1
        self.settle()

    def settle(self) -> None:
        news = self.twins.settle()
        for slot in list(self.desks):
            line = slot[0]
            desk = self.desks[slot]
            for tag, pairs in self.twins.deliveries(slot).items():
                if tag in desk.silent:
                    continue
                desk.held += [Held(ours.body, tags_of(ours, theirs)) for ours, theirs in pairs]
            for tag in news.channels[slot].cancelled:
                desk.consumers.pop(tag, None)
            if news.channels[slot].end is not None or line in news.ends:
                self.made[f"closed by {end_of(news.channels[slot].end or news.ends[line])}"] += 1
                self.drop(slot)
        for line in news.ends:
            self.redial(line)
        self.twins.fleeting &= self.twins.queues
        gone = {name for name, counted in news.counts.items() if isinstance(counted, str)}
        self.twins.queues -= gone

    def drop(self, slot: Slot) -> None:
        self.desks.pop(slot, None)
        self.twins.slots.discard(slot)

    def redial(self, line: str) -> None:
        for slot in [slot for slot in self.desks if slot[0] == line]:
            self.drop(slot)
        for queue in [queue for queue, owner in self.owned.items() if owner == line]:
            del self.owned[queue]
        self.twins.dial(line)

    def publish(
        self, slot: Slot, exchange: str, key: str, given: Mapping[str, Any], *, mandatory: bool, bodies: int = 1
    ) -> None:
        desk = self.desk(slot)
        if self.soft and desk.mode == "tx":
            return  # how many of those in one commit are let in is a race
        for _ in range(bodies):
            body = f"m{next(self.numbers)}".encode()
            self.twins.tell(
                slot, publication(slot[1], exchange, key, Basic.Properties(**given), body, mandatory=mandatory)
            )
            if desk.mode == "confirm":
                desk.published += 1
                self.twins.expect_confirm(slot, desk.published)
            if self.soft:
                self.settle()
        if given.get("expiration") in ("0", str(SOON)):
            self.twins.wait(_SURELY)

    # -- the beginning ---------------------------------------------------------------------------------------

    @initialize(
        layout=st.sampled_from(LAYOUTS),
        given=st.lists(arguments(), min_size=6, max_size=6),
        dead=st.lists(st.sampled_from(("default", "default", "direct", "fanout", "none")), min_size=6, max_size=6),
        types=st.permutations(("direct", "fanout", "topic", "headers")),
        modes=st.lists(st.sampled_from(("confirm", "confirm", "plain", "tx")), min_size=2, max_size=2),
        consumed=st.lists(st.tuples(slots, queues, st.integers(0, 3)), min_size=2, max_size=4),
    )
    def begin(
        self,
        layout: Mapping[str, str],
        given: list[dict[str, Any]],
        dead: list[str],
        types: list[str],
        modes: list[str],
        consumed: list[tuple[Slot, str, int]],
    ) -> None:
        self.layout = layout
        for slot, mode in zip(SLOTS, ["confirm", *modes], strict=True):
            self.desk(slot, mode)
        slot = SLOTS[0]
        for queue, one, way in zip(QUEUES, given, dead, strict=True):
            self.declare(slot, queue, one, way)
        for exchange, kind in zip(EXCHANGES, types, strict=True):
            self.ask(slot, commands.Exchange.Declare(exchange=self.name(exchange), exchange_type=kind, durable=True))
        for queue, exchange in zip(WORK, EXCHANGES, strict=False):
            self.ask(slot, commands.Queue.Bind(queue=self.name(queue), exchange=self.name(exchange), routing_key="a"))
        for queue in QUEUES:
            self.publish(slot, "", self.name(queue), {"delivery_mode": 2}, mandatory=False, bodies=2)
            self.settle()
        for slot, queue, most in consumed:
            self.ask(slot, Basic.Qos(prefetch_count=most))
            self.consume_from(slot, queue, f"c{next(self.numbers)}")

    def declare(
        self, slot: Slot, queue: str, given: dict[str, Any], way: str, *, line: str | None = None, **flags: bool
    ) -> None:
        table = dict(given)
        if is_soft(table) and queue in self.layout.values():  # several dead letters may come at once
            table = {name: value for name, value in table.items() if not name.startswith("x-max-length")}
        if queue in self.layout and way != "none":
            table |= self.grave(slot, queue, way)
        asked = commands.Queue.Declare(
            queue=self.name(queue), arguments=table, **{"durable": True, "exclusive": line is not None} | flags
        )
        said = self.ask(slot, asked)
        if said.name != "Queue.DeclareOk" or line is not None or self.name(queue) in self.twins.queues:
            return
        self.twins.queues.add(self.name(queue))
        (self.soft.add if is_soft(table) else self.soft.discard)(queue)
        if given.get("x-message-ttl") in (0, SOON):
            self.twins.fleeting.add(self.name(queue))

    def grave(self, slot: Slot, queue: str, way: str) -> dict[str, Any]:
        """Arguments that send dead letters to the one queue they may go to."""
        target = self.name(self.layout[queue])
        match way:
            case "default":
                return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": target}
            case "direct":
                exchange = self.name("dx")
                self.ask(slot, commands.Exchange.Declare(exchange=exchange, exchange_type="direct", durable=True))
                bind = commands.Queue.Bind(queue=target, exchange=exchange, routing_key=queue)
                key: dict[str, Any] = {"x-dead-letter-routing-key": queue}
            case _:
                exchange = self.name(f"fx-{queue}")
                self.ask(slot, commands.Exchange.Declare(exchange=exchange, exchange_type="fanout", durable=True))
                bind, key = commands.Queue.Bind(queue=target, exchange=exchange), {}
        self.ask(slot, bind)
        return {"x-dead-letter-exchange": exchange, **key}

    # -- messages in ---------------------------------------------------------------------------------------

    @rule(
        slot=slots,
        queue=queues,
        given=properties,
        bodies=st.integers(1, 3),
        mandatory=rarely,
        copies=st.one_of(st.none(), st.none(), st.lists(st.sampled_from(WORK), max_size=2)),
        header=st.sampled_from(("CC", "BCC")),
        wanted=wanted,
    )
    def publish_to_queue(
        self,
        slot: Slot,
        queue: str,
        given: Mapping[str, Any],
        bodies: int,
        mandatory: bool,
        copies: list[str] | None,
        header: str,
        wanted: list[Wish],
    ) -> None:
        if copies is not None and queue in WORK:
            given = {**given, "headers": {header: [self.name(copy) for copy in copies]}}
        self.publish(slot, "", self.name(queue), given, mandatory=mandatory, bodies=bodies)
        self.done("Basic.Publish")
        self.settle_some(slot, wanted)

    @rule(slot=slots, exchange=exchanges, key=keys, given=properties, mandatory=sometimes)
    def publish_to_exchange(
        self, slot: Slot, exchange: str, key: str, given: Mapping[str, Any], mandatory: bool
    ) -> None:
        self.publish(slot, self.name(exchange), key, given, mandatory=mandatory)
        self.done("Basic.Publish")

    @rule(
        slot=slots,
        queue=queues,
        expirations=st.lists(st.sampled_from((None, NEVER, SOON, SOON)), min_size=2, max_size=4),
    )
    def publish_to_expire(self, slot: Slot, queue: str, expirations: list[int | None]) -> None:
        for one in expirations:
            given: dict[str, Any] = {"delivery_mode": 2} | ({} if one is None else {"expiration": str(one)})
            self.publish(slot, "", self.name(queue), given, mandatory=False)
        self.done("Basic.Publish")

    # -- messages out --------------------------------------------------------------------------------------

    @rule(
        slot=slots,
        queue=queues,
        again=rarely,
        silent=rarely,
        exclusive=rarely,
        priority=st.sampled_from((None, None, None, 1, -1)),
        most=st.sampled_from((None, None, 0, 1, 2, 3)),
        is_global=rarely,
        wanted=wanted,
    )
    def consume(
        self,
        slot: Slot,
        queue: str,
        again: bool,
        silent: bool,
        exclusive: bool,
        priority: int | None,
        most: int | None,
        is_global: bool,
        wanted: list[Wish],
    ) -> None:
        if is_global or again:
            slot = ALONE
        if most is not None:
            self.limit(slot, most, is_global)
        desk = self.desk(slot)
        assume(not desk.is_limited or not desk.consumers)
        given = {} if priority is None else {"x-priority": priority}
        # Never one that was used before: quorum queues take its new consumer for the old one.
        tag = next(iter(desk.consumers)) if again and desk.consumers else f"c{next(self.numbers)}"
        self.consume_from(slot, queue, tag, no_ack=silent, exclusive=exclusive, arguments=given)
        self.settle_some(slot, wanted)

    def consume_from(self, slot: Slot, queue: str, tag: str, *, no_ack: bool = False, **options: Any) -> None:
        desk = self.desk(slot)
        if tag not in desk.consumers:
            desk.consumers[tag] = queue
            if no_ack:
                desk.silent.add(tag)
        self.ask(slot, Basic.Consume(queue=self.name(queue), consumer_tag=tag, no_ack=no_ack, **options))

    def cancel(self, slot: Slot, which: int) -> None:
        """One of its consumers, or one that it has not."""
        desk = self.desk(slot)
        tags = [*desk.consumers, "none"]
        tag = tags[which % len(tags)]
        self.ask(slot, commands.Basic.Cancel(consumer_tag=tag))
        desk.consumers.pop(tag, None)

    def limit(self, slot: Slot, most: int, is_global: bool) -> None:
        desk = self.desk(slot)
        is_global = is_global and len(desk.consumers) < 2  # two queues would race for its room
        desk.is_limited = is_global
        self.ask(slot, commands.Basic.Qos(prefetch_count=most, global_=is_global))

    @rule(slot=slots, queue=queues, silent=rarely, times=st.integers(1, 3), wanted=wanted)
    def get(self, slot: Slot, queue: str, silent: bool, times: int, wanted: list[Wish]) -> None:
        for _ in range(times):
            desk = self.desk(slot)
            ours, theirs = self.both(slot, commands.Basic.Get(queue=self.name(queue), no_ack=silent))
            if ours.name != "Basic.GetOk":
                break
            if not silent:
                desk.held.append(Held(ours.body, tags_of(ours, theirs)))
        self.settle_some(slot, wanted)

    @rule(slot=slots, wanted=wanted, more=wanted)
    def settle_several(self, slot: Slot, wanted: list[Wish], more: list[Wish]) -> None:
        self.settle_some(slot, [*wanted, *more])

    def settle_some(self, slot: Slot, wanted: list[Wish]) -> None:
        for which, how, multiple in wanted:
            held = [(slot, one) for slot, desk in self.desks.items() for one in desk.held]
            if held and how in SETTLED:
                self.settle_one(*held[which % len(held)], how, multiple)
            elif how == "cancel":
                self.cancel(slot, which)
            elif how not in SETTLED:
                self.settle_all(slot, how)

    def settle_one(self, slot: Slot, one: Held, how: str, multiple: bool) -> None:
        desk = self.desks[slot]
        meant = [[other for other in desk.held if other.tags[side] <= one.tags[side]] for side in (0, 1)]
        if how == "nack" and desk.has_rivals():
            multiple = False
        # Two queues may have raced for the numbers.
        multiple = multiple and how in ("ack", "nack", "discard") and meant[0] == meant[1]
        settled = meant[0] if multiple else [one]
        desk.held = [other for other in desk.held if other not in settled]
        if desk.mode == "tx":
            desk.settled += settled
        self.twins.tell_each(slot, *(settlement(how, tag, multiple) for tag in one.tags))
        self.done(f"{how}{' multiple' if multiple else ''}")

    def settle_all(self, slot: Slot, how: str) -> None:
        desk = self.desk(slot)
        if how in ("recover", "nack all") and desk.has_rivals():
            return
        if how == "recover":
            desk.held.clear()
            self.ask(slot, Basic.Recover(requeue=True))
            return
        if how == "unknown" and desk.mode == "tx":
            return
        settled, desk.held = desk.held, []
        if desk.mode == "tx":
            desk.settled += settled
        self.twins.tell(slot, Basic.Ack(99_999) if how == "unknown" else settlement(how.split()[0], 0, True))
        self.done(how)

    @precondition(lambda self: any(desk.mode == "tx" for desk in self.desks.values()))
    @rule(commit=sometimes)
    def end_transaction(self, commit: bool) -> None:
        slot, desk = next((slot, desk) for slot, desk in self.desks.items() if desk.mode == "tx")
        commit = commit and not self.soft  # how many of several are let in is a race
        if not commit:
            desk.held = sorted([*desk.held, *desk.settled], key=lambda one: one.tags)
        desk.settled = []
        self.twins.wait(_SURELY)  # something in it may expire soon
        self.ask(slot, commands.Tx.Commit() if commit else commands.Tx.Rollback())

    def expire_queue(self, kind: str, *, held: bool, consumed: bool) -> None:
        """With messages in it, which are no dead letters. Not by chance: it takes a second."""
        slot, name = SLOTS[0], self.name("x")
        given: dict[str, Any] = {"x-queue-type": kind, "x-expires": UNUSED, "x-dead-letter-exchange": ""}
        self.ask(slot, commands.Queue.Declare(queue=name, durable=True, arguments=given))
        self.publish(slot, "", name, {"delivery_mode": 2}, mandatory=False, bodies=2)
        self.settle()
        if held:
            self.get(slot, "x", False, 1, [])
        if consumed:
            self.consume_from(slot, "x", "c")
            self.wait_until_unused(kind)
            self.ask(slot, Basic.Cancel(consumer_tag="c"))
        self.wait_until_unused(kind)
        self.ask(slot, commands.Queue.Declare(queue=name, passive=True))

    def wait_until_unused(self, kind: str) -> None:
        # RabbitMQ looks at a quorum queue every five seconds.
        self.twins.wait(1.5 * UNUSED / 1000 + (5 if kind == "quorum" else 0))
        self.settle()

    # -- the house -----------------------------------------------------------------------------------------

    @rule(
        slot=slots,
        queue=queues,
        given=arguments(),
        way=st.sampled_from(("default", "direct", "fanout", "none")),
        durable=st.integers(0, 5).map(bool),
        auto_delete=rarely,
        anew=st.integers(0, 4).map(bool),
    )
    def declare_queue(
        self, slot: Slot, queue: str, given: dict[str, Any], way: str, durable: bool, auto_delete: bool, anew: bool
    ) -> None:
        if anew:
            self.ask(slot, commands.Queue.Delete(queue=self.name(queue)))
        self.declare(slot, queue, given, way, durable=durable, auto_delete=auto_delete)

    @rule(
        slot=slots,
        queue=queues,
        what=st.sampled_from(("look", "look", "purge", "delete", "delete unused", "delete empty")),
    )
    def end_queue(self, slot: Slot, queue: str, what: str) -> None:
        name = self.name(queue)
        if what.startswith("delete "):
            slot = ALONE
        match what:
            case "look":
                asked: Frame = commands.Queue.Declare(queue=name, passive=True)
            case "purge":
                asked = commands.Queue.Purge(queue=name)
            case _:
                asked = commands.Queue.Delete(queue=name, if_unused="unused" in what, if_empty="empty" in what)
        self.ask(slot, asked)

    @rule(
        slot=slots,
        what=st.sampled_from(
            ("bind", "bind", "bind", "unbind", "anew", "anew", "declare", "look", "delete", "delete unused")
        ),
        exchange=exchanges,
        sink=st.sampled_from((*WORK, *EXCHANGES)),
        pattern=patterns,
        filters=matches,
        kind=st.sampled_from((*("direct", "fanout", "topic", "headers") * 4, "no-such-type")),
        alternate=st.sampled_from((None, None, *EXCHANGES)),
        auto_delete=rarely,
        internal=rarely,
    )
    def change_exchange(
        self,
        slot: Slot,
        what: str,
        exchange: str,
        sink: str,
        pattern: str,
        filters: dict[str, Any],
        kind: str,
        alternate: str | None,
        auto_delete: bool,
        internal: bool,
    ) -> None:
        name = self.name(exchange)
        if kind == "no-such-type":
            slot = ALONE
        given: dict[str, Any] = {} if alternate is None else {"alternate-exchange": self.name(alternate)}
        match what:
            case "bind" | "unbind":
                asked = binding(what, name, self.name(sink), pattern, filters)
            case "declare" | "anew" | "look":
                if what == "anew":
                    self.ask(slot, commands.Exchange.Delete(exchange=name))
                asked = commands.Exchange.Declare(
                    exchange=name,
                    exchange_type=kind,
                    durable=True,
                    auto_delete=auto_delete,
                    internal=internal,
                    passive=what == "look",
                    arguments=given,
                )
            case _:
                asked = commands.Exchange.Delete(exchange=name, if_unused="unused" in what)
        self.ask(slot, asked)

    # -- ends ----------------------------------------------------------------------------------------------

    @rule(
        slot=slots,
        how=st.sampled_from(("channel", "channel", "connection", "lost")),
        mode=st.sampled_from(("confirm", "confirm", "plain", "tx")),
    )
    def end(self, slot: Slot, how: str, mode: str) -> None:
        if how == "channel":
            self.desk(slot)
            self.twins.ask(slot, commands.Channel.Close(reply_code=200, reply_text="", class_id=0, method_id=0))
            self.drop(slot)
        else:
            slot = ALONE
            self.twins.close(slot[0], politely=how == "connection")
            self.redial(slot[0])
        self.done(f"an end ({how})")
        self.desk(slot, mode)


def binding(what: str, source: str, sink: str, key: str, given: dict[str, Any]) -> Frame:
    """Of a queue or an exchange, by its name."""
    is_queue, is_bind = sink.rpartition(".")[2] in WORK, what == "bind"
    if is_queue:
        command = commands.Queue.Bind if is_bind else commands.Queue.Unbind
        return command(queue=sink, exchange=source, routing_key=key, arguments=given)
    other = commands.Exchange.Bind if is_bind else commands.Exchange.Unbind
    return other(source=source, destination=sink, routing_key=key, arguments=given)


def is_soft(given: Mapping[str, Any]) -> bool:
    """Whether it depends on how fast messages come which of them are let in, or dropped for their number."""
    has_limit = "x-max-length" in given or "x-max-length-bytes" in given
    is_late = given.get("x-queue-type") == "quorum" and given.get("x-overflow") == "reject-publish"
    return has_limit and (is_late or given.get("x-message-ttl") in (0, SOON))


def settlement(how: str, tag: int, multiple: bool) -> Frame:
    match how:
        case "ack":
            return Basic.Ack(tag, multiple)
        case "nack":
            return Basic.Nack(tag, multiple, requeue=True)
        case "discard":
            return Basic.Nack(tag, multiple, requeue=False)
        case "reject":
            return Basic.Reject(tag, requeue=True)
        case _:
            return Basic.Reject(tag, requeue=False)


def tags_of(ours: Said, theirs: Said) -> tuple[int, int]:
    return ours.fields["delivery_tag"], theirs.fields["delivery_tag"]


def end_of(said: Said) -> str:
    return str(said.fields["reply_text"]).partition(" ")[0]
