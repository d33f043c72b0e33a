"""Nothing that a client sends, or does not, keeps the health endpoint from answering others. No broker is needed."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, suppress
from http import HTTPStatus

import httpx
import psutil
import pytest

from amqpjobs import HealthEndpoint
from amqpjobs.clock import SystemClock
from amqpjobs.health import server
from amqpjobs.health.endpoint import serving
from amqpjobs.health.messages import Response
from amqpjobs.health.pulse import Pulse
from amqpjobs.health.report import Report, liveness, readiness
from tests.support.broker import PATIENCE, eventually

HOST = "127.0.0.1"
MUCH = 64 * 1024 * 1024


class Source:
    async def live(self) -> Report:
        return liveness([])

    async def ready(self) -> Report:
        return readiness(["the database is away"])

    async def metrics(self) -> Response:
        return Response(HTTPStatus.OK, b"x" * MUCH)


class Broken(Source):
    async def live(self) -> Report:
        raise ZeroDivisionError


@pytest.fixture
async def port() -> AsyncGenerator[int]:
    clock = SystemClock()
    async with serving(Source(), Pulse(clock, lambda: None), address=f"{HOST}:0", token=None, clock=clock) as port:
        yield port


async def get(port: int, path: str = "/livez", method: str = "GET") -> httpx.Response:
    async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
        return await client.request(method, f"http://{HOST}:{port}{path}")


async def answer_to(port: int, sent: bytes) -> bytes:
    """All that comes until the endpoint closes."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(sent)
    async with asyncio.timeout(PATIENCE):
        answer = await reader.read()
    writer.close()
    return answer


async def test_it_speaks_http(port: int) -> None:
    live, head, ready = await get(port), await get(port, method="HEAD"), await get(port, "/readyz")

    assert (live.status_code, live.text) == (200, "ok\n")
    assert (head.status_code, head.text, head.headers["content-length"]) == (200, "", "3")
    assert (ready.status_code, ready.text) == (503, "not ready\nthe database is away\n")


async def test_another_method_and_another_page_are_refused(port: int) -> None:
    assert (await get(port, method="POST")).status_code == 405
    assert (await get(port, "/etc/passwd")).status_code == 404


@pytest.mark.parametrize(
    "sent",
    [b"\r\n\r\n", b"\x00" * 100 + b"\r\n\r\n", b"GET /livez\r\n\r\n", b"\x16\x03\x01\xff\xff\r\n\r\n"],
    ids=["nothing", "zeros", "HTTP/0.9", "like TLS"],
)
async def test_garbage_is_answered_as_a_bad_request(sent: bytes, port: int) -> None:
    assert (await answer_to(port, sent)).startswith(b"HTTP/1.1 400 ")
    assert (await get(port)).status_code == 200


async def test_a_huge_header_is_refused_and_not_kept(port: int) -> None:
    huge = b"GET /livez HTTP/1.1\r\nCookie: " + b"x" * 3 * server.LONGEST_HEAD

    assert (await answer_to(port, huge)).startswith(b"HTTP/1.1 431 ")
    assert (await get(port)).status_code == 200


async def test_who_is_slow_is_closed_and_holds_up_nobody(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_WITHIN", 1.0)
    reader, writer = await asyncio.open_connection(HOST, port)

    async def drip() -> None:
        while True:
            writer.write(b"X")
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    await eventually(lambda: is_answered(port))
    async with asyncio.timeout(PATIENCE):
        assert await ended(reader)
    dripping.cancel()
    writer.transport.abort()


async def test_who_does_not_read_its_answer_is_closed(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SERVED_WITHIN", 1.0)
    with socket.create_connection((HOST, port)) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        client.settimeout(PATIENCE)
        ours = client.getsockname()

        async def is_given_up() -> bool:
            return all(each.raddr != ours for each in psutil.Process().net_connections("tcp4"))

        await eventually(lambda: is_answered(port))  # who came after it was let in, and so was it
        await eventually(is_given_up)
        assert await asyncio.to_thread(size_of_all, client) < MUCH


def size_of_all(client: socket.socket) -> int:
    size = 0
    with suppress(ConnectionResetError):
        while part := client.recv(1024 * 1024):
            size += len(part)
    return size


async def test_of_too_many_that_say_nothing_the_oldest_give_way(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("HEAD_WITHIN", "SERVED_WITHIN"):  # they do not give way because they are slow
        monkeypatch.setattr(server, limit, 10 * PATIENCE)
    async with AsyncExitStack() as stack:
        silent = list[asyncio.StreamReader]()
        for _ in range(3 * server.MOST):
            reader, writer = await asyncio.open_connection(HOST, port)
            stack.callback(writer.close)
            silent.append(reader)

        answers = await asyncio.gather(*(get(port) for _ in range(3)))

        async def first_are_closed() -> bool:
            return all(each.at_eof() or each.exception() is not None for each in silent[: server.MOST])

        await eventually(first_are_closed)
    assert [each.status_code for each in answers] == [200] * 3


async def test_who_goes_away_harms_nobody(port: int) -> None:
    for sent in (b"", b"GET /li", b"GET /metrics HTTP/1.1\r\n\r\n"):
        _, writer = await asyncio.open_connection(HOST, port)
        writer.write(sent)
        writer.transport.abort()

    assert (await get(port)).status_code == 200


async def test_a_bug_is_answered_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    clock = SystemClock()
    async with serving(Broken(), Pulse(clock, lambda: None), address=f"{HOST}:0", token=None, clock=clock) as port:
        assert (await get(port)).status_code == 500

    assert "could not be answered" in caplog.text


async def test_it_ends_with_those_who_are_connected(port: int) -> None:
    clock = SystemClock()
    async with serving(Source(), Pulse(clock, lambda: None), address=f"{HOST}:0", token=None, clock=clock) as other:
        reader, writer = await asyncio.open_connection(HOST, other)
        await get(other)

    async with asyncio.timeout(PATIENCE):
        assert await ended(reader)
    writer.transport.abort()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(HOST, other)


async def test_in_python_it_is_entered_around_what_it_tells_of() -> None:
    class Patient:
        def look(self) -> None: ...
        def troubles(self) -> list[str]:
            return ["it has a cold"]

    client = httpx.AsyncClient(timeout=PATIENCE, trust_env=False)
    async with client, HealthEndpoint(Patient(), address="[::1]:0") as endpoint:
        response = await client.get(f"http://[::1]:{endpoint.port}/readyz")

    assert response.text == "not ready\nit has a cold\n"


async def is_answered(port: int) -> bool:
    """Once: where a second is all the time there is, a busy machine may let it go by."""
    with suppress(httpx.TransportError):
        return (await get(port)).status_code == 200
    return False


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether nothing more comes; waits for that."""
    with suppress(ConnectionResetError):
        while await reader.read(65_536):
            pass
    return True
