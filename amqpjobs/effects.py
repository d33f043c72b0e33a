"""What else is published because of an outcome, before the job is acked.

An effect is pure: it looks at the envelope and its outcome and says what to publish. The
worker publishes and confirms all of it, and acks only then. A crash in between runs the job
again, and publishes again: effects carry ids that tell a copy.
"""

from collections.abc import Callable, Sequence

from amqpjobs.envelope import Envelope
from amqpjobs.outcome import Outcome
from amqpjobs.wire import Publication

Effect = Callable[[Envelope, Outcome], Sequence[Publication]]


def follow_ups(effects: Sequence[Effect], envelope: Envelope, outcome: Outcome) -> list[Publication]:
    """All that the effects want published."""
    return [publication for effect in effects for publication in effect(envelope, outcome)]
