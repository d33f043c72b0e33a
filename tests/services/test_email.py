"""The email service with real parts: RabbitMQ, SMTP servers, and at the end its own processes."""

import asyncio
import json
import logging
import os
import shutil
import signal
import ssl
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from importlib import import_module
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import aio_pika
import pytest
from pydantic import ValidationError

from amqpjobs import App, Worker
from amqpjobs.events import JobEnded
from amqpjobs.outcome import Completed, Dead, DeadReason, Outcome, Retrying
from services.email.jobs import Receipt, SendEmail
from services.email.mail import compose
from services.email.sender import PermanentError, TemporaryError
from services.email.settings import EmailSettings
from tests.services.mail_server import MailServer
from tests.support.rabbitmq import free_ports
from tests.support.terminal import PATIENCE

ROOT = Path(__file__).parents[2]
QUEUE, DEAD_QUEUE = "amqpjobs.queue.email", "amqpjobs.dead.email"

GREETING = SendEmail(
    to="ann@example.com",
    subject="Grüße aus Zürich 🎉",
    body="Hällo Ann,\n.\nthe line above is a dot.\n",
    html="<p>Hällo Ann</p>",
    reply_to="bob@example.com",
)


@pytest.fixture(autouse=True)
def environment(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the service is told; its processes inherit it."""
    for name in [name for name in os.environ if name.startswith("EMAIL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AMQPJOBS_URL", url)
    monkeypatch.setenv("AMQPJOBS_ENQUEUE_TIMEOUT", str(PATIENCE))
    monkeypatch.setenv("EMAIL_SENDER", "jobs@shop.example.com")
    monkeypatch.setenv("EMAIL_OUTBOX", str(tmp_path / "outbox"))
    monkeypatch.setenv("EMAIL_RETRY_DELAY", "0.1")
    monkeypatch.setenv("EMAIL_SMTP_TIMEOUT", str(PATIENCE))


@pytest.fixture(autouse=True)
async def own_queues(url: str) -> AsyncGenerator[None, None]:
    """The service's queues go with each test, and what a failed one left in them."""
    yield
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for queue in (QUEUE, DEAD_QUEUE):
            await channel.queue_delete(queue)


class Service:
    """The service in this process: its app, and how each attempt ended."""

    def __init__(self, app: App[Any]) -> None:
        self.app = app
        self._outcomes = asyncio.Queue[Outcome]()
        app.on(JobEnded)(lambda event: self._outcomes.put_nowait(event.outcome))

    async def outcome(self) -> Outcome:
        """The next attempt's outcome, awaited."""
        async with asyncio.timeout(PATIENCE):
            return await self._outcomes.get()


@asynccontextmanager
async def working(smtp_url: str = "") -> AsyncGenerator[Service, None]:
    """A worker of the service, as a fresh process would have it: the app reads its environment when imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMAIL_SMTP_URL", smtp_url)
        sys.modules.pop("services.email.app", None)
        service = Service(cast("App[Any]", import_module("services.email.app").app))
        async with Worker(service.app):
            yield service


async def dead_letter(url: str) -> dict[str, Any]:
    """The headers of the first dead letter."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue(DEAD_QUEUE)
        message = await queue.get(no_ack=True)
        return dict(message.headers)


def parsed(content: bytes) -> EmailMessage:
    return message_from_bytes(content, policy=default)


def text_of(mail: EmailMessage, subtype: str) -> str:
    part = mail.get_body((subtype,))
    assert part is not None
    return cast("str", part.get_content())


# The way of a mail


async def test_a_mail_arrives_as_it_was_enqueued() -> None:
    async with MailServer() as server, working(f"smtp://127.0.0.1:{server.port}") as service:
        await service.app.enqueue(GREETING, job_id="greeting-7")
        came = await server.next_mail()
        outcome = await service.outcome()

    mail = parsed(came.content)
    assert came[:2] == ("jobs@shop.example.com", ["ann@example.com"])
    assert b"\r\nSubject: =?utf-8?" in came.content
    assert mail["Subject"] == "Grüße aus Zürich 🎉"
    assert (mail["From"], mail["To"]) == ("jobs@shop.example.com", "ann@example.com")
    assert mail["Reply-To"] == "bob@example.com"
    assert mail["Message-ID"] == "<greeting-7@shop.example.com>"
    assert mail["Date"].datetime.tzinfo is not None
    assert text_of(mail, "plain").replace("\r\n", "\n") == GREETING.body
    assert text_of(mail, "html").strip() == GREETING.html
    assert outcome == Completed(Receipt(message_id="<greeting-7@shop.example.com>", answer="queued as 4711"))


async def test_a_mail_that_the_server_puts_off_arrives_on_the_third_attempt() -> None:
    server = MailServer(repeat("451 4.7.1 greylisted, come back later", 2))

    async with server, working(f"smtp://127.0.0.1:{server.port}") as service:
        handle = await service.app.enqueue(GREETING)
        came = await server.next_mail()
        outcomes = [await service.outcome() for _ in range(3)]

    assert server.recipients == 3
    assert parsed(came.content)["Message-ID"] == f"<{handle.job_id}@shop.example.com>"
    assert [type(outcome) for outcome in outcomes] == [Retrying, Retrying, Completed]
    assert isinstance(outcomes[0], Retrying)
    assert isinstance(outcomes[0].error, TemporaryError)
    assert str(outcomes[0].error) == "451 4.7.1 greylisted, come back later"


async def test_a_mail_refused_for_good_is_dead_lettered_with_the_servers_words(url: str) -> None:
    server = MailServer(repeat("550 5.1.1 no such user here"))

    async with server, working(f"smtp://127.0.0.1:{server.port}") as service:
        handle = await service.app.enqueue(GREETING)
        outcome = await service.outcome()
        letter = await dead_letter(url)

    assert server.recipients == 1
    assert isinstance(outcome, Dead)
    assert isinstance(outcome.error, PermanentError)
    assert letter["amqpjobs-id"] == handle.job_id
    assert letter["amqpjobs-dead-reason"] == DeadReason.NOT_RETRYABLE
    assert letter["amqpjobs-dead-error"] == "PermanentError: 550 5.1.1 no such user here"


async def test_a_mail_whose_content_is_refused_for_good_is_dead_lettered(url: str) -> None:
    server = MailServer(verdict="554 5.7.1 we take no advertisements")

    async with server, working(f"smtp://127.0.0.1:{server.port}") as service:
        await service.app.enqueue(GREETING)
        outcome = await service.outcome()
        letter = await dead_letter(url)

    assert isinstance(outcome, Dead)
    assert letter["amqpjobs-dead-error"] == "PermanentError: 554 5.7.1 we take no advertisements"


async def test_an_address_beyond_ascii_arrives_where_the_server_knows_such() -> None:
    mail = GREETING.model_copy(update={"to": "jörg@example.com"})

    async with MailServer() as server, working(f"smtp://127.0.0.1:{server.port}") as service:
        await service.app.enqueue(mail)
        came = await server.next_mail()
    async with (
        MailServer(knows_utf8=False) as server,
        working(f"smtp://127.0.0.1:{server.port}") as service,
    ):
        await service.app.enqueue(mail)
        elsewhere = await service.outcome()

    assert came.recipients == ["jörg@example.com"]
    assert parsed(came.content)["To"] == "jörg@example.com"
    assert isinstance(elsewhere, Dead)
    assert elsewhere.reason is DeadReason.NOT_RETRYABLE


async def test_a_mail_waits_for_a_server_that_is_away() -> None:
    [port] = free_ports(1)

    async with working(f"smtp://127.0.0.1:{port}") as service:
        await service.app.enqueue(GREETING)
        first = await service.outcome()
        async with MailServer(port=port) as server:
            await server.next_mail()

    assert isinstance(first, Retrying)
    assert isinstance(first.error, ConnectionError)


async def test_a_server_that_says_nothing_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMAIL_SMTP_TIMEOUT", "0.2")

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]

    async with silent, working(f"smtp://127.0.0.1:{port}") as service:
        await service.app.enqueue(GREETING, max_attempts=2)
        outcomes = [await service.outcome(), await service.outcome()]

    assert [type(outcome) for outcome in outcomes] == [Retrying, Dead]
    assert all(isinstance(each, Retrying | Dead) and isinstance(each.error, TimeoutError) for each in outcomes)


async def test_without_a_server_a_mail_becomes_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "services.email"):
        async with working() as service:
            for number in range(2):
                await service.app.enqueue(GREETING, job_id=f"greeting-{number}")
                assert isinstance(await service.outcome(), Completed)

    files = sorted((tmp_path / "outbox").iterdir())
    assert [file.name for file in files] == [f"greeting-{n}@shop.example.com.eml" for n in range(2)]
    assert parsed(files[0].read_bytes())["Subject"] == GREETING.subject
    assert text_of(parsed(files[0].read_bytes()), "plain").replace("\r\n", "\n") == GREETING.body
    assert [record.message for record in caplog.records if record.name.startswith("services.email")] == [
        f"EMAIL_SMTP_URL is not set: mails are written to {tmp_path / 'outbox'}"
    ]


# Logins and TLS


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's certificate for 127.0.0.1, which this process trusts."""
    openssl = shutil.which("openssl")
    assert openssl is not None, "this test makes a certificate with the program `openssl`; install it"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run(
        [openssl, *options.split(), "-addext", "subjectAltName=IP:127.0.0.1", *files],
        check=True,
        capture_output=True,
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    return context


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
async def test_a_login_goes_through_tls(scheme: str, certificate: ssl.SSLContext) -> None:
    server = MailServer(
        starttls=certificate if scheme == "smtp" else None,
        tls=certificate if scheme == "smtps" else None,
        offers_login=True,
    )

    async with server, working(f"{scheme}://jobs%40shop:p%2Fw%C3%B6rd@127.0.0.1:{server.port}") as service:
        await service.app.enqueue(GREETING)
        outcome = await service.outcome()

    assert isinstance(outcome, Completed)
    assert server.logins == [("jobs@shop", "p/wörd")]
    assert server.mails.qsize() == 1


async def test_a_refused_login_is_no_fault_of_the_mail(certificate: ssl.SSLContext) -> None:
    server = MailServer(starttls=certificate, offers_login=True, accepts_login=False)

    async with server, working(f"smtp://jobs:old-password@127.0.0.1:{server.port}") as service:
        await service.app.enqueue(GREETING)
        outcome = await service.outcome()

    assert isinstance(outcome, Retrying)
    assert "535" in str(outcome.error)


async def test_a_password_never_goes_out_in_the_clear() -> None:
    server = MailServer(offers_login=True)  # no STARTTLS, or somebody in between has taken the offer out

    async with server, working(f"smtp://jobs:secret@127.0.0.1:{server.port}") as service:
        await service.app.enqueue(GREETING)
        outcome = await service.outcome()

    assert isinstance(outcome, Retrying)
    assert server.logins == []
    assert server.mails.empty()


@pytest.mark.parametrize(
    "smtp_url", ["smtp://jobs:secret@mail:99999", "http://jobs:secret@mail", "smtp://jobs:secret@mail:x"]
)
def test_a_password_is_not_shown(smtp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMAIL_SMTP_URL", smtp_url)

    with pytest.raises(ValidationError) as refused:
        EmailSettings()

    assert "secret" not in str(refused.value)
    monkeypatch.setenv("EMAIL_SMTP_URL", "smtp://jobs:secret@mail")
    assert "secret" not in repr(EmailSettings())


def test_a_server_needs_a_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMAIL_SENDER")
    monkeypatch.setenv("EMAIL_SMTP_URL", "smtp://mail")

    with pytest.raises(ValidationError, match="EMAIL_SENDER must say"):
        EmailSettings()


# The contract

BREAKS = ["a\nBcc: eve@example.com", "a\r\nBcc: eve@example.com", "a\n", "a\r", "a\u2028b", "a\x85b", "a\x00"]


@pytest.mark.parametrize("subject", BREAKS)
def test_a_subject_is_one_line(subject: str) -> None:
    with pytest.raises(ValidationError, match="subject"):
        SendEmail(to="ann@example.com", subject=subject, body="")


@pytest.mark.parametrize("field", ["to", "reply_to"])
@pytest.mark.parametrize(
    "address",
    [
        "ann@example.com\nBcc: eve@example.com",
        "ann@example.com\r\n",
        "ann@example.com, eve@example.com",
        "Ann\nBcc: eve@example.com <ann@example.com>",
        '"ann\n"@example.com',
        "ann@example.com> NOTIFY=NEVER",
    ],
)
def test_an_address_is_one_address(field: str, address: str) -> None:
    with pytest.raises(ValidationError, match=field):
        SendEmail.model_validate({"to": "ann@example.com", "subject": "", "body": "", field: address})


@pytest.mark.parametrize("job_id", ["a\r\nBcc: eve@example.com", "a> <b", "../../etc/passwd", "é 🎉"])
def test_a_job_id_of_any_text_makes_a_message_id(job_id: str) -> None:
    mail = compose(GREETING, sender="jobs@shop.example.com", job_id=job_id)

    headers = bytes(mail).partition(b"\r\n\r\n")[0]
    assert b"\r\nBcc" not in headers
    message_id = parsed(bytes(mail))["Message-ID"]
    assert message_id == mail["Message-ID"]
    assert not set(message_id[1:-1]) & set("<>/ \r\n")


async def test_a_line_break_from_another_language_is_dead_lettered(url: str) -> None:
    payload = {"to": "ann@example.com", "subject": "Hi\r\nBcc: eve@example.com", "body": ""}

    async with MailServer() as server, working(f"smtp://127.0.0.1:{server.port}") as service:
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange("amqpjobs")
            message = aio_pika.Message(json.dumps(payload).encode(), type="email.send")
            await exchange.publish(message, routing_key="email.send")
        outcome = await service.outcome()

    assert isinstance(outcome, Dead)
    assert outcome.reason is DeadReason.INVALID_ARGUMENTS
    assert server.mails.empty()


def test_the_contract_needs_none_of_the_workers_libraries() -> None:
    script = "import sys, services.email.jobs as j; print(sorted({'aiosmtplib', 'aio_pika'} & set(sys.modules)))"

    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)

    assert run.stdout == "[]\n"


# Its own processes


@asynccontextmanager
async def amqpjobs(*arguments: str) -> AsyncGenerator[Process, None]:
    """`amqpjobs …` as a process, which ends with the block at the latest."""
    command = (sys.executable, "-m", "amqpjobs", *arguments)
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE, stderr=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line_of(process: Process, message: str) -> dict[str, Any]:
    """The fields of the next log line with this message, awaited."""
    assert process.stderr is not None
    lines: list[str] = []
    async with asyncio.timeout(PATIENCE):
        async for line in process.stderr:
            lines.append(line.decode())
            if line.startswith(b"{") and (fields := json.loads(line))["message"].startswith(message):
                return cast("dict[str, Any]", fields)
    raise AssertionError(f"no line {message!r}, but:\n{''.join(lines)}")


async def enqueued(*fields: str) -> str:
    """Enqueue by the command line; the job's id."""
    async with amqpjobs("send", "services.email", "email.send", "--json", *fields) as process:
        answer, complaints = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert process.returncode == 0, complaints.decode()
        return cast("str", json.loads(answer)["job_id"])


async def test_the_command_line_sends_a_mail_and_stops_cleanly(monkeypatch: pytest.MonkeyPatch) -> None:
    async with MailServer() as server:
        monkeypatch.setenv("EMAIL_SMTP_URL", f"smtp://127.0.0.1:{server.port}")
        async with amqpjobs("run", "services.email") as worker:
            await line_of(worker, "working")
            job_id = await enqueued("to=ann@example.com", "subject=Grüße 🎉", "body=Hällo = hello")
            came = await server.next_mail()
            completed = await line_of(worker, "completed")
            worker.send_signal(signal.SIGTERM)
            exit_code = await asyncio.wait_for(worker.wait(), PATIENCE)

    assert parsed(came.content)["Subject"] == "Grüße 🎉"
    assert text_of(parsed(came.content), "plain").strip() == "Hällo = hello"
    assert parsed(came.content)["Message-ID"] == f"<{job_id}@shop.example.com>"
    assert (completed["job_id"], completed["attempt"]) == (job_id, 1)
    assert exit_code == 0


async def test_the_command_line_tells_of_the_outbox(tmp_path: Path) -> None:
    async with amqpjobs("run", "services.email") as worker:
        said = await line_of(worker, "EMAIL_SMTP_URL is not set")
        await line_of(worker, "working")
        job_id = await enqueued("to=ann@example.com", "subject=Hi", "body=Hello")
        await line_of(worker, "completed")
        worker.send_signal(signal.SIGTERM)
        exit_code = await asyncio.wait_for(worker.wait(), PATIENCE)

    assert said["message"].endswith(str(tmp_path / "outbox"))
    [file] = (tmp_path / "outbox").iterdir()
    assert file.name == f"{job_id}@shop.example.com.eml"
    assert parsed(file.read_bytes())["To"] == "ann@example.com"
    assert exit_code == 0


async def test_a_job_whose_worker_is_killed_is_sent_again_as_the_same_mail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with MailServer() as server:
        monkeypatch.setenv("EMAIL_SMTP_URL", f"smtp://127.0.0.1:{server.port}")
        server.may_answer.clear()
        async with amqpjobs("run", "services.email") as worker:
            await line_of(worker, "working")
            await enqueued("to=ann@example.com", "subject=Hi", "body=Hello")
            first = await server.next_mail()
            worker.kill()  # the mail is taken, and nobody has told RabbitMQ
            await worker.wait()
        server.may_answer.set()
        async with amqpjobs("run", "services.email") as worker:
            second = await server.next_mail()
            await line_of(worker, "completed")

    assert parsed(first.content)["Message-ID"] == parsed(second.content)["Message-ID"]
