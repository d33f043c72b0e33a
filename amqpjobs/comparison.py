"""A plan beside what a broker has: what is missing, and what differs.

AMQP answers for exchanges and queues, one property at a time. It has no way to list bindings,
and none to ask for one: only that one end is missing proves that a binding is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from amqpjobs.errors import TopologyMismatchError
from amqpjobs.topology import SAFE_TO_LEAVE, SINGLE, Binding

Value = str | int | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One property in which what exists differs from the plan; None is none."""

    what: str
    name: str
    argument: str
    ours: Value
    theirs: Value

    @property
    def is_safe(self) -> bool:
        return self.what == "queue" and self.argument in SAFE_TO_LEAVE

    def take_over(self, arguments: dict[str, str | int | bool]) -> None:
        """Make it as theirs, so that a next declare tells what else differs."""
        if self.theirs is None:
            arguments.pop(self.argument, None)
        else:
            arguments[self.argument] = self.theirs

    def error(self) -> TopologyMismatchError:
        if self.argument == SINGLE:
            return self._half_sharded()
        return TopologyMismatchError(
            f"{self.what.capitalize()} {self.name!r} exists with {self.argument} = {self.theirs!r}, and we declare "
            f"{self.ours!r}. A declared {self.what} keeps its properties for ever: give this one another name, "
            f"or let it run empty, delete it (rabbitmqctl delete_{self.what} {self.name}) and start again."
        )

    def _half_sharded(self) -> TopologyMismatchError:
        there, wanted = ("in one piece", "sharded") if self.ours else ("sharded", "in one piece")
        return TopologyMismatchError(
            f"Queue {self.name!r} exists {there}, and we declare it {wanted}. A queue cannot change that: give the "
            "new one another name and let the handlers name it, and keep the old one among the app's queues, as it "
            "was, until it is empty. Its workers take from both, and new jobs go to the new one only."
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """A plan beside what the broker has, as far as AMQP tells."""

    missing_exchanges: list[str] = field(default_factory=list[str])
    missing_queues: list[str] = field(default_factory=list[str])
    drifts: list[Drift] = field(default_factory=list[Drift])
    #: Exist, but the broker will not compare them for a user without configure on them.
    uncompared: list[str] = field(default_factory=list[str])
    #: Not there for certain, since an end of them is missing.
    missing_bindings: list[Binding] = field(default_factory=list[Binding])

    @property
    def is_complete(self) -> bool:
        return not (self.missing_exchanges or self.missing_queues)

    @property
    def unsafe(self) -> list[Drift]:
        return [drift for drift in self.drifts if not drift.is_safe]


@dataclass(frozen=True, slots=True)
class QueueState:
    """What waits in a queue, and how many consumers it has. What consumers hold is not counted."""

    messages: int
    consumers: int


def surely_missing(bindings: Sequence[Binding], found: Comparison) -> Iterator[Binding]:
    """Bindings whose one end is."""
    exchanges, queues = set(found.missing_exchanges), set(found.missing_queues)
    for binding in bindings:
        if binding.source in exchanges or binding.destination in (exchanges if binding.to_exchange else queues):
            yield binding
