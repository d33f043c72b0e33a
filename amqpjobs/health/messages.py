"""As much of HTTP as the endpoint needs: the head of a request, and a response after which the connection is closed."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


class BadRequestError(Exception):
    """What came is no request."""


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request; nobody reads a body."""

    method: str
    path: str
    #: By their names in small letters.
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def is_authorized(self, token: str | None) -> bool:
        """Whether it knows the token; without one, anybody does."""
        if token is None:
            return True
        scheme, _, given = self.headers.get("authorization", "").partition(" ")
        # In constant time, and of bytes: it refuses to compare text that is not ASCII.
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())

    @property
    def wants_json(self) -> bool:
        return JSON in self.headers.get("accept", "").lower()


@dataclass(frozen=True, slots=True)
class Response:
    status: HTTPStatus
    body: bytes
    content_type: str = TEXT
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def told(status: HTTPStatus, text: str, **headers: str) -> Response:
    """A response of one sentence."""
    return Response(
        status, f"{text}\n".encode(), headers={name.replace("_", "-"): each for name, each in headers.items()}
    )


def request_of(head: bytes) -> Request:
    """What the bytes up to the empty line say. Raises BadRequestError."""
    first, *rest = head.decode("latin-1").strip("\r\n").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[1].startswith("/") or not words[2].startswith("HTTP/1."):
        raise BadRequestError("This is no HTTP/1.1 request.")
    headers = dict[str, str]()
    for line in rest:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadRequestError("A header has no name.")
        headers[name.lower()] = value.strip()
    return Request(words[0], words[1].partition("?")[0], headers)


def written(response: Response, *, with_body: bool = True) -> bytes:
    """The bytes of a response. What is served must not be kept by anybody on the way."""
    fields = {
        "Content-Type": response.content_type,
        "Content-Length": str(len(response.body)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Connection": "close",
        **response.headers,
    }
    lines = [f"HTTP/1.1 {response.status.value} {response.status.phrase}", *(f"{k}: {v}" for k, v in fields.items())]
    head = "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n"
    return head + response.body if with_body else head
