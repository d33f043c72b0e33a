from collections.abc import Sequence

from amqpjobs.effects import follow_ups
from amqpjobs.envelope import Envelope
from amqpjobs.outcome import Cancelled, Completed, Outcome
from amqpjobs.wire import Properties, Publication
from tests.unit.making import envelope


def publication(key: str) -> Publication:
    return Publication(exchange="e", routing_key=key, body=b"", properties=Properties())


def when_completed(envelope: Envelope, outcome: Outcome) -> Sequence[Publication]:
    return [publication("result")] if isinstance(outcome, Completed) else []


def always_two(envelope: Envelope, outcome: Outcome) -> Sequence[Publication]:
    return [publication("one"), publication(envelope.kind)]


def test_all_that_the_effects_want_is_published_in_their_order() -> None:
    wanted = follow_ups([when_completed, always_two], envelope(), Completed())

    assert [each.routing_key for each in wanted] == ["result", "one", "probe"]


def test_an_effect_looks_at_the_outcome() -> None:
    wanted = follow_ups([when_completed], envelope(), Cancelled())

    assert wanted == []
