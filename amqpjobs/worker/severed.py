"""What lost its channel while it ran, until it comes again.

When a channel is lost, the broker delivers anew what was not acked on it, also what still runs
here. Such a redelivery is handed to its run, which settles it as its own: the job does not
overlap with a copy of itself, and no slot is lost to one.
"""

from dataclasses import replace

from amqpjobs.wire import Delivery, Properties
from amqpjobs.worker.run import Run

#: Headers that the broker changes when it delivers again.
BROKERS_COUNTS = frozenset({"x-delivery-count", "x-acquired-count"})


class Severed:
    """Runs that lost their delivery with its channel, until it comes again: those that go on, and those that ended.

    Another worker may get it instead, so at most `limit` are kept; the oldest go first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._runs: dict[tuple[str, str], Run] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def add(self, run: Run) -> None:
        """Keep it. Of several runs of one message id, one."""
        if (key := _key(run.delivery)) is None:
            return
        self._runs.setdefault(key, run)
        if len(self._runs) > self._limit:
            del self._runs[next(iter(self._runs))]

    def take(self, delivery: Delivery) -> Run | None:
        """The run that this redelivery belongs to. None: it is to be run."""
        key = _key(delivery) if delivery.redelivered else None
        run = None if key is None else self._runs.get(key)
        if key is None or run is None or run.delivery.settler.is_open or not _is_same(run.delivery, delivery):
            return None
        return self._runs.pop(key)


def _key(delivery: Delivery) -> tuple[str, str] | None:
    message_id = delivery.properties.message_id
    return None if message_id is None else (delivery.queue, message_id)


def _is_same(one: Delivery, other: Delivery) -> bool:
    """Whether nobody could tell their messages apart. A foreign producer may use a message id twice."""
    return (
        one.body == other.body
        and (one.exchange, one.routing_key) == (other.exchange, other.routing_key)
        and _as_published(one) == _as_published(other)
    )


def _as_published(delivery: Delivery) -> Properties:
    own = delivery.properties
    return replace(own, headers={name: value for name, value in own.headers.items() if name not in BROKERS_COUNTS})
