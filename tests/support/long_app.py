"""A service whose jobs take longer than the interval of their schedule, for workers in processes of their own.

LONG_APP names it, LONG_APP_LEDGER the file in which each run notes its start and its end.
"""

import asyncio
import os
from pathlib import Path

from amqpjobs import App, Job, JobContext

NAME = os.environ.get("LONG_APP", "long")
#: Seconds that a job takes.
SECONDS = 1.5

app = App(NAME)


class Long(Job[None], kind=f"{NAME}.long"):
    pass


def note(word: str, job_id: str) -> None:
    """One line in the ledger; whole, also when many processes write."""
    with Path(os.environ["LONG_APP_LEDGER"]).open("a") as ledger:
        ledger.write(f"{word} {job_id}\n")


@app.handler(Long)
async def work(job: Long, context: JobContext[None]) -> None:
    note("start", context.job_id)
    await asyncio.sleep(SECONDS)
    note("end", context.job_id)
