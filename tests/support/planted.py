"""The embedded broker with one mistake in it, for tests that must find it.

    python -m tests.support.planted 4.0 "a missed redelivered flag"

The mistakes are made here, from outside: the package has no switch for any of them.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from amqpjobs.devbroker import vhost
from amqpjobs.devbroker.backlog import Backlog, Entry, PriorityBacklog, ReturnsBacklog
from amqpjobs.devbroker.deadletter import Reason, died
from amqpjobs.devbroker.ledger import Ledger, Loan
from amqpjobs.devbroker.message import Message
from amqpjobs.devbroker.queue import Queue
from amqpjobs.devbroker.quorum import QuorumQueue
from tests.support.embedded import serve

_take = Ledger.take


def _died_otherwise(message: Message, reason: Reason, *rest: Any) -> Message:
    return died(message, Reason.REJECTED if reason is Reason.MAXLEN else reason, *rest)


def _never_redelivered(queue: Queue, entry: Entry) -> bool:
    return False


def _take_one(ledger: Ledger, tag: int, *, multiple: bool) -> list[Loan]:
    return _take(ledger, tag, multiple=multiple and tag == 0)


def _all_of(backlog: Backlog) -> Iterable[Entry]:
    return list(backlog)


def _take_any_expired(backlog: PriorityBacklog | ReturnsBacklog, now: float) -> Entry:
    """Wherever it stands."""
    entries = [backlog.take() for _ in range(len(backlog))]
    expired = next(entry for entry in entries if entry.expires_at <= now)
    for entry in entries:
        if entry is not expired:
            backlog.add(entry)
    return expired


Change = tuple[object, str, Callable[..., object]]
FAULTS: dict[str, list[Change]] = {
    "a wrong dead-letter reason": [(vhost, "died", _died_otherwise)],
    "a missed redelivered flag": [
        (Queue, "is_redelivered", _never_redelivered),
        (QuorumQueue, "is_redelivered", _never_redelivered),
    ],
    "a lost multiple ack": [(Ledger, "take", _take_one)],
    "an expiry out of order": [
        (PriorityBacklog, "heads", _all_of),
        (PriorityBacklog, "take_expired", _take_any_expired),
        (ReturnsBacklog, "heads", _all_of),
        (ReturnsBacklog, "take_expired", _take_any_expired),
    ],
}


def main(version: str, options: str, fault: str) -> None:
    with ExitStack() as changes:
        for where, name, wrong in FAULTS[fault]:
            changes.enter_context(patch.object(where, name, wrong))
        asyncio.run(serve(version, json.loads(options)))


if __name__ == "__main__":
    main(*sys.argv[1:])
