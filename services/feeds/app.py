"""The feeds service: a tick a minute enqueues a fetch for each feed, and each fetch the delivery of what is new.

A feed that is away is tried again, and anyhow a minute later. One that can never be read is a dead letter, and left
alone for an hour. No item is lost: it counts as seen when its delivery is confirmed. It may be delivered twice.
"""

import hashlib
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from amqpjobs import App, JobContext, every, exponential
from services.feeds.jobs import Deliver, FetchAll, Fetched, FetchFeed
from services.feeds.reading import BadFeedError, fetch_feed
from services.feeds.settings import FeedsSettings
from services.feeds.store import Store

log = logging.getLogger(__name__)
settings = FeedsSettings()


@dataclass(frozen=True, slots=True)
class State:
    """What handlers share while a worker lives."""

    client: httpx.AsyncClient
    store: Store


@asynccontextmanager
async def lifespan() -> AsyncGenerator[State]:
    """Around a worker's life: one pool of connections, one open file."""
    if not settings.urls:
        log.warning("FEEDS_URLS is not set: there is nothing to fetch")
    store = Store(settings.store)
    try:
        async with httpx.AsyncClient(timeout=settings.http_timeout, follow_redirects=True, max_redirects=5) as client:
            yield State(client, store)
    finally:
        store.close()


app = App("feeds", lifespan=lifespan, retry=exponential(settings.retry_delay, cap=60).on(BadFeedError, None))


# What was missed is of no use: the next look sees all that is new. Nor is one that waited for longer than a turn.
@app.schedule(every(settings.every), job=FetchAll(), misfire="skip", expires=settings.every)
@app.handler(FetchAll)
async def fetch_all(job: FetchAll, ctx: JobContext[State]) -> int:
    feeds = ctx.state.store.audible(map(str, settings.urls), app.clock.now().timestamp())
    # Made of feed and tick, so that a tick that runs twice has the same jobs twice, and not others.
    tick = ctx.job_id.rpartition("@")[2]
    for feed in feeds:
        fetching = FetchFeed.model_validate({"feed": feed})
        await ctx.enqueue(fetching, job_id=f"fetch-{_short(feed)}@{tick}", expires=settings.every)
    return len(feeds)


@app.handler(FetchFeed)
async def fetch(job: FetchFeed, ctx: JobContext[State]) -> Fetched:
    store, feed, now = ctx.state.store, str(job.feed), app.clock.now().timestamp()
    try:
        fetched = await fetch_feed(ctx.state.client, feed, store.stamp(feed), max_size=settings.max_size)
    except BadFeedError:
        store.mute(feed, now + settings.mute)
        raise
    if fetched is None:
        return Fetched(new=0, is_unchanged=True)
    new = store.unseen(feed, fetched.items, first=settings.first)
    for item in new:
        delivery = Deliver(feed=job.feed, title=item.title, link=item.link)
        await ctx.enqueue(delivery, job_id=f"deliver-{_short(feed)}-{_short(item.name)}")
    store.remember(feed, fetched, now)
    return Fetched(new=len(new))


@app.handler(Deliver)
async def deliver(job: Deliver, ctx: JobContext[State]) -> None:
    if settings.webhook is None:
        ctx.log.info("%s  %s", job.title, job.link)
        return
    # With its id, by which whoever gets it can tell a copy.
    answer = await ctx.state.client.post(
        str(settings.webhook), json=job.model_dump(mode="json"), headers={"Idempotency-Key": ctx.job_id}
    )
    answer.raise_for_status()


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]
