"""A service whose metrics are for Prometheus, in a process of its own: a meter provider is set once in each.

    python -m tests.support.scraped_app NAME SETTINGS

Its connections are cut once. Then jobs complete, are tried again, and die, and ticks are published. In the end it
writes the text to its standard output.
"""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from amqpjobs import App, Beat, Job, JobContext, Worker, exposition
from amqpjobs.events import ConnectionOpened, JobEnded, TickPublished
from amqpjobs.settings import load_settings
from tests.support.apps import SOON, watch
from tests.support.broker import eventually
from tests.support.faults import FaultyProxy
from tests.support.ticks import Each


def made_app(name: str, settings: dict[str, Any]) -> tuple[App[None], type[Job[None]], type[Job[None]]]:
    class Good(Job[None], kind=f"{name}.good"):
        pass

    class Bad(Job[None], kind=f"{name}.bad", max_attempts=2):
        pass

    app = App(name, retry=SOON, settings=load_settings(**settings))

    @app.handler(Good)
    async def good(job: Good, ctx: JobContext[None]) -> None:
        if ctx.attempt == 1 and ctx.envelope.schedule is None:
            raise ValueError("as planned")

    @app.handler(Bad)
    async def bad(job: Bad) -> None:
        raise KeyError("as planned")

    app.schedule(Each(0.2), job=Good(), name="tick")
    return app, Good, Bad


@asynccontextmanager
async def behind_a_proxy(settings: dict[str, Any]) -> AsyncGenerator[tuple[FaultyProxy, dict[str, Any]]]:
    async with FaultyProxy(settings["url"]).running() as proxy:
        yield proxy, settings | {"url": proxy.url}


async def main(name: str, given: dict[str, Any]) -> None:
    shown = exposition()
    async with behind_a_proxy(given) as (proxy, settings):
        app, good, bad = made_app(name, settings)
        opened, ended = watch(app.events, ConnectionOpened), watch(app.events, JobEnded)
        published = watch(app.events, TickPublished)
        async with Worker(app, concurrency=3):
            await opened.until(2)
            proxy.cut()
            await opened.until(4)
            await app.enqueue(good())
            await app.enqueue(bad())
            async with Beat(app):
                await published.until(2)

                async def have_ended() -> bool:
                    return sum(each.envelope.schedule is None for each in ended) == 4  # two attempts of each

                await eventually(have_ended)
                text = await asyncio.to_thread(shown.text)
    sys.stdout.buffer.write(text)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
