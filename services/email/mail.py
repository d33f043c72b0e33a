"""Make a mail of a job. Nothing is sent here."""

from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from urllib.parse import quote

from services.email.jobs import SendEmail


def compose(job: SendEmail, *, sender: str, job_id: str) -> EmailMessage:
    """The mail of a job. Its Message-ID is the job's, so a second run makes no second mail."""
    mail = EmailMessage(policy=SMTP)
    mail["From"] = sender
    mail["To"] = job.to
    mail["Subject"] = job.subject
    mail["Date"] = datetime.now(UTC)
    mail["Message-ID"] = message_id(job_id, sender)
    if job.reply_to is not None:
        mail["Reply-To"] = job.reply_to
    mail.set_content(job.body)
    if job.html is not None:
        mail.add_alternative(job.html, subtype="html")
    return mail


def message_id(job_id: str, sender: str) -> str:
    """`<job id@sender's domain>`, the id quoted: whoever enqueues may choose any text for it."""
    domain = sender.rpartition("@")[2]
    return f"<{quote(job_id, safe='')}@{domain}>"
