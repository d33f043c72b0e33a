"""What traces cost a job.

    .venv/bin/python -m benchmarks.telemetry

Jobs are enqueued one by one, 100 at a time, and run by a worker in the same process; the embedded broker has a
process of its own. Each way is measured in fresh processes, in turn, so that what else the machine does falls on
all alike: without a tracer provider; with OpenTelemetry's SDK and its batch exporter, which hands spans to
nobody; and with the SDK and a sampler that takes none. A number is the median of the rounds, in microseconds a
job, of CPU time (all threads, the exporter's too) and of time passed.
"""

import argparse
import asyncio
import multiprocessing
import sys
import time
from collections.abc import Sequence
from multiprocessing.queues import SimpleQueue
from statistics import median

import uvloop
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from amqpjobs import App, Job, Worker
from amqpjobs.events import JobEnded
from amqpjobs.settings import load_settings
from tests.support.embedded import Embedded

#: What is measured, and whether there is a provider, and one that takes spans.
WAYS = {"no provider": None, "SDK, batch exporter": ALWAYS_ON, "SDK, sampled out": ALWAYS_OFF}
#: Enqueues under way at once.
LANES = 100
#: Jobs before those that count.
WARMING = 500
spawn = multiprocessing.get_context("spawn")

Figures = tuple[float, float, int]


class Nothing(Job[None], kind="benchmark.nothing"):
    """About as large as a job usually is."""

    number: int
    text: str = "x" * 70


class Discarding(SpanExporter):
    """An exporter whose back end is infinitely fast."""

    def __init__(self) -> None:
        self.count = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.count += len(spans)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


def main() -> None:
    options = parsed()
    measured: dict[str, list[Figures]] = {way: [] for way in WAYS}
    with Embedded(options.profile) as broker:
        for _ in range(options.rounds):
            for way, figures in measured.items():
                figures.append(in_a_process(broker.url, way, options.jobs))
    tell(measured, options.jobs)


def parsed() -> argparse.Namespace:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--jobs", type=int, default=5_000, help="in each round (default: %(default)s)")
    words.add_argument("--rounds", type=int, default=5, help="of each way (default: %(default)s)")
    words.add_argument("--profile", default="4.0", help="the RabbitMQ version to behave like (default: %(default)s)")
    return words.parse_args()


def in_a_process(url: str, way: str, jobs: int) -> Figures:
    answer: SimpleQueue[Figures] = spawn.SimpleQueue()
    process = spawn.Process(target=measure, args=[url, way, jobs, answer])
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"A round failed: {way}.")
    return answer.get()


def measure(url: str, way: str, jobs: int, answer: "SimpleQueue[Figures]") -> None:
    sampler, exporter = WAYS[way], Discarding()
    provider = None
    if sampler is not None:
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=10 * jobs + WARMING))
        trace.set_tracer_provider(provider)
    cpu, passed = uvloop.run(work(url, jobs))
    if provider is not None:
        provider.shutdown()
    answer.put((cpu / jobs * 1e6, passed / jobs * 1e6, exporter.count))


async def work(url: str, jobs: int) -> tuple[float, float]:
    """CPU and real seconds for so many jobs, from the first enqueue to the last ack."""
    app = App("benchmark", settings=load_settings(url=url))
    ended, reached = 0, asyncio.Event()

    @app.handler(Nothing)
    async def nothing(job: Nothing) -> None:
        pass

    @app.on(JobEnded)
    def count(event: JobEnded) -> None:
        nonlocal ended
        ended += 1
        if ended in (WARMING, WARMING + jobs):
            reached.set()

    async with Worker(app, concurrency=LANES):
        await enqueue(app, WARMING)
        await reached.wait()
        reached.clear()
        cpu, passed = time.process_time(), time.perf_counter()
        await enqueue(app, jobs)
        await reached.wait()
        return time.process_time() - cpu, time.perf_counter() - passed


async def enqueue(app: App[None], jobs: int) -> None:
    numbers = iter(range(jobs))

    async def lane() -> None:
        for number in numbers:
            await app.enqueue(Nothing(number=number), deadline=60)

    async with asyncio.TaskGroup() as group:
        for _ in range(LANES):
            group.create_task(lane())


def tell(measured: dict[str, list[Figures]], jobs: int) -> None:
    base = median(cpu for cpu, _, _ in measured["no provider"])
    lines = [f"{'µs a job, enqueued, run and acked':36}{'CPU':>8}{'more':>8}{'passed':>9}{'spans a job':>13}"]
    for way, figures in measured.items():
        cpu, passed = median(each[0] for each in figures), median(each[1] for each in figures)
        spans = median(each[2] for each in figures) / (jobs + WARMING)
        lines.append(f"{way:36}{cpu:8.0f}{cpu - base:8.0f}{passed:9.0f}{spans:13.1f}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
