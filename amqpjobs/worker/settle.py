"""Turn an outcome into broker actions: the only room that settles a job's delivery.

What follows (a retry, a dead letter, what effects want) is published and confirmed before
the ack. A crash between the two runs the job again, and that is our promise: at least once,
never lost. Who awaits the job's result is answered then, and of a tick its beat is told the
end: last of all before the ack, and no reason to keep the job when nobody is there to hear.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from amqpjobs.amqp.publisher import Publisher
from amqpjobs.clock import Clock
from amqpjobs.codec import (
    ERROR_BUDGET,
    TRACEBACK_BUDGET,
    as_it_came,
    clip,
    encode,
    milliseconds,
    traceback_of,
    within_budget,
    words_of,
)
from amqpjobs.effects import Effect, follow_ups
from amqpjobs.envelope import Envelope
from amqpjobs.errors import (
    AmqpJobsError,
    BrokerError,
    DecodeError,
    RefusedError,
    TooLargeError,
    UnconfirmedError,
    UnroutableError,
)
from amqpjobs.events import Events, ReplyUndelivered, RunNotTold, SettleFailed
from amqpjobs.outcome import Completed, Dead, DeadReason, Dropped, Outcome, Retrying, Returned, Snoozed
from amqpjobs.replies import FinalOutcome, Replies, in_few_words
from amqpjobs.settings import host_name
from amqpjobs.topology import LONGEST_DELAY, Route, Topology, few_hops
from amqpjobs.wire import Delivery, HeaderValue, Properties, Publication
from amqpjobs.worker.ticks import last_word

#: Seconds before the first repeat of a failed settle; doubles up to the cap.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
#: So often is tried again what waiting will hardly mend (some 6 s), before it is a dead letter.
HOPELESS = 7
#: How long one try to publish what follows may take.
PATIENCE = 30.0


class Settler:
    """Settles the deliveries of one worker."""

    def __init__(
        self,
        *,
        topology: Topology,
        publisher: Publisher,
        clock: Clock,
        events: Events,
        replies: Replies,
        effects: Sequence[Effect] = (),
    ) -> None:
        self._topology = topology
        self._publisher = publisher
        self._clock = clock
        self._events = events
        self._replies = replies
        self._effects = effects

    async def settle(self, delivery: Delivery, envelope: Envelope | None, outcome: Outcome | Dropped) -> bool:
        """Publish what follows, then ack. False: the delivery's channel is gone, it will come again.

        While the broker cannot be told, this waits and tries again, longer each time.
        """
        if isinstance(outcome, Returned):
            return await self._hand_back(delivery)
        is_heard = envelope is not None and (envelope.reply_to is not None or envelope.copy is not None)
        if isinstance(outcome, Completed) and not self._effects and not is_heard:
            return await self._ack(delivery, envelope)
        pause, hopeless = FIRST_PAUSE, 0
        while delivery.settler.is_open:
            try:
                async with self._clock.timeout(PATIENCE):
                    for publication in self._following(delivery, envelope, outcome):
                        await self._publisher.send(publication)
                return await self._end(delivery, envelope, outcome)
            except (UnroutableError, UnconfirmedError, BrokerError, TimeoutError) as error:
                self._events.emit(SettleFailed(envelope, error, pause))
            except Exception as error:  # refused, too large, or a bug in an effect
                if isinstance(outcome, Dead):  # the broker's own dead-lettering takes it as it is
                    return await self._reject(delivery, envelope, outcome, error)
                self._events.emit(SettleFailed(envelope, error, pause))
                hopeless += not isinstance(error, RefusedError)  # a full queue may have room again
                if hopeless == HOPELESS:
                    outcome = Dead(DeadReason.UNSETTLED, error)
            await self._clock.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        return False

    def _following(
        self, delivery: Delivery, envelope: Envelope | None, outcome: Outcome | Dropped
    ) -> list[Publication]:
        if isinstance(outcome, Dropped):
            return []
        is_unsettled = isinstance(outcome, Dead) and outcome.reason is DeadReason.UNSETTLED
        follow = [] if envelope is None or is_unsettled else follow_ups(self._effects, envelope, outcome)
        match outcome:
            case Retrying(delay) if envelope is not None:
                tried = envelope.evolve(attempt=envelope.attempt + 1, unknown_since=None)
                follow.append(self._again(tried, few_hops(delay)))
            case Snoozed(delay, _, unknown) if envelope is not None:
                since = (envelope.unknown_since or self._clock.now()) if unknown else None
                follow.append(self._again(envelope.evolve(unknown_since=since), delay))
            case Dead():
                follow.append(self._dead(delivery, envelope, outcome))
            case _:
                pass
        return follow

    def _again(self, envelope: Envelope, delay: float) -> Publication:
        """Back to the queue it came from, so that other services do not see it again."""
        now = self._clock.now()
        first_at = envelope.first_at or now
        if delay > 0:
            route = self._topology.delayed(min(delay, LONGEST_DELAY), queue=envelope.queue)
        else:
            route = self._topology.to_queue(envelope.queue)
        properties = encode(envelope.evolve(first_at=first_at), now)
        return _publication(route, envelope.payload, properties)

    def _dead(self, delivery: Delivery, envelope: Envelope | None, outcome: Dead) -> Publication:
        now = self._clock.now()
        if envelope is None:
            properties = as_it_came(delivery)
        else:
            properties = encode(envelope.evolve(first_at=envelope.first_at or now), now)
        publication = _publication(self._topology.to_dead(delivery.queue), delivery.body, properties)
        headers = {**publication.properties.headers, **_epitaph(delivery, outcome, now)}
        return replace(publication, properties=replace(publication.properties, headers=headers))

    async def _end(self, delivery: Delivery, envelope: Envelope | None, outcome: Outcome | Dropped) -> bool:
        if envelope is not None and not await self._told(delivery, envelope, outcome):
            return False
        return await self._ack(delivery, envelope)

    async def _told(self, delivery: Delivery, envelope: Envelope, outcome: Outcome | Dropped) -> bool:
        """Tell those who may be waiting for the end. False: as `settle`."""
        is_awaited = envelope.reply_to is not None
        if is_awaited and isinstance(outcome, FinalOutcome) and not await self._answered(delivery, envelope, outcome):
            return False
        return envelope.copy is None or await self._told_to_beats(delivery, envelope, outcome)

    async def _answered(self, delivery: Delivery, envelope: Envelope, outcome: FinalOutcome) -> bool:
        answer = self._replies.answer(envelope, outcome)
        if answer is None:
            self._events.emit(ReplyUndelivered(envelope, f"{envelope.reply_to!r} is no reply queue of this namespace"))
            return True

        def fail(error: Exception) -> None:
            is_gone = isinstance(error, UnroutableError)
            self._events.emit(ReplyUndelivered(envelope, "its caller is gone" if is_gone else words_of(error)))

        return await self._said(delivery, envelope, answer, fail)

    async def _told_to_beats(self, delivery: Delivery, envelope: Envelope, outcome: Outcome | Dropped) -> bool:
        """Tell beats that a tick's copy is done with."""
        notice = last_word(self._topology, envelope, outcome)

        def fail(error: Exception) -> None:
            if not isinstance(error, UnroutableError):  # else no beat has its stream here
                self._events.emit(RunNotTold(envelope, "ended", error))

        return notice is None or await self._said(delivery, envelope, notice, fail)

    async def _said(
        self, delivery: Delivery, envelope: Envelope, words: Publication, fail: Callable[[Exception], object]
    ) -> bool:
        """Publish what somebody may be there to hear; what they refuse to hear, not for ever. False: as `settle`."""
        pause, refusals = FIRST_PAUSE, 0
        while delivery.settler.is_open:
            try:
                async with self._clock.timeout(PATIENCE):
                    await self._publisher.send(words)
                return True
            except UnroutableError as error:  # nobody is there
                fail(error)
                return True
            except (UnconfirmedError, BrokerError, TimeoutError) as error:
                self._events.emit(SettleFailed(envelope, error, pause))
            except Exception as error:  # not permitted, perhaps
                refusals += 1
                if refusals == HOPELESS:
                    fail(error)
                    return True
                self._events.emit(SettleFailed(envelope, error, pause))
                words = in_few_words(words) if isinstance(error, TooLargeError) else words
            await self._clock.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        return False

    async def _hand_back(self, delivery: Delivery) -> bool:
        try:
            await delivery.settler.nack(delivery.tag)
        except AmqpJobsError:
            return False  # the lost channel has handed it back already
        return True

    async def _ack(self, delivery: Delivery, envelope: Envelope | None) -> bool:
        try:
            await delivery.settler.ack(delivery.tag)
        except AmqpJobsError as error:
            self._events.emit(SettleFailed(envelope, error, None))
            return False
        return True

    async def _reject(self, delivery: Delivery, envelope: Envelope | None, outcome: Dead, error: Exception) -> bool:
        self._events.emit(SettleFailed(envelope, error, None))
        if envelope is not None and not await self._told(delivery, envelope, outcome):
            return False
        try:
            await delivery.settler.reject(delivery.tag)
        except AmqpJobsError:
            return False
        return True


def _publication(route: Route, body: bytes, properties: Properties) -> Publication:
    fitting = replace(properties, headers=within_budget(properties.headers))
    return Publication(exchange=route.exchange, routing_key=route.key, body=body, properties=fitting)


def _epitaph(delivery: Delivery, dead: Dead, at: datetime) -> dict[str, HeaderValue]:
    """Why, where and when, for whoever opens the dead-letter queue."""
    told: dict[str, HeaderValue] = {
        "amqpjobs-dead-reason": dead.reason.value,
        "amqpjobs-dead-at": milliseconds(at),
        "amqpjobs-dead-host": host_name(),
        "amqpjobs-dead-queue": delivery.queue,
    }
    if dead.error is not None:
        told["amqpjobs-dead-error"] = clip(words_of(dead.error), ERROR_BUDGET)
        if not isinstance(dead.error, DecodeError):  # those tell all there is
            told["amqpjobs-dead-traceback"] = clip(traceback_of(dead.error), TRACEBACK_BUDGET)
    return told
