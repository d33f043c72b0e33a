"""The contract of the email service: what others enqueue, and what they get back.

Whatever may not be in a mail is refused here, so that the caller learns it, and not a worker
much later.
"""

from typing import Annotated

from pydantic import BaseModel, EmailStr, StringConstraints

from amqpjobs import Job

#: No control characters and no line separators: a line break in a header would start another one.
OneLine = Annotated[str, StringConstraints(pattern=r"^[^\p{Cc}\p{Zl}\p{Zp}]*$")]


class Receipt(BaseModel):
    """A mail that a server has taken."""

    #: The same for every run of one job, by which mail servers and readers can tell a copy.
    message_id: str
    #: The server's own words.
    answer: str


# Ten attempts take three hours: a server that greylists or is full wants minutes, not seconds.
class SendEmail(Job[Receipt], kind="email.send", max_attempts=10, timeout=60):
    """Send one mail to one address."""

    to: EmailStr
    subject: OneLine
    #: Plain text.
    body: str
    #: The same once more, for readers that show HTML.
    html: str | None = None
    reply_to: EmailStr | None = None
