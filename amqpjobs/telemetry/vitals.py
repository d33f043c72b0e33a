"""Metrics of what jobs need: slots, connections, confirms, and a beat.

Levels are looked at when somebody reads them. The rest is counted by events that are rare. The instruments are
made once for a provider, because the functions that OpenTelemetry asks for a level are those of the first one made.
"""

from collections.abc import Iterable
from functools import partial
from threading import Lock
from weakref import WeakSet

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from amqpjobs.events import (
    ConnectionOpened,
    TickDropped,
    TickFailed,
    TickFound,
    TickPublished,
    TicksOverlapped,
    TicksSkipped,
)
from amqpjobs.levels import Level
from amqpjobs.telemetry import names
from amqpjobs.telemetry.names import TickOutcome
from amqpjobs.telemetry.series import BoundedCounter
from amqpjobs.telemetry.spans import Observed

#: Seconds that a tick was late.
LAGS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)

_LEVELS = {
    Level.CAPACITY: ("amqpjobs.worker.capacity", "{slot}", "Slots: jobs or batches that may run at once"),
    Level.BUSY: ("amqpjobs.worker.busy", "{slot}", "Slots that are taken"),
    Level.UNCONFIRMED: ("amqpjobs.publish.unconfirmed", "{message}", "Published messages that wait for their confirm"),
    Level.LEADING: ("amqpjobs.beat.leading", "{beat}", "Beats that lead"),
}


class Vitals:
    """The instruments, and the apps they are about."""

    def __init__(self, meter: Meter) -> None:
        self._lock = Lock()
        self._apps = WeakSet[Observed]()
        for level, (name, unit, description) in _LEVELS.items():
            meter.create_observable_up_down_counter(name, [partial(self._look, level)], unit, description)
        self._reconnects = meter.create_counter(
            "amqpjobs.connection.reconnects", "{reconnect}", "Connections that were opened again"
        )
        self._ticks = BoundedCounter(
            meter.create_counter("amqpjobs.tick.outcomes", "{tick}", "What became of the ticks of schedules")
        )
        self._lags = meter.create_histogram(
            "amqpjobs.tick.lag",
            "s",
            "From a tick's instant to its confirm",
            explicit_bucket_boundaries_advisory=LAGS,
        )

    def watch(self, app: Observed) -> None:
        """Measure this app too; once, however often it connects."""
        with self._lock:
            if app in self._apps:
                return
            self._apps.add(app)
        events, name = app.events, app.name
        events.subscribe(ConnectionOpened, partial(self._opened, name))
        events.subscribe(TickPublished, partial(self._published, name))
        events.subscribe(TicksSkipped, partial(self._ticked, name, TickOutcome.SKIPPED))
        events.subscribe(TicksOverlapped, partial(self._ticked, name, TickOutcome.OVERLAPPED))
        events.subscribe(TickFound, partial(self._ticked, name, TickOutcome.FOUND))
        events.subscribe(TickFailed, partial(self._ticked, name, TickOutcome.FAILED))
        events.subscribe(TickDropped, partial(self._dropped, name))

    def _look(self, level: Level, options: CallbackOptions) -> Iterable[Observation]:
        with self._lock:
            apps = list(self._apps)
        found = dict[str, float]()
        for app in apps:
            if (value := app.levels.sum(level)) is not None:
                found[app.name] = found.get(app.name, 0) + value
        return [Observation(value, {names.APP: name}) for name, value in found.items()]

    def _opened(self, app: str, event: ConnectionOpened) -> None:
        if event.is_again:
            self._reconnects.add(1, {names.APP: app, names.CONNECTION_ROLE: event.role})

    def _published(self, app: str, event: TickPublished) -> None:
        self._lags.record(max(0.0, event.late), {names.APP: app})
        self._ticked(app, TickOutcome.PUBLISHED, event)

    def _dropped(self, app: str, event: TickDropped) -> None:
        self._count(app, TickOutcome.DROPPED, event.envelope.schedule or "")

    def _ticked(
        self,
        app: str,
        outcome: TickOutcome,
        event: TickPublished | TicksSkipped | TicksOverlapped | TickFound | TickFailed,
    ) -> None:
        self._count(app, outcome, event.schedule)

    def _count(self, app: str, outcome: TickOutcome, schedule: str) -> None:
        self._ticks.add(1, {names.APP: app, names.SCHEDULE: schedule, names.TICK_OUTCOME: outcome.value})


#: Those of the provider that was there last; a process has one, but for tests.
_latest: tuple[object, Vitals] | None = None
_once = Lock()


def vitals_of(provider: object, meter: Meter) -> Vitals:
    """The same ones for the same provider."""
    global _latest
    with _once:
        if _latest is None or _latest[0] is not provider:
            _latest = provider, Vitals(meter)
        return _latest[1]
