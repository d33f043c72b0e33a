"""A service with a schedule of one second, for beats in processes of their own; BEAT_APP names it.

With BEAT_FORGETS set a beat publishes ticks and never writes down that it has.
"""

import asyncio
import os

from amqpjobs import App, Job
from amqpjobs.amqp.register import Register
from tests.support.ticks import Each

NAME = os.environ.get("BEAT_APP", "beats")


async def hang(register: Register, change: bytes) -> None:
    await asyncio.Event().wait()


if os.environ.get("BEAT_FORGETS"):
    setattr(Register, "amend", hang)  # noqa: B010  (it is no method of ours)


class Second(Job[None], kind=f"{NAME}.second"):
    pass


app = App(NAME)
app.schedule(Each(1), job=Second(), name="second")
