"""Mails over HTTP: a request enqueues, `services.email` sends.

202 says that the broker has the job. Anything else says what to do: 422 and 413 mend the
request; 503 send it again after the seconds in Retry-After, under the same Idempotency-Key,
since the first may have been enqueued after all. The mails then share a Message-ID.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from amqpjobs import App, EnqueueError, TooLargeError
from services.email.jobs import SendEmail

RETRY_AFTER = 5

log = logging.getLogger(__name__)
app = App("api")  # it enqueues only; a worker has nothing to do here


class Accepted(BaseModel):
    """A mail that will be sent."""

    job_id: str


class Problem(BaseModel):
    """Why a mail was not accepted."""

    detail: str


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    """One connection for all requests. It is made, and made again, while they are served."""
    async with app:
        yield


api = FastAPI(title="Mails", lifespan=lifespan)


@api.post("/mails", status_code=202, responses={413: {"model": Problem}, 503: {"model": Problem}})
async def send_mail(
    mail: SendEmail,
    idempotency_key: Annotated[str | None, Header(pattern=r"^[\x20-\x7e]{1,255}$")] = None,
) -> Accepted:
    """Enqueue a mail; the job has the Idempotency-Key as its id, or one of its own."""
    handle = await app.enqueue(mail, job_id=idempotency_key, deadline=3)
    return Accepted(job_id=handle.job_id)


@api.exception_handler(EnqueueError)
async def not_accepted(_: Request, error: Exception) -> JSONResponse:
    """The broker is away, too slow, or has no queue for mails; or the mail is too large."""
    log.warning("A mail was not accepted: %s", error)
    if isinstance(error, TooLargeError):
        return JSONResponse({"detail": str(error)}, status_code=413)
    return JSONResponse(
        {"detail": "Mails cannot be taken at the moment."}, status_code=503, headers={"Retry-After": str(RETRY_AFTER)}
    )
