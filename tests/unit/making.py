"""Values and fakes that many unit tests need. The fakes stand at the wire: all code above them is real."""

import asyncio
import types
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from amqpjobs.envelope import Envelope
from amqpjobs.errors import BrokerUnavailableError
from amqpjobs.events import Event, Events
from amqpjobs.job import Job
from amqpjobs.wire import Delivery, HeaderValue, Properties, Publication

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def job_class(name: str, **options: object) -> type[Job[None]]:
    """A job class with options that no type checker would let pass."""
    return cast("type[Job[None]]", types.new_class(name, (Job[None],), cast("dict[str, Any]", options)))


def envelope(kind: str = "probe", payload: bytes = b"{}", **changes: Any) -> Envelope:
    return Envelope(kind=kind, payload=payload, job_id="job-1", queue="work").evolve(**changes)


@dataclass
class FakeSettler:
    """A channel that writes down how its deliveries were settled."""

    is_open: bool = True
    log: list[object] = field(default_factory=list[object])

    async def ack(self, tag: int) -> None:
        self._settle("ack", tag)

    async def nack(self, tag: int) -> None:
        self._settle("nack", tag)

    async def reject(self, tag: int) -> None:
        self._settle("reject", tag)

    def _settle(self, how: str, tag: int) -> None:
        if not self.is_open:
            raise BrokerUnavailableError("The channel is closed.")
        self.log.append((how, tag))


class FakePublisher:
    """Takes publications, or does what it is told to do instead."""

    def __init__(self, log: list[object] | None = None) -> None:
        self.sent: list[Publication] = []
        #: Raised, or called and awaited, one for each send, before any send succeeds again.
        self.failures: deque[Exception | Callable[[], Awaitable[object]]] = deque()
        self._log: list[object] = [] if log is None else log

    async def send(self, publication: Publication) -> None:
        await asyncio.sleep(0)
        if self.failures:
            failure = self.failures.popleft()
            if isinstance(failure, Exception):
                raise failure
            await failure()
        self.sent.append(publication)
        self._log.append("confirmed")


def delivery(
    body: bytes = b"{}",
    *,
    kind: str | None = "probe",
    headers: Mapping[str, HeaderValue] | None = None,
    settler: FakeSettler | None = None,
    queue: str = "work",
    defect: str = "",
    tag: int = 7,
    redelivered: bool = False,
    **properties: Any,
) -> Delivery:
    return Delivery(
        body=body,
        properties=Properties(headers=dict(headers or {}), kind=kind, **properties),
        queue=queue,
        exchange="amqpjobs",
        routing_key="probe",
        redelivered=redelivered,
        tag=tag,
        settler=settler or FakeSettler(),
        defect=defect,
    )


def watched(events: Events, *kinds: type[Event]) -> list[Event]:
    """A list that grows with each event of these classes."""
    seen: list[Event] = []
    for kind in kinds:
        events.subscribe(kind, seen.append)
    return seen
