"""Metrics as a test sees them: with the SDK's in-memory reader."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint

Point = NumberDataPoint | HistogramDataPoint


class Read:
    """The points of each metric, told apart by some of their attributes."""

    def __init__(self, reader: InMemoryMetricReader) -> None:
        self._reader = reader

    def points(self, name: str) -> list[Point]:
        data = self._reader.get_metrics_data()
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
        found = [metric for scope in scopes for metric in scope.metrics if metric.name == name]
        return [cast("Point", point) for metric in found for point in metric.data.data_points]

    def values(self, name: str, *attributes: str) -> dict[tuple[object, ...], float]:
        """Sums, or of histograms the counts, by these attributes."""
        return {
            tuple((point.attributes or {}).get(each) for each in attributes): _value(point)
            for point in self.points(name)
        }


def _value(point: Point) -> float:
    return point.count if isinstance(point, HistogramDataPoint) else point.value


@contextmanager
def measured(patch: pytest.MonkeyPatch) -> Generator[Read]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    # It can be set once in a process; tests need one each.
    patch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", provider)
    yield Read(reader)
    provider.shutdown()
