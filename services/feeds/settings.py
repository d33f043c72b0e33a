"""What the feeds service is told by its environment: FEEDS_URLS, FEEDS_WEBHOOK …"""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, HttpUrl
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def _split(given: object) -> object:
    return [url.strip() for url in given.split(",") if url.strip()] if isinstance(given, str) else given


class FeedsSettings(BaseSettings):
    """All settings of the service. Spans are seconds."""

    model_config = SettingsConfigDict(env_prefix="FEEDS_", env_ignore_empty=True, frozen=True)

    #: The feeds, comma-separated.
    urls: Annotated[tuple[HttpUrl, ...], NoDecode, BeforeValidator(_split)] = ()
    #: Who gets each new item as JSON, by POST: a bot, say. None: items are logged.
    webhook: HttpUrl | None = None
    #: A file that remembers which items were seen; made when the first one is.
    store: Path = Path("feeds.sqlite")
    #: How often each feed is fetched.
    every: float = Field(default=60, ge=1)
    #: How long a server may take for each step.
    http_timeout: float = Field(default=10, gt=0)
    #: Larger feeds are refused, in bytes.
    max_size: int = Field(default=4 * 1024 * 1024, ge=1)
    #: Of a feed that is seen for the first time the newest items are delivered, so many; the others are old.
    first: int = Field(default=3, ge=0)
    #: So long a feed that can never be read is left alone: dead letters for each minute would help nobody.
    mute: float = Field(default=3600, ge=0)
    #: The wait after the first failure; it doubles with each further one, up to a minute.
    retry_delay: float = Field(default=5, ge=0)
