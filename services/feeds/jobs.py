"""The jobs of the feeds service: one a minute for all, one for each feed, one for each new item."""

from typing import Annotated

from pydantic import BaseModel, HttpUrl, StringConstraints

from amqpjobs import Job

Line = Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)]


class Fetched(BaseModel):
    """What became of a look at a feed."""

    #: Items that were not seen before, and are to be delivered.
    new: int
    #: Whether the server said that nothing had changed.
    is_unchanged: bool = False


class FetchAll(Job[int], kind="feeds.fetch_all", max_attempts=3, timeout=30):
    """Have each feed fetched; how many there are."""


class FetchFeed(Job[Fetched], kind="feeds.fetch", max_attempts=3, timeout=30):
    """Fetch a feed, and have what is new in it delivered."""

    feed: HttpUrl


class Deliver(Job[None], kind="feeds.deliver", max_attempts=10, timeout=30):
    """Deliver an item of a feed."""

    feed: HttpUrl
    title: Line
    link: str = ""
