"""Bring a mail on its way: by SMTP, or as a file where there is no server.

What went wrong is told apart by its class, and `app.py` says what each means for the job.
"""

import asyncio
from email.message import EmailMessage
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

import aiosmtplib
from pydantic import Secret

from services.email.settings import SmtpUrl


class TemporaryError(Exception):
    """The server does not take this mail now; it may later (4xx). With the server's words."""


class PermanentError(Exception):
    """The server will never take this mail (5xx). With the server's words."""


class Sender(Protocol):
    """Sends mails, by whatever way."""

    async def send(self, mail: EmailMessage) -> str:
        """Returns the words with which the mail was taken."""
        ...


class SmtpSender:
    """Hands each mail to one SMTP server."""

    def __init__(self, url: Secret[SmtpUrl], *, timeout: float) -> None:
        self._url = url
        self._timeout = timeout

    async def send(self, mail: EmailMessage) -> str:
        """The server's answer. Raises TemporaryError, PermanentError, or what the connection raises.

        Only what the server says about the mail is judged. A greeting or login that it refuses
        is the fault of our settings: such errors are aiosmtplib's own, and pass.
        """
        try:
            return await self._deliver(mail)
        except aiosmtplib.SMTPRecipientsRefused as error:
            raise _judged(error.recipients[0]) from error
        except (aiosmtplib.SMTPSenderRefused, aiosmtplib.SMTPDataError) as error:
            raise _judged(error) from error
        except aiosmtplib.SMTPNotSupported as error:  # an address such as jörg@…, which not all know
            raise PermanentError(error.message) from error

    async def _deliver(self, mail: EmailMessage) -> str:
        url = self._url.get_secret_value()
        # A connection for each mail. One connection carries one mail at a time, and jobs run
        # side by side; servers hang up on idle ones; and nothing is left of a mail that failed.
        _, answer = await aiosmtplib.send(
            mail,
            hostname=(url.host or "").strip("[]"),  # of an IPv6 address
            port=url.port,
            username=unquote(url.username) if url.username else None,
            password=unquote(url.password) if url.password else None,
            use_tls=url.scheme == "smtps",
            # None: when offered. A password never goes out in the clear, whatever is offered.
            start_tls=True if url.password and url.scheme == "smtp" else None,
            timeout=self._timeout,
        )
        return answer


class OutboxSender:
    """Writes each mail to a folder, as a file that mail programs can open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def send(self, mail: EmailMessage) -> str:
        """Where the mail is. A second run of one job writes the same file again."""
        file = self._folder / f"{mail['Message-ID'].strip('<>')}.eml"
        await asyncio.to_thread(_write, file, bytes(mail))
        return f"written to {file}"


def _judged(answer: aiosmtplib.SMTPResponseException) -> TemporaryError | PermanentError:
    words = f"{answer.code} {answer.message}"
    return PermanentError(words) if answer.code >= 500 else TemporaryError(words)


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
