"""Mails in the traces of a back end, as a user switches them on: by the commands of `docs/traces.md`, in processes.

The back end is a sink that reads OTLP's protobuf. How it looks on a page is to be seen in `docs/email-trace.png`.
"""

import asyncio
import json
import re
import signal
import tomllib
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement

from tests.services.mail_server import MailServer
from tests.services.test_api import accepted
from tests.support.broker import PATIENCE, eventually, plain_client
from tests.support.rabbitmq import free_ports
from tests.support.terminal import Shell, Terminal
from tests.support.traces import Sink, Told, Tree

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/traces.md").read_text()
ENDPOINT = "http://localhost:4318"
QUEUE, DEAD_QUEUE = "amqpjobs.queue.email", "amqpjobs.dead.email"
BUSY = "451 4.7.1 Busy, please come back later"
MAIL = {"to": "ann@example.com", "subject": "Hello", "body": "How are you?"}
#: Spans are sent when their process ends, and not by chance before that.
WHEN_IT_ENDS = "600000"


@pytest.fixture
def sink() -> Generator[Sink]:
    with Sink() as sink:
        yield sink


@pytest.fixture
async def shell(url: str, sink: Sink) -> AsyncGenerator[Shell]:
    """One in which the lines were typed that the document begins with, for this back end."""
    yield Shell(
        ROOT,
        AMQPJOBS_URL=url,
        AMQPJOBS_LOG_FORMAT="text",
        AMQPJOBS_ENQUEUE_TIMEOUT=str(PATIENCE),
        EMAIL_SENDER="jobs@shop.example.com",
        EMAIL_RETRY_DELAY="0.1",
        OTEL_EXPERIMENTAL_RESOURCE_DETECTORS="process",
        OTEL_BSP_SCHEDULE_DELAY=WHEN_IT_ENDS,
        OTEL_EXPORTER_OTLP_TIMEOUT=str(PATIENCE),  # the sink is in this process, which may stand still
        **{name: value.replace(ENDPOINT, sink.url) for name, value in exported().items()},
    )
    async with plain_client(url) as broker:
        for queue in (QUEUE, DEAD_QUEUE):
            await broker.delete_queue(queue)


def exported() -> dict[str, str]:
    """The variables that the document has one export."""
    return dict(re.findall(r"^export (\w+)=(\S+)$", DOCUMENT, re.MULTILINE))


def typed(words: str) -> str:
    """The document's command with these words in it."""
    [command] = re.findall(rf"^\$ (.*opentelemetry-instrument {words}.*)$", DOCUMENT, re.MULTILINE)
    return str(command)


@asynccontextmanager
async def working(shell: Shell, server: MailServer, options: str = "") -> AsyncGenerator[Terminal]:
    """The service, until it has ended well at the end of the block."""
    command = f"{typed('amqpjobs run')} {options}"
    with shell.type(command, EMAIL_SMTP_URL=f"smtp://127.0.0.1:{server.port}") as worker:
        assert await asyncio.to_thread(worker.shows, "working … queues=email"), worker.text
        yield worker
        worker.signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.end) == 0, worker.text


def in_order(sink: Sink) -> list[Told]:
    return sorted(sink.spans.values(), key=lambda each: each.start)


@pytest.mark.parametrize("options", ["", "--processes 2"])
async def test_a_mail_that_fails_once_is_one_trace_from_the_command_to_the_second_attempt(
    shell: Shell, sink: Sink, options: str
) -> None:
    async with MailServer([BUSY]) as server, working(shell, server, options) as worker:
        code, text = await asyncio.to_thread(shell.run, typed("amqpjobs send"))
        assert code == 0, text
        await server.next_mail()
        assert await asyncio.to_thread(worker.shows, "completed … attempt=2"), worker.text

    spans = in_order(sink)
    delay = dict(spans[1].events)["amqpjobs.retry"]["amqpjobs.delay"]
    to, failed = "amqpjobs:email.send", f"!TemporaryError({BUSY})"
    assert Tree(spans, {"0.1": str(delay)}).text == (
        f"A1 send {to} PRODUCER id=job-1\n"
        f"  A2 process {to}:{QUEUE} CONSUMER ERROR attempt=1 error.type=TemporaryError id=job-1 outcome=retrying "
        f"{failed} !retry(delay=0.1) -enqueue->A1\n"
        f"  A3 process {to}:{QUEUE} CONSUMER attempt=2 id=job-1 outcome=completed -enqueue->A1 -previous_attempt->A2\n"
    )
    assert [each.service for each in spans] == ["shop", "email", "email"]
    assert str(spans[0].attributes["amqpjobs.job.id"]) in text
    assert f"trace_id={spans[0].trace_id:032x}" in worker.text
    assert "messaging.client.sent.messages" in sink.metrics["shop"]
    assert "amqpjobs.job.outcomes" in sink.metrics["email"]


async def test_a_mail_of_the_web_service_is_traced_from_there(shell: Shell, sink: Sink) -> None:
    [port] = free_ports(1)
    # The signal that stops uvicorn kills it in the end: what it has not sent by then is lost.
    at_once = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_SERVICE_NAME": "api"}
    command = f"opentelemetry-instrument uvicorn services.api.app:api --port {port}"

    async with MailServer() as server, working(shell, server) as worker:
        with shell.type(command, **at_once) as api:
            assert await asyncio.to_thread(api.shows, "Uvicorn running"), api.text
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as http:
                job_id = (await accepted(http)).json()["job_id"]
            await eventually(lambda: has_spans(sink, "send", job_id))
        assert await asyncio.to_thread(worker.shows, f"completed … {job_id}"), worker.text

    # FastAPI may make spans of its own, and a mail that was not accepted has some.
    sent, processed = [each for each in in_order(sink) if is_of(each, "send", job_id) or is_of(each, "process", job_id)]
    assert (sent.service, processed.service) == ("api", "email")
    assert processed.parent_id == sent.span_id


async def test_processes_of_the_workers_send_theirs_too(shell: Shell, sink: Sink, url: str) -> None:
    suspicious = {"amqpjobs-crashes": 1}

    async with MailServer() as server, working(shell, server) as worker, plain_client(url) as broker:
        body = json.dumps(MAIL).encode()
        await broker.publish("amqpjobs", "email.send", body, kind="email.send")
        await broker.publish("amqpjobs", "email.send", body, kind="email.send", headers=suspicious)
        for _ in range(2):
            await server.next_mail()

    ordinary, apart = in_order(sink)
    assert ordinary.service == apart.service == "email"
    assert ordinary.pid != apart.pid
    assert worker.text.count(" completed ") == 2


async def test_a_back_end_that_is_away_costs_no_mail_and_no_clean_end(shell: Shell, sink: Sink) -> None:
    [port] = free_ports(1)
    shell.environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}

    async with MailServer() as server, working(shell, server) as worker:
        code, text = await asyncio.to_thread(shell.run, typed("amqpjobs send"))
        assert code == 0, text
        await server.next_mail()
        assert await asyncio.to_thread(worker.shows, "completed"), worker.text

    assert "Failed to export" in worker.text
    assert sink.spans == {}


def test_the_extra_has_what_the_commands_need() -> None:
    assert "pip install 'amqpjobs[otel]'" in DOCUMENT

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["optional-dependencies"]["otel"]:
        needed = Requirement(line)
        assert needed.specifier.contains(version(needed.name), prereleases=True), line


async def has_spans(sink: Sink, start: str, job_id: str) -> bool:
    return any(is_of(each, start, job_id) for each in list(sink.spans.values()))


def is_of(span: Told, start: str, job_id: str) -> bool:
    return span.name.startswith(start) and span.attributes.get("amqpjobs.job.id") == job_id
