"""RabbitMQ permissions that a role needs: no more, and with one less it fails.

Each is a set of names; `pattern` makes the regex that matches just these. What the broker asks
for was found by trying, on 3.10, 4.0 and 4.3:

- a declare takes configure on the name. With a dead-letter exchange it also takes read on the
  queue and write on that exchange; with an alternate exchange, read on the exchange and write
  on the alternate one. What exists already takes configure only;
- a binding, made or removed, takes write on where it leads and read on where it comes from;
- a publish takes write on the exchange, consuming and getting take read on the queue;
- looking whether something is there takes nothing up to 4.2.5, configure on 4.2.6 and 4.3.0,
  and since then any permission. Where nothing else is needed, we give write: it can do least.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from amqpjobs.topology import LEVELS, Binding, Plan, Queue, Topology


class Role(StrEnum):
    #: Enqueues only.
    PRODUCER = "producer"
    #: Works, and enqueues from its handlers.
    WORKER = "worker"
    #: Publishes the ticks of schedules.
    BEAT = "beat"
    #: Sees schedules and changes them at runtime.
    SCHEDULER = "scheduler"
    #: Looks after dead letters, unroutable and parked jobs; a person, most often.
    OPERATOR = "operator"
    #: Looks at dead letters, unroutable and parked jobs, and changes nothing.
    OBSERVER = "observer"
    #: Declares what services need, before they start.
    DEPLOYER = "deployer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """Names that one may configure, write to and read from."""

    configure: frozenset[str] = frozenset()
    write: frozenset[str] = frozenset()
    read: frozenset[str] = frozenset()

    def __or__(self, other: "Permissions") -> "Permissions":
        return Permissions(
            configure=self.configure | other.configure,
            write=self.write | other.write,
            read=self.read | other.read,
        )


NOTHING = Permissions()
#: As the last word of a name: whatever word a process chooses.
ANY = "*"
_WORD = "[A-Za-z0-9_-]+"


def producer_permissions(topology: Topology, exchanges: Iterable[str], *, declares: bool) -> Permissions:
    """To enqueue to these exchanges ("" is the namespace's own), to any queue, now or later, and to park."""
    shared = infrastructure(topology)
    return _enqueueing(topology, exchanges) | (declaring(shared) if declares else _seeing(topology, Plan()))


def worker_permissions(
    topology: Topology, queues: Sequence[Queue], plan: Plan, *, declares: bool, beats: Iterable[str] = ()
) -> Permissions:
    """To work on the queues of an app with this plan: retries, dead letters and parked jobs with it.

    Of a tick that a beat of one of the apps `beats` has published twice, it may find out that it was started before.
    """
    sources = {each.name for each in plan.exchanges}
    queued = [name for queue in queues for name in (*topology.parts(queue), *topology.former_parts(queue))]
    queued += [topology.crew(queue.name) for queue in queues if queue.shards is not None]
    working = Permissions(read=frozenset([topology.parked, *queued, *(topology.beat_runs(app) for app in beats)]))
    there = deployer_permissions(topology, plan) if declares else _seeing(topology, plan)
    return _enqueueing(topology, sources) | working | there


def beat_permissions(topology: Topology, app: str, exchanges: Iterable[str], *, declares: bool) -> Permissions:
    """To lead the beats of an app, and to enqueue to these exchanges ("" is the namespace's own)."""
    plan = topology.beat(app)
    leading = Permissions(write=frozenset([topology.beats]), read=frozenset(each.name for each in plan.queues))
    # It reads its queues and writes to their exchange anyway, and so may see them.
    there = deployer_permissions(topology, plan) if declares else _seeing(topology, Plan())
    return _enqueueing(topology, exchanges) | leading | there


def scheduler_permissions(topology: Topology, app: str, *, declares: bool) -> Permissions:
    """To see the schedules of an app, and to command its beats; not to take a command away, nor to lead.

    Who reads what beats remember writes a fence there, and could write more.
    """
    plan = topology.beat(app)
    commanding = Permissions(write=frozenset([topology.beats]), read=frozenset([topology.beat_register(app)]))
    return commanding | _seeing(topology, plan) | (deployer_permissions(topology, plan) if declares else NOTHING)


def operator_permissions(topology: Topology, queues: Iterable[Queue], exchanges: Iterable[str]) -> Permissions:
    """To take dead letters of these queues, unroutable and parked jobs, and to send each on or back.

    A parked or unroutable job of a kind that has an exchange of its own goes there again.
    """
    looking = observer_permissions(topology, queues)
    return _enqueueing(topology, exchanges) | looking | Permissions(write=frozenset([topology.unroutable]))


def observer_permissions(topology: Topology, queues: Iterable[Queue]) -> Permissions:
    """To list, show and export dead letters of these queues, unroutable and parked jobs.

    Who may read a queue may also delete from it: the broker does not tell looking from taking.
    """
    dead = [topology.dead_queue(queue.name) for queue in queues]
    return Permissions(read=frozenset([topology.unroutable, topology.parked, *dead]))


def deployer_permissions(topology: Topology, plan: Plan) -> Permissions:
    """To compare and declare what an app with this plan needs."""
    return declaring(infrastructure(topology)) | declaring(plan)


def infrastructure(topology: Topology) -> Plan:
    """What all apps of a namespace share, its marker last."""
    shared = topology.infrastructure()
    return Plan(
        exchanges=[*shared.exchanges, topology.marker],
        queues=shared.queues,
        bindings=shared.bindings,
        stale=shared.stale,
    )


def declaring(plan: Plan) -> Permissions:
    """To declare and bind a plan where nothing of it is there yet."""
    needed = Permissions(
        configure=frozenset([each.name for each in plan.exchanges] + [each.name for each in plan.queues])
    )
    for exchange in plan.exchanges:
        needed |= _leading(exchange.name, exchange.arguments.get("alternate-exchange"))
    for queue in plan.queues:
        needed |= _leading(queue.name, queue.arguments.get("x-dead-letter-exchange"))
    for binding in (*plan.bindings, *plan.stale, *plan.moved):
        needed |= _binding(binding)
    return needed


def calling_permissions(topology: Topology) -> Permissions:
    """To await results, beside whatever else: each process hears answers in a queue of its own, with a name of its own.

    It declares that queue also where all else is declared by others.
    """
    own = topology.reply_queue(ANY)
    return declaring(topology.replies(own, expires=1)) | Permissions(read=frozenset([own]))


def pattern(names: Iterable[str]) -> str:
    """A regex that matches just these names: `^(a|b\\.(c|d))$`, and `^$` for none. `ANY` stands for a word."""
    ends = dict[str, list[str]]()
    for name in sorted(names):
        before, dot, last = name.rpartition(".")
        ends.setdefault(before + dot, []).append(_WORD if last == ANY else re.escape(last))
    parts = [
        f"{re.escape(before)}({'|'.join(last)})" if before and len(last) > 1 else re.escape(before) + "|".join(last)
        for before, last in ends.items()
    ]
    return f"^({'|'.join(parts)})$" if parts else "^$"


def _enqueueing(topology: Topology, exchanges: Iterable[str]) -> Permissions:
    levels = (topology.level(number) for number in range(LEVELS))
    return Permissions(write=frozenset([topology.jobs, topology.queues, *levels, *filter(None, exchanges)]))


def _seeing(topology: Topology, plan: Plan) -> Permissions:
    """To look whether the marker and all of a plan are there."""
    names = [topology.marker.name, *(each.name for each in plan.exchanges), *(each.name for each in plan.queues)]
    read = {each.name for each in plan.queues if "x-dead-letter-exchange" in each.arguments}  # work queues
    return Permissions(write=frozenset(names) - read)


def _leading(name: str, to: object) -> Permissions:
    return Permissions(read=frozenset([name]), write=frozenset([str(to)])) if to else NOTHING


def _binding(binding: Binding) -> Permissions:
    return Permissions(write=frozenset([binding.destination]), read=frozenset([binding.source]))
