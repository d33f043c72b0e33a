from contextlib import suppress
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amqpjobs.health.messages import BadRequestError, Request, Response, request_of, told, written

TOKEN = "a-token-of-the-tests"


def test_a_request_has_a_method_a_path_and_headers() -> None:
    request = request_of(b"GET /readyz?verbose HTTP/1.1\r\nHost: here\r\nACCEPT:  application/json \r\n\r\n")

    assert (request.method, request.path) == ("GET", "/readyz")
    assert request.headers == {"host": "here", "accept": "application/json"}
    assert request.wants_json


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"GET\r\n\r\n",
        b"GET /livez\r\n\r\n",
        b"GET /livez HTTP/2\r\n\r\n",
        b"GET http://elsewhere/ HTTP/1.1\r\n\r\n",
        b"GET  /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n: no name\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nName : blank before its colon\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused(head: bytes) -> None:
    with pytest.raises(BadRequestError):
        request_of(head)


@given(st.binary())
def test_whatever_comes_is_a_request_or_refused(head: bytes) -> None:
    with suppress(BadRequestError):
        request_of(head)


def test_without_a_token_anybody_may_know() -> None:
    assert Request("GET", "/").is_authorized(None)


@pytest.mark.parametrize(
    ("given", "may"),
    [
        (None, False),
        ("", False),
        (TOKEN, False),
        (f"Bearer {TOKEN}", True),
        (f"bearer  {TOKEN}", True),
        (f"Bearer {TOKEN}x", False),
        (f"Bearer {TOKEN[:-1]}", False),
        ("Bearer ", False),
        ("Bearer \xe9", False),
        (f"Basic {TOKEN}", False),
    ],
)
def test_with_a_token_only_who_knows_it(given: str | None, may: bool) -> None:
    headers = {} if given is None else {"authorization": given}

    assert Request("GET", "/", headers).is_authorized(TOKEN) is may


def test_a_response_says_how_long_it_is_and_that_nobody_may_keep_it() -> None:
    raw = written(Response(HTTPStatus.OK, b"ready\n"))

    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 6\r\n" in head
    assert b"Cache-Control: no-store" in head
    assert body == b"ready\n"


def test_the_answer_to_head_is_the_head() -> None:
    response = told(HTTPStatus.METHOD_NOT_ALLOWED, "No.", Allow="GET, HEAD")

    raw = written(response, with_body=False)

    assert raw.endswith(b"\r\nAllow: GET, HEAD\r\n\r\n")
    assert b"Content-Length: 4\r\n" in raw
