"""What is counted of beats, by the events that tell it."""

from datetime import UTC, datetime, timedelta

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from amqpjobs import App
from amqpjobs.events import Event, TickDropped, TickFailed, TickFound, TickPublished, TicksOverlapped, TicksSkipped
from amqpjobs.telemetry.vitals import Vitals, vitals_of
from tests.support.metrics import Read
from tests.unit.making import envelope

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TICK = envelope(job_id="hourly@12").evolve(schedule="hourly")


@pytest.mark.parametrize(
    ("event", "outcome"),
    [
        (TickPublished("hourly", NOON, "hourly@12", 0.2), "published"),
        (TickFailed("hourly", NOON, "hourly@12", ValueError(), 1, 0.5), "failed"),
        (TicksSkipped("hourly", NOON - timedelta(hours=3), NOON), "skipped"),
        (TicksOverlapped("hourly", NOON - timedelta(hours=3), NOON, None), "overlapped"),
        (TickFound("hourly", NOON, "hourly@12"), "found"),
        (TickDropped(TICK), "dropped"),
    ],
)
def test_what_becomes_of_a_tick_is_counted_by_its_schedule(event: Event, outcome: str) -> None:
    reader, app = InMemoryMetricReader(), App("shop")
    vitals = Vitals(MeterProvider([reader], shutdown_on_exit=False).get_meter("test"))
    vitals.watch(app)
    vitals.watch(app)

    app.events.emit(event)

    told = ("amqpjobs.app.name", "amqpjobs.schedule.name", "amqpjobs.tick.outcome")
    assert Read(reader).values("amqpjobs.tick.outcomes", *told) == {("shop", "hourly", outcome): 1}


def test_an_app_that_is_gone_is_watched_no_longer() -> None:
    reader, app = InMemoryMetricReader(), App("shop")
    vitals = Vitals(MeterProvider([reader], shutdown_on_exit=False).get_meter("test"))
    vitals.watch(app)

    del app

    assert Read(reader).points("amqpjobs.worker.capacity") == []


def test_a_provider_has_its_instruments_once() -> None:
    first, second = (MeterProvider(shutdown_on_exit=False) for _ in range(2))

    made = [vitals_of(each, each.get_meter("test")) for each in (first, first, second)]

    assert made[0] is made[1]
    assert made[0] is not made[2]
