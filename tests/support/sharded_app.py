"""An app with a sharded queue, for worker processes: each run is noted in a file, in the form of `fleet.Ledger`."""

import asyncio
import json
import os
from pathlib import Path

from amqpjobs import App, Job, JobContext, Queue, Retry, fixed

OPTIONS = "SHARDED_APP_OPTIONS"
SHARDS = 8
options: dict[str, str] = json.loads(os.environ[OPTIONS])
name = options["name"]
app = App(name, queues=[Queue(name, shards=SHARDS)], retry=fixed(0.1))


class Step(Job[None], kind=f"{name}.step", shard_by="key"):
    """The n-th of its key."""

    key: int
    n: int
    #: Whether its first attempt fails.
    fails: bool = False

    @property
    def name(self) -> str:
        return f"{self.key}-{self.n}"


@app.handler(Step)
async def step(job: Step, ctx: JobContext[None]) -> None:
    note("run", job, ctx)
    await asyncio.sleep(0.005)
    if job.fails and ctx.attempt == 1:
        raise Retry(delay=0.1)
    note("done", job, ctx)


def note(word: str, job: Step, context: JobContext[None]) -> None:
    """One line; whole, also when many processes write."""
    with (Path(options["folder"]) / "ledger").open("a") as ledger:
        ledger.write(f"{word} {job.name} {context.attempt} {os.getpid()}\n")
