"""`amqpjobs run`: a worker process."""

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import click
from rich_click import RichCommand

from amqpjobs.app import App
from amqpjobs.cli.common import UNCLEAN, load_apps, run_async
from amqpjobs.logs import log_events, set_up_logging
from amqpjobs.settings import load_settings
from amqpjobs.worker import Worker


@click.command("run", cls=RichCommand, short_help="Work off the jobs of services.")
@click.argument("targets", nargs=-1, metavar="TARGET…")
@click.option(
    "-c", "--concurrency", type=click.IntRange(1, 10_000), help="Jobs at once, for each TARGET. [default: 10]"
)
@click.option("-q", "--queue", "queues", multiple=True, metavar="NAME", help="Only this queue; may be given again.")
@click.option("--strict", is_flag=True, help="Take from a queue only when the ones before it are empty.")
def command(targets: tuple[str, ...], concurrency: int | None, queues: tuple[str, ...], strict: bool) -> int:
    """Work off the jobs of services until SIGTERM or SIGINT (Ctrl-C).

    Then it takes nothing new, hands back what has not started, and gives what runs 25 seconds
    (AMQPJOBS_GRACE) to finish. A second signal cuts short what runs and hands it back. Exit code 0 after a
    clean stop, 6 when something was cut short.

    \b
      amqpjobs run services.email
      amqpjobs run services.email services.images --concurrency 50
      amqpjobs run services.email --queue bulk
    """
    set_up_logging(load_settings())
    apps = load_apps(targets)
    if queues and len(apps) > 1:
        raise click.UsageError("--queue names queues of one service; run each TARGET in a process of its own.")
    workers = [Worker(app, concurrency=concurrency, queues=queues or None, strict=strict) for app in apps]
    cut_short = run_async(work(apps, workers))
    return UNCLEAN if cut_short else 0


async def work(apps: Sequence[App[Any]], workers: Sequence[Worker]) -> int:
    """Run the workers until a signal; how many jobs were cut short."""
    for app in apps:
        log_events(app.events)
    asked = asyncio.Event()

    def stop() -> None:
        asked.set()
        for worker in workers:
            worker.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    async with AsyncExitStack() as stack:
        entering = asyncio.ensure_future(_enter_all(stack, workers))
        stopping = asyncio.ensure_future(asked.wait())
        await asyncio.wait([entering, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not entering.done():  # a signal while the broker was still waited for
            entering.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await entering
        else:
            await entering
            await stopping
        stopping.cancel()
        await asyncio.gather(*(worker.drain() for worker in workers))
    return sum(worker.cancelled for worker in workers)


async def _enter_all(stack: AsyncExitStack, workers: Sequence[Worker]) -> None:
    for worker in workers:
        await stack.enter_async_context(worker)
