"""One delivery that has begun: what is known of it until it is settled."""

import asyncio

from amqpjobs.envelope import Envelope
from amqpjobs.outcome import Dropped, Outcome
from amqpjobs.wire import Delivery
from amqpjobs.worker.joint import Seat


class Run:
    """One delivery in a slot, which it shares with its batch if it has a seat in one."""

    __slots__ = ("delivery", "envelope", "is_lost", "is_settling", "outcome", "seat", "seconds", "task")

    def __init__(self, delivery: Delivery, seat: Seat | None = None) -> None:
        #: Another one of the same message after a lost channel.
        self.delivery = delivery
        self.seat = seat
        self.envelope: Envelope | None = None
        #: What it came to, and how long that took.
        self.outcome: Outcome | Dropped | None = None
        self.seconds = 0.0
        #: From here on it is left to finish: what it decided must reach the broker.
        self.is_settling = False
        #: Whether it was noticed that its channel is gone.
        self.is_lost = False
        self.task: asyncio.Task[None] | None = None
