"""Whether a worker gets on, from looks at it: nothing is noted for a job.

A slot is stuck when its run has outlived its timeout: in a thread, which cannot be stopped, in a handler that lets no
cancellation through, in a middleware. While one slot is free, or one run has time left, the worker gets on.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from amqpjobs.amqp.consumer import Consumer
from amqpjobs.worker.run import Run

#: Seconds beyond its timeout that a run may take for what is around it, as telling the broker of it.
MARGIN = 5.0
#: Kinds that are named.
_SHOWN = 3


class Holders:
    """How long runs have held their slots, as far as was seen."""

    def __init__(self, timeout_of: Callable[[Run], float]) -> None:
        self._timeout_of = timeout_of
        self._since = dict[Run, float]()

    def look(self, runs: Iterable[Run], now: float) -> None:
        """These hold slots now, others no longer."""
        self._since = {run: self._since.get(run, now) for run in runs}

    def stuck(self, now: float) -> str:
        """What is wrong when no run has time left; "" when one has."""
        beyond = [now - since - self._timeout_of(run) for run, since in self._since.items()]
        if not beyond or min(beyond) <= MARGIN:
            return ""
        return f"they have outlived their timeouts, one by {max(beyond):.0f} s ({_kinds_of(self._since)})"


def unconsumed(parts: Mapping[str, str], consumers: Sequence[Consumer]) -> list[str]:
    """The queues of which a part has no consumer that gets what comes; `parts` has our names of the broker's."""
    consumed = {each.queue for each in consumers if each.is_wanted and each.is_known and each.session.is_open}
    missing = dict.fromkeys(name for part, name in parts.items() if part not in consumed)
    return [f"queue {name}: no consumer" for name in missing]


def _kinds_of(runs: Collection[Run]) -> str:
    kinds = sorted({run.envelope.kind[:200] for run in runs if run.envelope is not None})
    return ", ".join(kinds[:_SHOWN]) + (" and others" if len(kinds) > _SHOWN else "")
