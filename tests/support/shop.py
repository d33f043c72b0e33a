"""A service as its owner has it: a module in a folder, and a shell in that folder."""

from pathlib import Path

from tests.support.apps import NAMESPACE
from tests.support.terminal import Shell

SHOP = """
import asyncio
from pydantic import SecretStr
from amqpjobs import App, Job, JobContext

class Order(Job[int], kind="{name}.order"):
    number: int
    token: SecretStr = SecretStr("")

app = App("{name}")

@app.handler(Order, max_attempts=1)
async def order(job: Order, ctx: JobContext[None]) -> int:
    ctx.log.info("ordering %d", job.number)
    if job.number < 0:
        raise ValueError("negative \\x1b[31m\\nforged line")
    await asyncio.sleep(job.number)
    return job.number
"""


class Shop(Shell):
    """A shell beside the service `shop`, whose app and queue have this name."""

    def __init__(self, name: str, folder: Path, url: str) -> None:
        super().__init__(folder, AMQPJOBS_URL=url, AMQPJOBS_NAMESPACE=NAMESPACE)
        self.name = name
        (folder / "shop.py").write_text(SHOP.replace("{name}", name))
