"""A service with a schedule of one second, for beats in processes of their own; BEAT_APP names it."""

import os

from amqpjobs import App, Job
from tests.support.ticks import Each

NAME = os.environ.get("BEAT_APP", "beats")


class Second(Job[None], kind=f"{NAME}.second"):
    pass


app = App(NAME)
app.schedule(Each(1), job=Second(), name="second")
