"""Who may have killed a worker, by what the broker has counted. Pure but for a short memory.

When a worker dies, the broker counts one more delivery for all that it held, started or not;
before RabbitMQ 4.3 it counts a hand-back too. So the count is no proof, but whoever killed a
worker has one: those deliveries are suspects, and run where their death costs nobody else.
"""

from collections.abc import Iterable

from amqpjobs.envelope import Envelope
from amqpjobs.errors import ProcessDiedError
from amqpjobs.outcome import Dead, DeadReason, Retrying
from amqpjobs.wire import Delivery

#: Came back so often from workers: a dead letter, not run again. It takes a job that kills its
#: worker and the worker's children at once, as when a container's memory ends. 25 rolling
#: restarts by SIGTERM and as many by SIGKILL give every waiting job 50.
MOST_RETURNS = 100
#: From so many returns on a delivery waits before it may run: 1, 2, 4 … 60 s.
PAUSED_FROM = 5
LONGEST_PAUSE = 60.0
#: Messages whose return was nobody's fault that are remembered; the oldest is forgotten.
REMEMBERED = 10_000
#: Seconds a job waits at least after its n-th crash: 1, 2, 4 … 60.
LONGEST_BACKOFF = 60.0
#: As many crashes as the wire can say.
MOST_CRASHES = 2**31 - 1


def returns_of(delivery: Delivery) -> int:
    """How often the broker got it back, as far as it counts that: 0 at first."""
    if not delivery.redelivered:
        return 0
    headers = delivery.properties.headers
    count = headers.get("x-delivery-count")
    if isinstance(count, int):
        return max(0, count)
    # 4.3 counts what was handed back there instead; a classic queue counts nothing.
    return 0 if "x-acquired-count" in headers else 1


class Suspicion:
    """What a worker knows of the deliveries that come back to it."""

    def __init__(self) -> None:
        self._pardons: dict[str, int] = {}

    def pardon(self, held: Iterable[Delivery]) -> None:
        """Their channel closed under us. We live, so it was none of them; the broker counts it all the same."""
        for delivery in held:
            message = delivery.properties.message_id
            if message is not None:
                self._pardons[message] = self._pardons.pop(message, 0) + 1
        while len(self._pardons) > REMEMBERED:
            del self._pardons[next(iter(self._pardons))]

    def against(self, delivery: Delivery) -> int:
        """How many returns of it may have been deaths of workers."""
        returns = returns_of(delivery)
        return max(0, returns - self._pardons.get(delivery.properties.message_id or "", 0)) if returns else 0


def pause_before(returns: int) -> float:
    """Seconds to wait before what came back so often may run; none for what shall not run again."""
    if not PAUSED_FROM <= returns < MOST_RETURNS:
        return 0.0
    return min(LONGEST_PAUSE, 2.0 ** min(returns - PAUSED_FROM, 16))


def given_up(returns: int) -> Dead | None:
    """The end of what came back too often to be run once more."""
    if returns < MOST_RETURNS:
        return None
    return Dead(
        DeadReason.ATTEMPTS_EXHAUSTED,
        ProcessDiedError(
            f"It came back {returns} times from workers that died, stopped or lost their connection, and never ended. "
            "If it takes their whole container down (out of memory?), give that more memory or the job less to do."
        ),
    )


def convicted(envelope: Envelope, runs: int) -> Envelope:
    """After so many runs that ended with their process; the last of them is not yet counted as an attempt."""
    return envelope.evolve(attempt=envelope.attempt + runs - 1, crashes=min(envelope.crashes + runs, MOST_CRASHES))


def slowed(outcome: Retrying | Dead, crashes: int) -> Retrying | Dead:
    """Not sooner after a crash than its number allows, whatever the policy says: a process costs a second."""
    if isinstance(outcome, Dead):
        return outcome
    return Retrying(max(outcome.delay, min(LONGEST_BACKOFF, 2.0 ** min(crashes - 1, 16))), outcome.error)
