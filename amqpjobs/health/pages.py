"""What the endpoint answers to whom: two probes for anybody, reasons and metrics for those who may know.

A probe of Kubernetes cannot be given a secret easily. So with a token, who does not know it gets the status and a word;
without one, only loopback is served, and who is on this machine may read all.
"""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Protocol

from amqpjobs.health.messages import JSON, Request, Response, told
from amqpjobs.health.report import Report


class Source(Protocol):
    """Who knows."""

    async def live(self) -> Report: ...
    async def ready(self) -> Report: ...
    async def metrics(self) -> Response: ...


class Pages:
    """Answers requests."""

    def __init__(self, source: Source, token: str | None) -> None:
        self._source = source
        self._token = token
        self._probes: Mapping[str, Callable[[], Awaitable[Report]]] = {"/livez": source.live, "/readyz": source.ready}

    async def answer(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return told(HTTPStatus.METHOD_NOT_ALLOWED, "Only GET and HEAD are answered.", Allow="GET, HEAD")
        if (probe := self._probes.get(request.path)) is not None:
            return _shown(await probe(), request, self._token)
        if request.path != "/metrics":
            return told(HTTPStatus.NOT_FOUND, "There are /livez, /readyz and /metrics.")
        if not request.is_authorized(self._token):
            return told(
                HTTPStatus.UNAUTHORIZED,
                "This needs the token of AMQPJOBS_HEALTH_TOKEN, as `Authorization: Bearer TOKEN`.",
                WWW_Authenticate="Bearer",
            )
        return await self._source.metrics()


def _shown(report: Report, request: Request, token: str | None) -> Response:
    status = HTTPStatus.OK if report.is_well else HTTPStatus.SERVICE_UNAVAILABLE
    shown = report if request.is_authorized(token) else report.bare()
    if request.wants_json:
        return Response(status, f"{shown.as_json()}\n".encode(), JSON)
    return Response(status, shown.as_text().encode())
