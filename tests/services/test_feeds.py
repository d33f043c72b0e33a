"""The feeds service: hours of it in virtual time against a web server, and once as a user runs it."""

import asyncio
import gzip
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import aio_pika
import pytest
from pydantic import ValidationError

from amqpjobs import App, UnconfirmedError
from amqpjobs.envelope import Envelope
from amqpjobs.events import JobEnqueued
from amqpjobs.middleware import EnqueueNext
from amqpjobs.outcome import Completed, Dead, DeadReason, Outcome, Retrying
from amqpjobs.testing import Harness
from services.feeds.jobs import Deliver, FetchAll, Fetched, FetchFeed
from services.feeds.reading import BadFeedError, Feed, Item, Stamp, read_items
from services.feeds.settings import FeedsSettings
from services.feeds.store import KEPT, Store
from tests.services.feed_server import FeedServer, Page, rss
from tests.support.broker import PATIENCE, eventually
from tests.support.terminal import Terminal

ROOT = Path(__file__).parents[2]
ATOM = b"""<?xml version="1.0" encoding="utf-8"?><feed xmlns="http://www.w3.org/2005/Atom"><title>News</title>
<entry><id>urn:1</id><title>One &amp; only</title><link href="https://news.example.com/1"/></entry>
<entry><title>No id</title><link href="https://news.example.com/2"/></entry>
<entry><title>No link</title></entry><entry><summary>nothing</summary></entry>
<entry><id>urn:5</id><title>Odd link</title><link href="javascript:alert(1)"/></entry></feed>"""


@pytest.fixture
async def server() -> AsyncGenerator[FeedServer]:
    async with FeedServer() as server:
        yield server


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FEEDS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FEEDS_STORE", str(tmp_path / "feeds.sqlite"))
    monkeypatch.setenv("FEEDS_HTTP_TIMEOUT", str(PATIENCE))  # the server is in this process, which may stand still


@pytest.fixture
def service(server: FeedServer, monkeypatch: pytest.MonkeyPatch) -> "Service":
    return Service(server, monkeypatch)


class Service:
    """The service as a fresh process would have it: the app reads its environment when imported."""

    def __init__(self, server: FeedServer, patch: pytest.MonkeyPatch) -> None:
        self.server = server
        self._patch = patch

    def harness(self, *paths: str, beats: bool = True, **settings: str) -> Harness[Any]:
        self._patch.setenv("FEEDS_URLS", ", ".join(map(self.server.url, paths)))
        for name, value in settings.items():
            self._patch.setenv(f"FEEDS_{name.upper()}", value)
        sys.modules.pop("services.feeds.app", None)
        app = cast("App[Any]", import_module("services.feeds.app").app)
        return Harness(app, beats=beats, patience=PATIENCE)


def titles(harness: Harness[Any]) -> list[str]:
    return [job.title for job in harness.enqueued(Deliver)]


def kinds_of(outcomes: list[Outcome]) -> list[type[Outcome]]:
    return [type(outcome) for outcome in outcomes]


# The way of an item


async def test_each_minute_each_feed_is_fetched_and_what_is_new_is_delivered(service: Service) -> None:
    pages = service.server.pages
    pages["/a"], pages["/b"] = Page(rss("a2", "a1")), Page(rss("b1"))
    async with service.harness("/a", "/b") as harness:
        at_first = titles(harness)
        pages["/a"] = Page(rss("a4", "a3", "a2", "a1"))
        await harness.advance(minutes=3)

        assert sorted(at_first) == ["About a1", "About a2", "About b1"]
        assert titles(harness)[3:] == ["About a3", "About a4"]
        harness.assert_enqueued(FetchAll, count=4)
        harness.assert_enqueued(FetchFeed, count=8)
        assert harness.outcomes(Deliver) == [Completed()] * 5
        assert harness.outcomes(FetchFeed).count(Completed(Fetched(new=2))) == 2  # of /a: at first, and a minute later
    assert len(service.server.requests) == 8


async def test_a_fetch_is_named_after_its_feed_and_minute(service: Service) -> None:
    service.server.pages["/a"] = Page(rss("a1"))
    harness, ids = service.harness("/a"), list[str]()
    async with harness:
        harness.app.on(JobEnqueued)(lambda event: ids.append(event.envelope.job_id))
        await harness.advance(minutes=2)

    fetches = [job_id for job_id in ids if job_id.startswith("fetch-")]
    assert [job_id.partition("@")[2] for job_id in fetches] == ["2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z"]
    assert len({job_id.partition("@")[0] for job_id in fetches}) == 1


async def test_a_feed_that_has_not_changed_is_not_read_again(service: Service) -> None:
    service.server.pages["/a"] = Page(rss("a1"), etag='"1"')
    async with service.harness("/a") as harness:
        await harness.advance(minutes=2)

        unchanged = Completed(Fetched(new=0, is_unchanged=True))
        assert harness.outcomes(FetchFeed) == [Completed(Fetched(new=1)), unchanged, unchanged]
    assert [request.headers.get("if-none-match", "") for request in service.server.requests] == ["", '"1"', '"1"']


async def test_of_a_feed_that_is_seen_for_the_first_time_only_the_newest_items_are_delivered(service: Service) -> None:
    service.server.pages["/a"] = Page(rss(*(f"a{n}" for n in range(20, 0, -1))))
    async with service.harness("/a") as harness:
        await harness.advance(minutes=1)

        assert titles(harness) == ["About a18", "About a19", "About a20"]


async def test_what_was_seen_is_remembered_when_the_service_starts_again(service: Service) -> None:
    pages = service.server.pages
    for names in (["a1"], ["a2", "a1"]):
        pages["/a"] = Page(rss(*names))
        async with service.harness("/a") as harness:
            delivered = titles(harness)

    assert delivered == ["About a2"]


async def test_when_a_fetch_fails_half_way_no_item_is_lost_and_copies_have_one_id(service: Service) -> None:
    service.server.pages["/a"], enqueued = Page(rss("a2", "a1"), etag='"1"'), list[str]()
    async with service.harness("/a", beats=False) as harness:

        @harness.app.enqueue_middleware
        async def fail_once(envelope: Envelope, following: EnqueueNext) -> Envelope:
            enqueued.append(envelope.job_id)
            if envelope.kind == "feeds.deliver" and len(enqueued) == 3:
                raise UnconfirmedError("as asked")
            return await following(envelope)

        await harness.app.enqueue(FetchFeed.model_validate({"feed": service.server.url("/a")}))
        await harness.drain()

        assert kinds_of(harness.outcomes(FetchFeed)) == [Retrying, Completed]
        assert titles(harness) == ["About a1", "About a1", "About a2"]
    assert enqueued[1] == enqueued[3]
    assert enqueued[2] == enqueued[4]


# What goes wrong


async def test_a_feed_that_is_away_is_tried_again(service: Service) -> None:
    pages = service.server.pages
    pages["/a"] = Page(status=503)
    async with service.harness("/a", every="3600") as harness:
        await harness.advance(seconds=1)
        pages["/a"] = Page(rss("a1"))
        await harness.drain()

        first, second = harness.outcomes(FetchFeed)
        assert isinstance(first, Retrying)
        assert str(first.error) == f"{service.server.url('/a')} answered 503 Service Unavailable"
        assert second == Completed(Fetched(new=1))


async def test_a_feed_that_nobody_serves_is_a_dead_letter_at_last_and_others_go_on(service: Service) -> None:
    service.server.pages["/a"] = Page(rss("a1"))
    async with service.harness("/a", every="3600") as harness:
        gone = FetchFeed.model_validate({"feed": "http://127.0.0.1:1/feed"})
        await harness.app.enqueue(gone)
        await harness.drain()

        assert kinds_of(harness.outcomes(FetchFeed)).count(Dead) == 1
        assert Dead(DeadReason.ATTEMPTS_EXHAUSTED) in harness.outcomes(FetchFeed)
        assert titles(harness) == ["About a1"]


@pytest.mark.parametrize(
    ("page", "words"),
    [
        pytest.param(Page(status=404), "answered 404 Not Found", id="refused"),
        pytest.param(Page(b"<html><body>Sign in</body></html>"), "is no feed", id="a web page"),
        pytest.param(Page(b"\x00\x01"), "is no feed", id="no text"),
        pytest.param(Page(b""), "is no feed", id="nothing"),
        pytest.param(Page(rss(*map(str, range(1000)))), "is larger than 20,000 bytes", id="too large"),
        pytest.param(
            Page(gzip.compress(bytes(100_000)), headers={"Content-Encoding": "gzip"}),
            "is larger than 20,000 bytes",
            id="too large when unpacked",
        ),
        pytest.param(Page(b"not packed", headers={"Content-Encoding": "gzip"}), "cannot be had", id="wrongly packed"),
        pytest.param(Page(status=301, headers={"Location": "/a"}), "cannot be had", id="in a circle"),
    ],
)
async def test_a_feed_that_can_never_be_read_is_a_dead_letter_once_an_hour(
    service: Service, page: Page, words: str
) -> None:
    service.server.pages["/a"] = page
    async with service.harness("/a", max_size="20000") as harness:
        await harness.advance(minutes=59)
        within_an_hour = harness.outcomes(FetchFeed)
        service.server.pages["/a"] = Page(rss("a1"))
        await harness.advance(minutes=2)

        assert within_an_hour == [Dead(DeadReason.NOT_RETRYABLE)]
        assert isinstance(within_an_hour[0], Dead)
        assert isinstance(within_an_hour[0].error, BadFeedError)
        assert words in str(within_an_hour[0].error)
        assert titles(harness) == ["About a1"]


async def test_minutes_that_were_missed_are_not_made_up_for(service: Service) -> None:
    service.server.pages["/a"] = Page(rss("a1"))
    async with service.harness("/a", beats=False) as harness:
        async with harness.beat():
            pass
        await harness.advance(hours=2, seconds=45)
        async with harness.beat():
            await harness.advance(minutes=1)

        harness.assert_enqueued(FetchAll, count=2)


async def test_with_a_webhook_items_are_posted_and_one_that_is_not_taken_is_tried_again(service: Service) -> None:
    pages = service.server.pages
    pages["/a"], pages["/hook"] = Page(rss("a1")), Page(status=503)
    async with service.harness("/a", every="3600", webhook=service.server.url("/hook")) as harness:
        await harness.settle()
        pages["/hook"] = Page()
        await harness.drain()

        assert kinds_of(harness.outcomes(Deliver)) == [Retrying, Completed]
    first, second = service.server.asked("/hook")
    assert json.loads(second.body) == {
        "feed": service.server.url("/a"),
        "title": "About a1",
        "link": "https://news.example.com/a1",
    }
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


# Its parts


def test_items_are_read_with_what_they_have() -> None:
    assert read_items(ATOM, "x") == [
        Item("urn:1", "One & only", "https://news.example.com/1"),
        Item("https://news.example.com/2", "No id", "https://news.example.com/2"),
        Item("No link", "No link", ""),
        Item("urn:5", "Odd link", ""),
    ]


def test_a_feed_that_is_cut_off_gives_what_it_has() -> None:
    whole = rss("a1", "a2", "a3")

    items = read_items(whole[: whole.index(b"About a3")], "x")

    assert [item.name for item in items][:2] == ["a1", "a2"]


def test_a_feed_without_items_is_one() -> None:
    assert read_items(rss(), "x") == []


def test_the_store_forgets_what_its_feed_no_longer_lists(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    old, new = Item("old", "", ""), Item("new", "", "")
    store.remember("feed", Feed([old, new], Stamp()), 0)
    store.remember("feed", Feed([new], Stamp("tag", "date")), KEPT + 1)

    unseen = store.unseen("feed", [old, new], first=0)
    stamp = store.stamp("feed")
    store.close()

    assert unseen == [old]
    assert stamp == Stamp("tag", "date")


def test_settings_say_what_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEEDS_URLS", "https://a.example.com/feed, file:///etc/passwd")

    with pytest.raises(ValidationError, match="URL scheme should be 'http' or 'https'"):
        FeedsSettings()


# As a user runs it


async def test_the_service_runs_with_a_beat_and_delivers(url: str, server: FeedServer, tmp_path: Path) -> None:
    server.pages["/a"] = Page(rss("a1"), etag='"1"')
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("AMQPJOBS_", "FEEDS_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    environment = clean | {"PATH": path, "AMQPJOBS_URL": url, "AMQPJOBS_LOG_FORMAT": "json", "FEEDS_EVERY": "1"}
    environment |= {"FEEDS_URLS": server.url("/a"), "FEEDS_STORE": str(tmp_path / "feeds.sqlite")}
    environment |= {"FEEDS_HTTP_TIMEOUT": str(PATIENCE), "AMQPJOBS_ENQUEUE_TIMEOUT": str(PATIENCE)}

    async def is_remembered() -> bool:
        return any(each.headers.get("if-none-match") == '"1"' for each in server.requests)

    try:
        with Terminal("amqpjobs run services.feeds --beat", ROOT, environment) as terminal:
            assert await asyncio.to_thread(terminal.shows, "About a1  https://news.example.com/a1"), terminal.text
            await eventually(is_remembered)
            server.pages["/a"] = Page(rss("a2", "a1"), etag='"2"')
            assert await asyncio.to_thread(terminal.shows, "About a2  https://news.example.com/a2"), terminal.text
            terminal.signal(signal.SIGTERM)
            assert await asyncio.to_thread(terminal.end) == 0
    finally:
        await _sweep(url)

    # Of fetches that overlap each may find it new, but none that knows of an earlier one.
    assert terminal.text.count("About a1") <= sum("if-none-match" not in each.headers for each in server.requests)


async def _sweep(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for queue in ("queue.feeds", "dead.feeds", "beat.lease.v1.feeds", "beat.register.v1.feeds"):
            await channel.queue_delete(f"amqpjobs.{queue}")
