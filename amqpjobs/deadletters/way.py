"""The way on of a letter: into work again, or back into its place.

Either is a new message of the same job. Ours and the user's headers ride along; the broker's
own do not, since x-death would make RabbitMQ ≤ 4.0.0 drop it.
"""

from dataclasses import replace
from datetime import datetime

from amqpjobs.codec import PREFIX, lasting, milliseconds
from amqpjobs.deadletters.letter import (
    EDITED_AT,
    EDITED_FROM,
    REQUEUED_AT,
    REQUEUED_FROM,
    REQUEUES,
    DeadLetter,
    text_of,
    time_of,
)
from amqpjobs.deadletters.place import Place, PlaceName
from amqpjobs.envelope import new_id
from amqpjobs.topology import LONGEST_DELAY, Route, Topology
from amqpjobs.wire import Headers, HeaderValue, Publication


class Ways:
    """Where letters go in one namespace, and as what."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    def queue(self, place: Place) -> str:
        """The queue that a place is."""
        match place.name:
            case PlaceName.DEAD:
                return self._topology.dead_queue(place.queue)
            case PlaceName.UNROUTABLE:
                return self._topology.unroutable
            case PlaceName.PARKED:
                return self._topology.parked

    def again(self, letter: DeadLetter, now: datetime) -> Publication:
        """To run it: a dead letter from attempt 1."""
        headers = _lasting(letter)
        if letter.place.name is PlaceName.DEAD:
            for name in ("first-at", "unknown-since", "headers-cut"):
                headers.pop(PREFIX + name, None)
            headers[PREFIX + "attempt"] = 1
            headers |= {REQUEUES: letter.requeues + 1, REQUEUED_AT: milliseconds(now)}
            if letter.message_id:
                headers[REQUEUED_FROM] = letter.message_id
        if letter.expires_at is not None and letter.expires_at <= now:
            del headers[PREFIX + "expires-at"]
        return _publication(letter, self._route_again(letter, now), headers)

    def back(self, letter: DeadLetter) -> Publication:
        """Into the place it is of, with what it says of its end."""
        headers = _lasting(letter)
        headers |= {name: value for name, value in letter.headers.items() if name.startswith(PREFIX + "dead-")}
        if letter.place.name is PlaceName.DEAD and letter.reason:  # perhaps only the broker's x-death told
            headers.setdefault(PREFIX + "dead-reason", letter.reason)
            headers.setdefault(PREFIX + "dead-queue", letter.queue or letter.place.queue)
            if letter.dead_at is not None:
                headers.setdefault(PREFIX + "dead-at", milliseconds(letter.dead_at))
        return _publication(letter, self._route_back(letter), headers)

    def edited(self, letter: DeadLetter, body: bytes, now: datetime, *, requeue: bool) -> Publication:
        """With another payload, to run it or back."""
        publication = self.again(letter, now) if requeue else self.back(letter)
        headers = {**publication.properties.headers, EDITED_AT: milliseconds(now)}
        if letter.message_id:
            headers[EDITED_FROM] = letter.message_id
        return replace(publication, body=body, properties=replace(publication.properties, headers=headers))

    def _route_again(self, letter: DeadLetter, now: datetime) -> Route:
        """To the queue it died in; of the other places to the queue it was meant for, else by its kind."""
        if letter.place.name is PlaceName.DEAD:
            return self._topology.to_queue(letter.place.queue)
        kind, queue = letter.kind or "", text_of(letter.headers, "queue") or ""
        exchange, run_at = text_of(letter.headers, "exchange") or "", time_of(letter.headers, "run-at")
        wait = 0.0 if run_at is None else (run_at - now).total_seconds()
        if wait > 0:
            return self._topology.delayed(min(wait, LONGEST_DELAY), kind=kind, exchange=exchange, queue=queue)
        return self._topology.to_queue(queue) if queue else self._topology.by_kind(kind, exchange)

    def _route_back(self, letter: DeadLetter) -> Route:
        match letter.place.name:
            case PlaceName.DEAD:
                return self._topology.to_dead(letter.place.queue)
            case PlaceName.UNROUTABLE:
                return Route(exchange=self._topology.unroutable, key=letter.kind or "")
            case PlaceName.PARKED:
                return self._topology.to_parked()


def _lasting(letter: DeadLetter) -> dict[str, HeaderValue]:
    return {PREFIX + "id": letter.identity} | lasting(letter.headers)


def _publication(letter: DeadLetter, route: Route, headers: Headers) -> Publication:
    # A fresh message id, since the broker's returns are told apart by it.
    properties = replace(letter.properties, headers=headers, message_id=new_id())
    return Publication(exchange=route.exchange, routing_key=route.key, body=letter.body or b"", properties=properties)
