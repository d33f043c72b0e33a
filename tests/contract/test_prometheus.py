"""What Prometheus reads of a service that has run jobs and ticks on a broker."""

import asyncio
import json
import sys

import pytest

from amqpjobs.telemetry.measures import ATTEMPTS, DURATIONS, WAITS
from amqpjobs.telemetry.vitals import LAGS
from tests.support.apps import NAMESPACE, Bench
from tests.support.broker import PATIENCE, Broker
from tests.support.promtool import METRICS, promtool


class Scrape:
    """The text, and the service's name."""

    def __init__(self, name: str, text: bytes) -> None:
        self.name, self.text = name, text
        self.lines = text.decode().splitlines()

    @property
    def types(self) -> dict[str, str]:
        """Of each metric; what it is about itself left out."""
        told = [line.split()[2:] for line in self.lines if line.startswith("# TYPE")]
        return {name: kind for name, kind in told if name != "target_info"}

    def value(self, name: str, **labels: str) -> float:
        """Of all series of a metric that have these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        found = [line for line in self.lines if line.startswith(f"{name}{{") and all(each in line for each in wanted)]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def boundaries(self, name: str) -> tuple[float, ...]:
        found = [
            line.partition('le="')[2].partition('"')[0] for line in self.lines if line.startswith(f"{name}_bucket")
        ]
        return tuple(sorted({float(each) for each in found if each != "+Inf"}))


@pytest.fixture
async def scrape(bench: Bench, broker: Broker) -> Scrape:
    name = bench.app().name  # its queues are removed afterwards
    settings = json.dumps({"url": bench.url, "namespace": NAMESPACE})
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "tests.support.scraped_app", name, settings),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(2 * PATIENCE):
            text, complaint = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
        for queue in bench.app(name).topology.beat(name).queues:
            await broker.delete_queue(queue.name)
    assert child.returncode == 0, complaint.decode()
    return Scrape(name, text)


async def test_promtool_finds_nothing_wrong_with_the_metrics_of_a_service_that_has_run(scrape: Scrape) -> None:
    assert promtool("check", "metrics", text=scrape.text) == ""


async def test_prometheus_reads_all_our_metrics_under_names_with_their_units(scrape: Scrape) -> None:
    name = scrape.name
    kinds = {"amqpjobs_job_kind": f"{name}.bad"}

    assert scrape.types == METRICS
    assert scrape.boundaries("messaging_process_duration_seconds") == DURATIONS
    assert scrape.boundaries("messaging_client_operation_duration_seconds") == DURATIONS
    assert scrape.boundaries("amqpjobs_job_wait_duration_seconds") == WAITS
    assert scrape.boundaries("amqpjobs_job_attempts") == ATTEMPTS
    assert scrape.boundaries("amqpjobs_tick_lag_seconds") == LAGS
    assert scrape.value("amqpjobs_job_outcomes_total", **kinds, amqpjobs_job_outcome="retrying") == 1
    assert scrape.value("amqpjobs_job_outcomes_total", **kinds, amqpjobs_job_dead_reason="attempts_exhausted") == 1
    assert scrape.value("messaging_process_duration_seconds_count", **kinds, error_type="KeyError") == 2
    assert scrape.value("amqpjobs_worker_capacity", amqpjobs_app_name=name) == 3
    assert scrape.value("amqpjobs_connection_reconnects_total", amqpjobs_app_name=name) >= 2
    assert scrape.value("amqpjobs_tick_outcomes_total", amqpjobs_tick_outcome="published") >= 2


def test_promtool_would_find_what_is_wrong() -> None:
    with pytest.raises(AssertionError, match="_total"):
        promtool("check", "metrics", text=b"# HELP jobs Jobs\n# TYPE jobs counter\njobs 1\n")
