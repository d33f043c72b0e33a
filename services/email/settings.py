"""What the email service is told by its environment: EMAIL_SMTP_URL, EMAIL_SENDER …"""

from pathlib import Path
from typing import Annotated, Self

from pydantic import AnyUrl, EmailStr, Field, Secret, UrlConstraints, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

SmtpUrl = Annotated[AnyUrl, UrlConstraints(allowed_schemes=["smtp", "smtps"], host_required=True)]


class EmailSettings(BaseSettings):
    """All settings of the service. Spans are seconds."""

    model_config = SettingsConfigDict(
        env_prefix="EMAIL_",
        env_ignore_empty=True,
        frozen=True,
        hide_input_in_errors=True,  # the URL has a password in it
    )

    #: smtp://user:password@host:port or smtps://…; a '/', '@' or ':' in the password is written
    #: %2F, %40, %3A. smtp:// uses STARTTLS where offered, and with a password it must be.
    #: None: mails become files in the outbox.
    smtp_url: Secret[SmtpUrl] | None = None
    #: The address that mails come from, and that gets what cannot be delivered.
    sender: EmailStr = "nobody@example.com"
    #: A folder for mails when there is no server; made when the first one is written.
    outbox: Path = Path("outbox")
    #: How long the server may take for each answer.
    smtp_timeout: float = Field(default=15, gt=0)
    #: The wait after the first failure; it doubles with each further one, up to an hour.
    retry_delay: float = Field(default=30, ge=0)

    @model_validator(mode="after")
    def _has_a_sender_of_its_own(self) -> Self:
        if self.smtp_url is not None and "sender" not in self.model_fields_set:
            raise ValueError("EMAIL_SMTP_URL is set, so EMAIL_SENDER must say whom the mails come from")
        return self
