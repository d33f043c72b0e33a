"""Real SMTP servers for the tests, on free ports and in the test's own event loop."""

import asyncio
import ssl
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple, Self

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.support.terminal import PATIENCE


class Mail(NamedTuple):
    """What came over the wire."""

    sender: str
    recipients: list[str]
    content: bytes


class MailServer:
    """Answers the first recipients with `refusals`, and every mail after those with `verdict`.

    `starttls` is the context to offer STARTTLS with, `tls` the one to speak TLS from the start.
    """

    def __init__(
        self,
        refusals: Iterable[str] = (),
        *,
        verdict: str = "250 queued as 4711",
        port: int = 0,
        starttls: ssl.SSLContext | None = None,
        tls: ssl.SSLContext | None = None,
        offers_login: bool = False,
        accepts_login: bool = True,
        knows_utf8: bool = True,
    ) -> None:
        #: The mails taken and not yet looked at.
        self.mails = asyncio.Queue[Mail]()
        #: How many recipients were named so far, refused ones too.
        self.recipients = 0
        #: The logins tried, as (user, password).
        self.logins: list[tuple[str, str]] = []
        #: Cleared, the server keeps mails and does not say so.
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.port = port
        self._refusals = iter(refusals)
        self._starttls, self._tls = starttls, tls
        self._verdict = verdict
        self._offers_login, self._accepts_login = offers_login, accepts_login
        self._knows_utf8 = knows_utf8
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._session, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def next_mail(self) -> Mail:
        """The next mail, awaited."""
        async with asyncio.timeout(PATIENCE):
            return await self.mails.get()

    def _session(self) -> SMTP:
        return SMTP(
            self,
            hostname="mail.example.com",
            enable_SMTPUTF8=self._knows_utf8,
            loop=asyncio.get_running_loop(),
            tls_context=self._starttls,
            authenticator=self._authenticate if self._offers_login else None,
            auth_require_tls=False,
        )

    def _authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, login: Any
    ) -> AuthResult:
        assert isinstance(login, LoginPassword)
        self.logins.append((login.login.decode(), login.password.decode()))
        return AuthResult(success=self._accepts_login, handled=False)

    # Called by aiosmtpd, by these names.

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        self.recipients += 1
        refusal = next(self._refusals, None)
        if refusal is not None:
            return refusal
        envelope.rcpt_tos.append(address)
        return "250 recipient fine"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        assert envelope.mail_from is not None
        self.mails.put_nowait(Mail(envelope.mail_from, envelope.rcpt_tos, envelope.content))
        await self.may_answer.wait()
        return self._verdict
