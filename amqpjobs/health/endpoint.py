"""The endpoint as a whole: where it listens and for whom, and what it begins and ends."""

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Self

from amqpjobs.clock import Clock, SystemClock, end_task
from amqpjobs.errors import AmqpJobsError, SettingsError
from amqpjobs.health.own import Exposed, Own, Subject, looking
from amqpjobs.health.pages import Pages, Source
from amqpjobs.health.pulse import Pulse
from amqpjobs.health.server import Server
from amqpjobs.settings import place_of
from amqpjobs.telemetry.prometheus import exposition

_log = logging.getLogger(__name__)


class HealthEndpoint:
    """Tells the health of workers and beats over HTTP while it is entered: `/livez`, `/readyz` and `/metrics`.

    `address` is such as "127.0.0.1:8080"; with port 0 the system chooses one, and `port` tells which. Enter it before
    what it tells of, so that it can tell that this waits for the broker, and so that it is measured for `/metrics`.
    Raises SettingsError for an address that is none or is taken, and for one beyond this machine without a `token`.
    """

    def __init__(self, *subjects: Subject, address: str, token: str | None = None) -> None:
        self._subjects = subjects
        self._address = address
        self._token = token
        self._clock = SystemClock()
        self._stack = AsyncExitStack()
        self.port = 0

    async def __aenter__(self) -> Self:
        pulse = Pulse(self._clock, looking(self._subjects))
        source = Own(self._subjects, pulse, _exposed(), self._clock)
        self.port = await self._stack.enter_async_context(
            serving(source, pulse, address=self._address, token=self._token, clock=self._clock)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def serving(
    source: Source, pulse: Pulse, *, address: str, token: str | None, clock: Clock
) -> AsyncGenerator[int]:
    """Serve what a source knows, and take the pulse of this event loop. Yields the port. Raises SettingsError."""
    listener = _listening(address, token)
    port = int(listener.getsockname()[1])
    server = Server(listener, Pages(source, token).answer, clock)
    server.start()
    beating = asyncio.create_task(pulse.beat(), name="amqpjobs health")
    _log.info("health is told", extra={"address": address, "port": port})
    try:
        yield port
    finally:
        await end_task(beating)
        await asyncio.to_thread(server.stop)


def _listening(address: str, token: str | None) -> socket.socket:
    try:
        host, port = place_of(address)
    except ValueError as error:
        raise SettingsError(f"AMQPJOBS_HEALTH: {error}.") from None
    if token is None and not is_loopback(host):
        raise SettingsError(
            f"AMQPJOBS_HEALTH: {address} can be reached from beyond this machine, so it needs AMQPJOBS_HEALTH_TOKEN, "
            "which protects reasons and metrics. Set that, or use 127.0.0.1."
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise SettingsError(
            f"AMQPJOBS_HEALTH: nobody can listen at {address} ({_cause(error)}). "
            "Choose an address of this machine and a port that is free; each process needs its own."
        ) from error


def _cause(error: OSError) -> str:
    """What the system says; Python adds the address to it, which we have told."""
    return str(error.strerror or error).partition(" (while")[0]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _exposed() -> Exposed | str:
    """The metrics, or why there are none: for a worker that is no reason not to work."""
    try:
        return exposition()
    except AmqpJobsError as error:
        return str(error)
