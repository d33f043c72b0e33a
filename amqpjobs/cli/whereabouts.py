"""Where the broker of `amqpjobs dev` is.

A configured URL, always and only; else a RabbitMQ that answers on localhost; else nowhere, and then
an embedded one may take its place. Who is refused there, or finds the configured one dead, is told so:
falling back would hide the mistake. `run` and `beat` do not ask here, and know the first two alone.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from urllib.parse import urlsplit

from amqpjobs.amqp.connection import open_session
from amqpjobs.clock import Clock
from amqpjobs.errors import AccessRefusedError, BrokerUnavailableError
from amqpjobs.settings import DEFAULT_URL, Settings

#: Seconds that a RabbitMQ on localhost has to answer.
PROBE = 2.0
#: What the embedded broker says about itself.
_NO_RABBITMQ = "it is not RabbitMQ"


@dataclass(frozen=True, slots=True)
class Found:
    """A broker that answers."""

    url: str
    #: What it says it is.
    name: str
    is_configured: bool
    #: Whether it is the embedded one of another process.
    is_embedded: bool


@dataclass(frozen=True, slots=True)
class Nowhere:
    """No broker is configured, and none is on localhost."""

    #: What listens there instead and is none; "" when the port is free.
    instead: str = ""


async def find_broker(settings: Settings, clock: Clock, default: str = DEFAULT_URL) -> Found | Nowhere:
    """Look once. `default` is looked at when no URL is configured. Raises BrokerError."""
    return await _configured(settings) if settings.names_broker else await _local(settings, clock, default)


async def _configured(settings: Settings) -> Found:
    last: BrokerUnavailableError | None = None
    for url in settings.urls:
        try:
            return await _asked(url, settings, is_configured=True)
        except BrokerUnavailableError as error:
            last = error
    assert last is not None
    raise BrokerUnavailableError(
        f"{last} That is the configured one, and no other is tried: start it, or take AMQPJOBS_URL (in "
        "pyproject.toml: url) away, for a RabbitMQ on localhost or the embedded broker."
    ) from last


async def _local(settings: Settings, clock: Clock, url: str) -> Found | Nowhere:
    if not await _listens(url, clock):
        return Nowhere()
    try:
        return await _asked(url, settings.model_copy(update={"connect_timeout": PROBE}), is_configured=False)
    except BrokerUnavailableError as error:
        return Nowhere(str(error))
    except AccessRefusedError as error:
        raise AccessRefusedError(
            f"{error} It was tried because no URL is configured and it is on localhost; the embedded broker does not "
            "take its place. To have that one all the same: `amqpjobs broker --port 0`, and set AMQPJOBS_URL to it."
        ) from error


async def _asked(url: str, settings: Settings, *, is_configured: bool) -> Found:
    session = await open_session(url, settings, "dev")
    try:
        return Found(url, session.broker, is_configured, _NO_RABBITMQ in session.information)
    finally:
        await session.close()


async def _listens(url: str, clock: Clock) -> bool:
    """Whether anything does, a broker or not."""
    place = urlsplit(url)
    try:
        async with clock.timeout(PROBE):
            _, writer = await asyncio.open_connection(place.hostname, place.port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
