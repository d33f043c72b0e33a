"""The email service: it sends what others enqueue.

A mail that the server refuses for good (5xx) is dead-lettered at once, with the server's
words; whatever else goes wrong is tried again. A job can run twice, for example when its
worker dies just after the server took the mail; both mails then have one Message-ID.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from amqpjobs import App, JobContext, exponential
from services.email.jobs import Receipt, SendEmail
from services.email.mail import compose
from services.email.sender import OutboxSender, PermanentError, Sender, SmtpSender
from services.email.settings import EmailSettings

log = logging.getLogger(__name__)
settings = EmailSettings()


@dataclass(frozen=True, slots=True)
class State:
    """What handlers share while a worker lives."""

    sender: Sender


@asynccontextmanager
async def lifespan() -> AsyncGenerator[State, None]:
    """Around a worker's life. A sender keeps nothing open, so there is nothing to close."""
    yield State(sender=choose_sender())


app = App(
    "email",
    lifespan=lifespan,
    retry=exponential(settings.retry_delay).on(PermanentError, None),  # 30 s, 1, 2, 4 min … 1 h
)


@app.handler(SendEmail)
async def send_email(job: SendEmail, ctx: JobContext[State]) -> Receipt:
    mail = compose(job, sender=settings.sender, job_id=ctx.job_id)
    answer = await ctx.state.sender.send(mail)
    return Receipt(message_id=mail["Message-ID"], answer=answer)


def choose_sender() -> Sender:
    """By SMTP if a server is set, else into files."""
    if settings.smtp_url is None:
        log.warning("EMAIL_SMTP_URL is not set: mails are written to %s", settings.outbox.resolve())
        return OutboxSender(settings.outbox)
    return SmtpSender(settings.smtp_url, timeout=settings.smtp_timeout)
