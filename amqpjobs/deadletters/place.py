"""The places where messages wait for a person: the dead letters of each queue, `unroutable` and `parked`."""

from dataclasses import dataclass
from enum import StrEnum

from amqpjobs.errors import AmqpJobsError


class LetterError(AmqpJobsError):
    """A place or a file of dead letters is not what it should be."""


class PlaceName(StrEnum):
    """The kinds of places."""

    #: What ended without success, of one queue.
    DEAD = "dead"
    #: Delayed jobs that no queue wanted when they were due.
    UNROUTABLE = "unroutable"
    #: Jobs that wait for a first worker of their kind.
    PARKED = "parked"


@dataclass(frozen=True, slots=True)
class Place:
    """One of the places; dead letters have one for each queue."""

    name: PlaceName
    queue: str = ""

    def __str__(self) -> str:
        return f"dead letters of {self.queue}" if self.name is PlaceName.DEAD else self.name.value


def dead_of(queue: str) -> Place:
    """The dead letters of a queue."""
    return Place(PlaceName.DEAD, queue)


UNROUTABLE, PARKED = Place(PlaceName.UNROUTABLE), Place(PlaceName.PARKED)
