"""Fetch a feed and read it. What may succeed later is a FeedAwayError, what cannot a BadFeedError."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from typing import Any, cast

import httpx

#: The library has no types. From a file it reads without asking the network or the disk, as it would for a text.
_parse = cast("Callable[[BytesIO], Mapping[str, Any]]", import_module("feedparser").parse)
#: Answers that are no fault of ours or of the feed's, beside all of 500 and more.
PASSING = (408, 425, 429)
LONGEST_ID = 2000


class FeedAwayError(Exception):
    """The feed cannot be had now."""


class BadFeedError(Exception):
    """Nobody is to get it, it is too large, or it is no feed."""


@dataclass(frozen=True, slots=True)
class Item:
    """An entry of a feed."""

    #: What its feed calls it; the same each time.
    name: str
    title: str
    link: str


@dataclass(frozen=True, slots=True)
class Stamp:
    """By what a server can tell whether a feed has changed since."""

    etag: str = ""
    modified: str = ""


@dataclass(frozen=True, slots=True)
class Feed:
    """As it was fetched, the newest items first, as a rule."""

    items: Sequence[Item]
    stamp: Stamp


async def fetch_feed(client: httpx.AsyncClient, url: str, stamp: Stamp, *, max_size: int) -> Feed | None:
    """The feed, or None if it is as it was. Raises FeedAwayError or BadFeedError."""
    asked = {"If-None-Match": stamp.etag, "If-Modified-Since": stamp.modified}
    try:
        async with client.stream("GET", url, headers={name: said for name, said in asked.items() if said}) as answer:
            if answer.status_code == 304:
                return None
            _check(answer, url)
            content = await _content(answer, url, max_size)
    except httpx.TransportError as error:
        raise FeedAwayError(f"{url} cannot be reached: {error!r}") from error
    except (httpx.TooManyRedirects, httpx.DecodingError) as error:
        raise BadFeedError(f"{url} cannot be had: {error}") from error
    # In a thread, since it may take a second, in which others go on.
    items = await asyncio.to_thread(read_items, content, url)
    return Feed(items, Stamp(answer.headers.get("etag", ""), answer.headers.get("last-modified", "")))


def read_items(content: bytes, url: str) -> list[Item]:
    """The items of a feed. Raises BadFeedError if it is none."""
    parsed = _parse(BytesIO(content))
    entries = cast("Sequence[Mapping[str, Any]]", parsed["entries"])
    if not parsed.get("version") or (parsed.get("bozo") and not entries):
        raise BadFeedError(f"{url} is no feed: {parsed.get('bozo_exception') or 'it has no entries of a known kind'}")
    found = (_item(entry) for entry in entries)
    return list({item.name: item for item in found if item is not None}.values())


def _item(entry: Mapping[str, Any]) -> Item | None:
    link, title = str(entry.get("link", "")), str(entry.get("title", ""))
    name = str(entry.get("id") or link or title)[:LONGEST_ID]
    if not name:
        return None
    return Item(name, title[:500] or "(no title)", link if link.startswith(("http://", "https://")) else "")


def _check(answer: httpx.Response, url: str) -> None:
    words = f"{url} answered {answer.status_code} {answer.reason_phrase}".rstrip()
    if answer.status_code >= 500 or answer.status_code in PASSING:
        raise FeedAwayError(words)
    if not answer.is_success:
        raise BadFeedError(words)


async def _content(answer: httpx.Response, url: str, max_size: int) -> bytes:
    content = bytearray()
    async for chunk in answer.aiter_bytes():
        content += chunk
        if len(content) > max_size:
            raise BadFeedError(f"{url} is larger than {max_size:,} bytes.")
    return bytes(content)
