"""A service with very many kinds, queues, schedules and classes of errors, and what is shown of it.

    python -m tests.support.crowded_app 10000

It has a process of its own, and no broker: the middlewares are called as a worker and a client would. It writes as
JSON, twice: the `series` of each metric, how many classes of `errors` are told apart, the `bytes` of the text, the
`seconds` it took, and the bytes `gained` in memory since before anything was measured.
"""

import asyncio
import json
import re
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from types import new_class
from typing import Any, cast

import psutil

from amqpjobs import App, JobContext, exposition
from amqpjobs.envelope import Envelope
from amqpjobs.events import TickPublished
from amqpjobs.outcome import Dead, DeadReason, Outcome, Retrying
from amqpjobs.settings import load_settings
from amqpjobs.wire import Delivery
from tests.unit.making import delivery, envelope, job_class

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def crowded_app(size: int) -> App[None]:
    app = App("crowd", settings=load_settings(url="amqp://broker.example", namespace="crowd"))

    async def handle(job: Any) -> None:
        """Never called: what it would do is told below."""

    for n in range(size):
        cast("Any", app).handler(job_class(f"Kind{n}", kind=f"crowd.kind-{n}"))(handle)
    app.observe()
    return app


async def live(app: App[None], n: int) -> None:
    """Enqueue the nth kind, to the nth queue too, run it in vain, and settle it and a job of an unknown kind."""
    error: Exception = new_class(f"Error{n}", (Exception,))()

    async def sent(envelope: Envelope) -> Envelope:
        return envelope

    async def ran(context: JobContext[Any]) -> Outcome:
        return Retrying(1.0, error)

    async def settled(delivery: Delivery, envelope: Envelope | None, outcome: Outcome) -> bool:
        return True

    [send], [run], [settle] = app.enqueue_middlewares, app.run_middlewares, app.settle_middlewares
    job, stray = envelope(f"crowd.kind-{n}", queue=""), envelope(f"unknown.kind-{n}")
    await send(job, sent)
    await send(job.evolve(queue=f"queue-{n}"), sent)
    await run(JobContext(job, None, 1, app.clock, None, app.enqueue), ran)
    await settle(delivery(), job, Dead(DeadReason.ATTEMPTS_EXHAUSTED), settled)
    await settle(delivery(), stray, Dead(DeadReason.UNKNOWN_KIND), settled)
    app.events.emit(TickPublished(f"schedule-{n}", NOW, f"tick-{n}", 0.1))


async def main(size: int) -> None:
    shown, app = exposition(), crowded_app(size)
    memory = psutil.Process().memory_info
    before = memory().rss
    for n in range(size):
        await live(app, n)
    found = list[dict[str, object]]()
    for _ in range(2):
        began = time.monotonic()
        text = shown.text()
        seconds = time.monotonic() - began
        found.append(
            {
                "bytes": len(text),
                "seconds": seconds,
                "gained": memory().rss - before,
                "series": series(text),
                "errors": len(set(re.findall(rb'error_type="([^"]+)"', text))),
            }
        )
    json.dump(found, sys.stdout)


def series(text: bytes) -> Counter[str]:
    """How many sets of labels each metric has; of a histogram, its buckets and sums left out."""
    lines = text.decode().splitlines()
    names = [line.partition("{")[0] for line in lines if not line.startswith("#")]
    return Counter(re.sub("_count$", "", name) for name in names if not name.endswith(("_bucket", "_sum")))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
