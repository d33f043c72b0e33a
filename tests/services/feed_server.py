"""A small web server of feeds for the tests, on a free port and in the test's own event loop."""

import asyncio
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

WORDS = {200: "OK", 301: "Moved Permanently", 304: "Not Modified", 404: "Not Found", 503: "Service Unavailable"}


def rss(*names: str) -> bytes:
    """A feed with items of these names, the first one on top."""
    items = "".join(
        f"<item><guid>{name}</guid><title>About {name}</title><link>https://news.example.com/{name}</link></item>"
        for name in names
    )
    return f'<?xml version="1.0"?><rss version="2.0"><channel><title>News</title>{items}</channel></rss>'.encode()


@dataclass
class Request:
    """What a client asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Page:
    """What is answered: the body, or 304 to who has it already."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    etag: str = ""


class FeedServer:
    """Answers with `pages` by their paths, 404 to anything else, and keeps the requests."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[Request] = []
        self._server: asyncio.Server | None = None
        self._port = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._port}{path}"

    def asked(self, path: str) -> list[Request]:
        """The requests for a path."""
        return [request for request in self.requests if request.path == path]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
            method, path, _ = head[0].split(" ")
            fields = (line.partition(":") for line in head[1:] if line)
            headers = {name.lower(): said.strip() for name, _, said in fields}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            request = Request(method, path, headers, body)
            self.requests.append(request)
            writer.write(self._page_for(request))
            await writer.drain()
        finally:
            writer.close()

    def _page_for(self, request: Request) -> bytes:
        page = self.pages.get(request.path, Page(status=404))
        if page.etag and request.headers.get("if-none-match") == page.etag:
            page = Page(status=304, etag=page.etag)
        headers = {"Content-Length": str(len(page.body)), "Connection": "close", **page.headers}
        if page.etag:
            headers["ETag"] = page.etag
        lines = [
            f"HTTP/1.1 {page.status} {WORDS[page.status]}",
            *(f"{name}: {said}" for name, said in headers.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + page.body
