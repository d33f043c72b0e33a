"""Turn an outcome into broker actions: the only room that settles a job's delivery.

What follows (a retry, a dead letter, what effects want) is published and confirmed before
the ack. A crash between the two runs the job again, and that is our promise: at least once,
never lost. Of a tick its beat is told the end, last of all before the ack.
"""

from collections.abc import Sequence
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
from amqpjobs.errors import AmqpJobsError, BrokerError, DecodeError, RefusedError, UnconfirmedError, UnroutableError
from amqpjobs.events import Events, RunNotTold, SettleFailed
from amqpjobs.outcome import Completed, Dead, DeadReason, Dropped, Outcome, Retrying, Returned, Snoozed
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
        effects: Sequence[Effect] = (),
    ) -> None:
        self._topology = topology
        self._publisher = publisher
        self._clock = clock
        self._events = events
        self._effects = effects

    async def settle(self, delivery: Delivery, envelope: Envelope | None, outcome: Outcome | Dropped) -> bool:
        """Publish what follows, then ack. False: the delivery's channel is gone, it will come again.

        While the broker cannot be told, this waits and tries again, longer each time.
        """
        if isinstance(outcome, Returned):
            return await self._hand_back(delivery)
        is_tick = envelope is not None and envelope.copy is not None
        if isinstance(outcome, Completed) and not self._effects and not is_tick:
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
        if envelope is not None and envelope.copy is not None and not await self._told(delivery, envelope, outcome):
            return False
        return await self._ack(delivery, envelope)

    async def _told(self, delivery: Delivery, envelope: Envelope, outcome: Outcome | Dropped) -> bool:
        """Tell beats that a tick's copy is done with; what they refuse to hear, not for ever. False: as `settle`."""
        notice = last_word(self._topology, envelope, outcome)
        pause, refusals = FIRST_PAUSE, 0
        while notice is not None and delivery.settler.is_open:
            try:
                async with self._clock.timeout(PATIENCE):
                    await self._publisher.send(notice)
                return True
            except UnroutableError:  # no beat has its stream here
                return True
            except (UnconfirmedError, BrokerError, TimeoutError) as error:
                self._events.emit(SettleFailed(envelope, error, pause))
            except Exception as error:  # not permitted, perhaps
                refusals += 1
                if refusals == HOPELESS:
                    self._events.emit(RunNotTold(envelope, "ended", error))
                    return True
                self._events.emit(SettleFailed(envelope, error, pause))
            await self._clock.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        return notice is None

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
        if envelope is not None and envelope.copy is not None and not await self._told(delivery, envelope, outcome):
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
