"""Apps for tests, with names nobody else uses, ledgers of what ran, and a broom.

All apps of a node share one namespace, and so one delay ladder, which takes a second to declare.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import new_class
from typing import Any, Generic, TypeVar

from typing_extensions import Unpack

from amqpjobs import App, Job, JobContext, Queue, RetryPolicy, Settings, fixed
from amqpjobs.envelope import Envelope
from amqpjobs.events import Event, Events
from amqpjobs.job import ClassOptions
from amqpjobs.registry import HandlerOptions
from amqpjobs.settings import load_settings
from amqpjobs.topology import Topology
from tests.support.broker import PATIENCE, Broker

T = TypeVar("T")
E = TypeVar("E", bound=Event)

NAMESPACE = "tests"
#: Seconds that an enqueue without a deadline of its own may take: more than a busy machine stands still.
ENQUEUE_WITHIN = 15.0
#: Retries as soon as the delay levels can.
SOON = fixed(0.1)


class Note(Job[None]):
    """The job of most tests; `Bench.kind` makes a class of it for each kind."""

    n: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True)
class Ran:
    """A run, as the handler saw it start."""

    n: int
    text: str
    envelope: Envelope
    at: float = field(default_factory=time.time)

    @property
    def attempt(self) -> int:
        return self.envelope.attempt

    @property
    def lateness(self) -> float:
        """Seconds after its `run_at`; negative is too early."""
        assert self.envelope.run_at is not None
        return self.at - self.envelope.run_at.timestamp()


class Seen(Generic[T]):
    """What was seen so far, and a way to wait for more."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._more = asyncio.Event()

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, position: int) -> T:
        return self._items[position]

    def add(self, item: T) -> None:
        self._items.append(item)
        self._more.set()

    async def until(self, count: int, *, within: float = PATIENCE) -> list[T]:
        """Wait until there are so many; all of them, in the order they came."""
        try:
            async with asyncio.timeout(within):
                while len(self._items) < count:
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"{len(self._items)} of {count} within {within:g} s: {self._items[-5:]}") from None
        return list(self._items)


def watch(events: Events, kind: type[E]) -> Seen[E]:
    """All events of one class from now on."""
    seen = Seen[E]()
    events.subscribe(kind, seen.add)
    return seen


Behaviour = Callable[[Note, JobContext[Any]], Awaitable[None]]


def record(
    app: App[Any],
    kind: type[Note],
    behave: Behaviour | None = None,
    **options: Unpack[HandlerOptions],
) -> Seen[Ran]:
    """Register a handler that notes each run and then does what `behave` does."""
    ran = Seen[Ran]()

    async def handle(job: Note, context: JobContext[Any]) -> None:
        ran.add(Ran(job.n, job.text, context.envelope))
        if behave is not None:
            await behave(job, context)

    app.handler(kind, **options)(handle)
    return ran


class Bench:
    """Makes a test's apps and kinds, and removes from the broker what they left there."""

    def __init__(self, url: str, unique: Callable[[], str], broker: Broker) -> None:
        self.url = url
        self.unique = unique
        self.broker = broker
        self._apps: list[App[Any]] = []
        self._queues: list[str] = []

    def settings(self, **given: object) -> Settings:
        own = {"url": self.url, "namespace": NAMESPACE, "enqueue_timeout": ENQUEUE_WITHIN}
        return load_settings(**{**own, **given})

    def app(
        self,
        name: str | None = None,
        *,
        queues: Iterable[Queue] = (),
        retry: RetryPolicy = SOON,
        settings: Settings | None = None,
    ) -> App[None]:
        app = App(name or self.unique(), queues=queues, retry=retry, settings=settings or self.settings())
        self.clean(app)
        return app

    def kind(self, name: str | None = None, **options: Unpack[ClassOptions]) -> type[Note]:
        """A class of `Note` with a kind of its own."""
        made: type[Note] = new_class("Note", (Note,), {"kind": name or self.unique(), **options})
        return made

    def clean(self, app: App[Any]) -> None:
        """Remove the app's queues and exchanges after the test."""
        self._apps.append(app)

    async def queue(self, **arguments: str | int | bool) -> str:
        """A queue of somebody else's; classic unless said otherwise."""
        name = self.unique()
        self._queues.append(name)
        given = {argument.replace("_", "-"): value for argument, value in arguments.items()}
        await self.broker.declare_queue(name, {"x-queue-type": "classic", **given})
        return name

    async def close(self) -> None:
        for app in self._apps:
            with suppress(OSError):
                await app.close()
        for app in self._apps:
            for queue in app.queues:
                await self._remove(app.topology, queue)
            for exchange in {each.exchange for each in app.registry.subscriptions() if each.exchange}:
                await self.broker.delete_exchange(exchange)
        for name in self._queues:
            await self.broker.delete_queue(name)

    async def _remove(self, topology: Topology, queue: Queue) -> None:
        for name in (*topology.parts(queue), topology.dead_queue(queue.name)):
            await self.broker.delete_queue(name)
        if queue.shards is not None:
            await self.broker.delete_queue(topology.crew(queue.name))
            for exchange in topology.app([queue], []).exchanges:
                await self.broker.delete_exchange(exchange.name)


def work_queue(app: App[Any], name: str | None = None) -> str:
    """The broker's name of an app's queue, by default its own."""
    return app.topology.work_queue(name or app.name)


def dead_queue(app: App[Any], name: str | None = None) -> str:
    return app.topology.dead_queue(name or app.name)
