"""Ask an endpoint, as `amqpjobs status` and a supervisor do. Light: a probe starts a Python for it."""

import asyncio
from dataclasses import dataclass

from amqpjobs.clock import Clock

#: Where processes of one machine find each other.
HERE = "127.0.0.1"
#: Bytes of an answer; a thousand kinds have some megabytes of metrics.
LONGEST = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    content_type: str
    body: bytes


async def ask(
    host: str, port: int, path: str, *, token: str | None, within: float, clock: Clock, accept: str
) -> Answer:
    """One GET. Raises OSError when nobody listens, TimeoutError, and ValueError for what is no answer."""
    async with clock.timeout(within):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            right = f"Authorization: Bearer {token}\r\n" if token else ""
            place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {place}\r\nAccept: {accept}\r\n{right}\r\n".encode("latin-1"))
            return _answer_of(await _all_of(reader))
        finally:
            writer.transport.abort()


def reachable(host: str) -> str:
    """Where to ask whoever listens on this host; on all addresses means on this machine's own, too."""
    return {"0.0.0.0": HERE, "::": "::1"}.get(host, host)


async def _all_of(reader: asyncio.StreamReader) -> bytes:
    parts, size = list[bytes](), 0
    while part := await reader.read(65_536):
        parts.append(part)
        size += len(part)
        if size > LONGEST:
            raise ValueError(f"The answer has more than {LONGEST} bytes.")
    return b"".join(parts)


def _answer_of(raw: bytes) -> Answer:
    head, gap, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if not gap or not words[0].startswith("HTTP/1.") or len(words) < 2 or not words[1].isdecimal():
        raise ValueError("What came is no answer of HTTP.")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("content-length", str(len(body))) != str(len(body)):
        raise ValueError("The answer ended too soon.")
    return Answer(int(words[1]), headers.get("content-type", ""), body)
