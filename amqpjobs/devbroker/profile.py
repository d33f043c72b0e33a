"""In what RabbitMQ's versions differ, as far as a client sees it."""

from dataclasses import dataclass
from enum import Enum

from amqpjobs.devbroker.returns import Return


class Priorities(Enum):
    """What a quorum queue makes of a message's priority."""

    #: One order for all.
    NONE = "none"
    #: Two classes, of which the higher one goes first two times out of three.
    TWO = "two"
    #: 0 to 31, strictly.
    STRICT = "strict"


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """A version to behave like."""

    version: str
    #: Of quorum queues without x-delivery-limit.
    delivery_limit: int | None
    priorities: Priorities
    #: Whether a delivery that is handed back unstarted (nack) counts towards the limit.
    does_nack_count: bool
    #: What counts as a failure, which a message keeps on its way through further quorum queues.
    failures: frozenset[Return]
    #: The same of classic queues: what failed in one is redelivered in its next queue.
    classic_failures: frozenset[Return]
    #: Whether a higher priority takes over from the single active consumer of a quorum queue.
    does_priority_take_over: bool
    #: Whether a direct reply counts as routed; before, a mandatory one is returned although it was delivered.
    are_replies_routed: bool
    #: Whether a header tells how often a message was lent out, beside how often that failed.
    has_acquired_count: bool
    #: Whether x-delivery-limit: -1 means none; before, it was at once.
    is_negative_limit_none: bool
    #: Whether x-death headers that a publisher sends count as deaths, and x-last-death-* are not written.
    are_deaths_headers: bool
    #: A prefetch for a whole channel, and values of x-queue-mode and x-queue-version.
    has_deprecated: bool
    #: Whether x-consumer-timeout is looked at, on queues of both types.
    has_queue_timeout: bool
    #: Whether quorum queues know x-consumer-timeout as their own, and take back what a consumer held too long,
    #: and classic queues let everybody hold everything; before, the channel is closed.
    has_consumer_timeout: bool
    #: x-queue-leader-locator on classic queues.
    has_classic_locator: bool
    largest_message: int
    #: Whether properties count towards a quorum queue's x-max-length-bytes, as large as they were published.
    has_heavy_properties: bool = False
    #: What texts about basic.get call a quorum queue.
    quorum_name: str = "quorum"


_MIB = 1024 * 1024

V3_10 = Profile(
    version="3.10.8",
    delivery_limit=None,
    priorities=Priorities.NONE,
    does_nack_count=True,
    failures=frozenset(Return),
    classic_failures=frozenset(),
    does_priority_take_over=False,
    are_replies_routed=False,
    has_acquired_count=False,
    is_negative_limit_none=False,
    are_deaths_headers=True,
    has_deprecated=True,
    has_queue_timeout=False,
    has_consumer_timeout=False,
    has_classic_locator=False,
    largest_message=128 * _MIB,
)
V4_0 = Profile(
    version="4.0.5",
    delivery_limit=20,
    priorities=Priorities.TWO,
    does_nack_count=True,
    failures=frozenset({Return.LOST, Return.DISCARDED, Return.REFUSED}),
    classic_failures=frozenset(),
    does_priority_take_over=True,
    are_replies_routed=False,
    has_acquired_count=False,
    is_negative_limit_none=True,
    are_deaths_headers=False,
    has_deprecated=True,
    has_queue_timeout=True,
    has_consumer_timeout=False,
    has_classic_locator=True,
    largest_message=16 * _MIB,
)
V4_3 = Profile(
    version="4.3.6",
    delivery_limit=20,
    priorities=Priorities.STRICT,
    does_nack_count=False,
    failures=frozenset({Return.LOST, Return.REJECTED, Return.REFUSED}),
    classic_failures=frozenset({Return.REJECTED, Return.REFUSED}),
    does_priority_take_over=True,
    are_replies_routed=True,
    has_acquired_count=True,
    is_negative_limit_none=True,
    are_deaths_headers=False,
    has_deprecated=False,
    has_queue_timeout=True,
    has_consumer_timeout=True,
    has_classic_locator=True,
    largest_message=16 * _MIB,
    has_heavy_properties=True,
    quorum_name='<<"quorum">>',
)
#: By the names they are asked for.
PROFILES = {"3.10": V3_10, "4.0": V4_0, "4.3": V4_3}


def profile(name: str) -> Profile:
    """The profile of a version such as `4.0`. Raises `ValueError` for one that is not known."""
    if name not in PROFILES:
        raise ValueError(f"There is no profile {name!r}. Choose one of {', '.join(PROFILES)}.")
    return PROFILES[name]
