"""The web service with real parts: uvicorn in a process of its own, HTTP, RabbitMQ."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from amqpjobs import App, Worker
from amqpjobs.settings import load_settings
from services.email.jobs import Receipt, SendEmail
from tests.support.broker import PATIENCE, Letter, eventually, plain_client
from tests.support.rabbitmq import HOST, free_ports

ROOT = Path(__file__).parents[2]
NAMESPACE = "tests"
QUEUE = f"{NAMESPACE}.queue.mails"
MAIL = {"to": "ann@example.com", "subject": "Hello", "body": "How are you?"}


@pytest.fixture
async def mails(url: str) -> AsyncGenerator[None]:
    """A queue that takes mails and is not worked on; removed afterwards."""
    app = App("mails", settings=load_settings(url=url, namespace=NAMESPACE))

    async def send(job: SendEmail) -> Receipt:
        raise NotImplementedError

    app.handler(SendEmail)(send)
    async with Worker(app):
        pass
    yield
    async with plain_client(url) as broker:
        await broker.delete_queue(QUEUE)
        await broker.delete_queue(f"{NAMESPACE}.dead.mails")


@pytest.mark.usefixtures("mails")
async def test_a_posted_mail_is_enqueued_and_its_id_told(url: str) -> None:
    async with serving(url) as http:
        answer = await accepted(http)
        again = await accepted(http, headers={"Idempotency-Key": "order-7"})

    ids, letters = {answer.json()["job_id"], "order-7"}, dict[str, Letter]()
    async with plain_client(url) as broker:
        while not ids <= letters.keys():  # what was answered by 503 may have been enqueued after all
            [letter] = await broker.take(QUEUE, 1)
            letters[letter.text("amqpjobs-id")] = letter
    assert again.json() == {"job_id": "order-7"}
    assert letters["order-7"].kind == "email.send"


@pytest.mark.usefixtures("mails")
@pytest.mark.parametrize(
    "wrong",
    [{"to": "nobody"}, {"subject": "two\nlines"}, {"body": None}, {"body": 7}],
    ids=str,
)
async def test_an_invalid_mail_is_422_and_says_where(url: str, wrong: dict[str, Any]) -> None:
    async with serving(url) as http:
        answer = await http.post("/mails", json=MAIL | wrong)
        key = await http.post("/mails", json=MAIL, headers={"Idempotency-Key": "x" * 256})

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", *wrong]
    assert key.status_code == 422


@pytest.mark.usefixtures("mails")
async def test_a_mail_that_is_too_large_is_413(url: str) -> None:
    async with serving(url, AMQPJOBS_MAX_BODY="1000") as http:
        answer = await http.post("/mails", json=MAIL | {"body": "x" * 2000})

    assert answer.status_code == 413
    assert "1000 are the most" in answer.json()["detail"]


async def test_without_a_broker_it_starts_and_answers_503_with_retry_after(url: str) -> None:
    (port,) = free_ports(1)

    async with serving(f"amqp://guest:secret@{HOST}:{port}/") as http:
        answer = await http.post("/mails", json=MAIL)

    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "5"
    assert "secret" not in answer.text


async def test_what_it_takes_and_answers_is_described(url: str) -> None:
    async with serving(url) as http:
        described = (await http.get("/openapi.json")).json()

    assert set(described["paths"]["/mails"]["post"]["responses"]) == {"202", "413", "422", "503"}
    assert set(described["components"]["schemas"]["SendEmail"]["required"]) == {"to", "subject", "body"}


async def accepted(http: httpx.AsyncClient, headers: dict[str, str] | None = None) -> httpx.Response:
    """Of the first mail that is: 503 says that a broker was slow, and to send it again."""
    answers = list[httpx.Response]()

    async def is_answered() -> bool:
        answers.append(await http.post("/mails", json=MAIL, headers=headers))
        return answers[-1].status_code != 503

    await eventually(is_answered, within=2 * PATIENCE)
    assert answers[-1].status_code == 202
    return answers[-1]


@asynccontextmanager
async def serving(url: str, **environment: str) -> AsyncGenerator[httpx.AsyncClient]:
    """The service on a free port; it must end well."""
    (port,) = free_ports(1)
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", "services.api.app:api", "--host", HOST, "--port", str(port)),
        cwd=ROOT,
        env={**os.environ, "AMQPJOBS_URL": url, "AMQPJOBS_NAMESPACE": NAMESPACE, **environment},
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://{HOST}:{port}", timeout=PATIENCE) as http:
            await eventually(lambda: answers(http, server), within=2 * PATIENCE)
            yield http
        server.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            assert await server.wait() in (0, -signal.SIGTERM)  # uvicorn ends by the signal that stopped it
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()


async def answers(http: httpx.AsyncClient, server: Process) -> bool:
    assert server.returncode is None
    try:
        return (await http.get("/openapi.json")).is_success
    except httpx.TransportError:
        return False
