"""Who is told what. The source is a fake."""

import json
from http import HTTPStatus

import pytest

from amqpjobs.health.messages import Request, Response
from amqpjobs.health.pages import Pages
from amqpjobs.health.report import Report, liveness, readiness

TOKEN = "a-token-of-the-tests"
REASONS = ["queue email: no consumer", "draining"]


class FakeSource:
    def __init__(self, *reasons: str) -> None:
        self.reasons = reasons

    async def live(self) -> Report:
        return liveness(self.reasons)

    async def ready(self) -> Report:
        return readiness(self.reasons)

    async def metrics(self) -> Response:
        return Response(HTTPStatus.OK, b"up 1\n", "text/plain; version=0.0.4")


async def answer(path: str, *reasons: str, token: str | None = None, method: str = "GET", **headers: str) -> Response:
    return await Pages(FakeSource(*reasons), token).answer(Request(method, path, headers))


@pytest.mark.parametrize(
    ("path", "reasons", "status", "body"),
    [
        ("/livez", [], 200, "ok\n"),
        ("/livez", ["the event loop has not turned for 12.3 s"], 503, None),
        ("/readyz", [], 200, "ready\n"),
        ("/readyz", REASONS, 503, "not ready\nqueue email: no consumer\ndraining\n"),
    ],
)
async def test_a_probe_is_answered_by_a_status_and_lines(
    path: str, reasons: list[str], status: int, body: str | None
) -> None:
    response = await answer(path, *reasons)

    assert response.status == status
    assert response.body.decode() == (body or "stalled\nthe event loop has not turned for 12.3 s\n")


async def test_who_accepts_json_gets_it() -> None:
    response = await answer("/readyz", *REASONS, accept="application/json")

    assert response.content_type == "application/json"
    assert json.loads(response.body) == {"status": "not ready", "reasons": REASONS}


@pytest.mark.parametrize("accept", ["text/plain", "application/json"])
async def test_who_does_not_know_the_token_gets_the_status_and_a_word(accept: str) -> None:
    response = await answer("/readyz", *REASONS, token=TOKEN, accept=accept, authorization="Bearer wrong")

    assert response.status == 503
    assert b"not ready" in response.body
    assert b"email" not in response.body


async def test_who_knows_the_token_gets_the_reasons() -> None:
    response = await answer("/readyz", *REASONS, token=TOKEN, authorization=f"Bearer {TOKEN}")

    assert b"queue email" in response.body


async def test_metrics_are_for_those_who_know_the_token() -> None:
    refused = await answer("/metrics", token=TOKEN)
    known = await answer("/metrics", token=TOKEN, authorization=f"Bearer {TOKEN}")
    without_any = await answer("/metrics")

    assert (refused.status, refused.headers) == (401, {"WWW-Authenticate": "Bearer"})
    assert b"up" not in refused.body
    assert known.body == without_any.body == b"up 1\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get", "CONNECT"])
async def test_only_get_and_head_are_answered(method: str) -> None:
    response = await answer("/livez", method=method)

    assert response.status == 405
    assert response.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/", "/livez/", "/../livez", "/metrics/x", "/favicon.ico"])
async def test_any_other_page_is_not_there(path: str) -> None:
    assert (await answer(path)).status == 404


def test_a_reason_is_one_line_and_told_once() -> None:
    assert readiness(["the broker said:\r\n no\x0b", "draining", "draining"]).reasons == (
        "the broker said: no",
        "draining",
    )
