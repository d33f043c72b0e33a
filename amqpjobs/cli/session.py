"""What the topology commands share: a connection, its vhost, and all that an app needs."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from amqpjobs.amqp.connection import CLIENT_ERRORS, Session, open_session, told
from amqpjobs.amqp.declare import Declarer
from amqpjobs.app import App
from amqpjobs.definitions import together
from amqpjobs.permissions import infrastructure
from amqpjobs.settings import Settings
from amqpjobs.topology import Plan


def whole(app: App[Any]) -> Plan:
    """All that an app needs, what it shares with others first."""
    return together([infrastructure(app.topology), app.plan()])


def vhost_of(settings: Settings) -> str:
    """The vhost of the broker's URL; none is the default one."""
    return unquote(urlsplit(settings.urls[0]).path[1:]) or "/"


@asynccontextmanager
async def connected(app: App[Any]) -> AsyncGenerator[tuple[Session, Declarer]]:
    """A connection of an app's, and who declares on it."""
    url = app.settings.urls[0]
    session = await open_session(url, app.settings, "topology")
    try:
        yield session, Declarer(app.topology, app.events)
    except (*CLIENT_ERRORS, TimeoutError) as error:
        raise told(error, url) from error
    finally:
        await session.close()
