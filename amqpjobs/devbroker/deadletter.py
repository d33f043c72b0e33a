"""Dead letters: what RabbitMQ writes on them, where they go, and which of them it drops as cycles."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import Enum

from amqpjobs.devbroker.arguments import QueueArguments
from amqpjobs.devbroker.message import Message, routes_in
from amqpjobs.devbroker.profile import Profile
from amqpjobs.devbroker.properties import EXPIRATION, HEADERS
from amqpjobs.devbroker.table import Field, Table, array, long, moment, read_array, table, text


class Reason(Enum):
    """Why a message left its queue otherwise than by an ack."""

    EXPIRED = "expired"
    REJECTED = "rejected"
    #: The queue was full.
    MAXLEN = "maxlen"
    DELIVERY_LIMIT = "delivery_limit"


def died(
    message: Message, reason: Reason, queue: str, arguments: QueueArguments, profile: Profile, now: float
) -> Message:
    """The message as it is published to its queue's dead-letter exchange."""
    headers = message.properties.headers()
    deaths = _recorded(message, headers, reason, queue, profile, now)
    _write_first_and_last(headers, message, reason, queue, profile)
    headers[b"x-death"] = array(table(death) for death in deaths)
    keys, hidden = message.keys, message.hidden
    if arguments.key is not None:
        keys, hidden = (arguments.key,), ()
        if profile.are_deaths_headers:
            headers.pop(b"CC", None)
    properties = message.properties.replaced({HEADERS: headers.sorted().written(), EXPIRATION: None})
    return replace(
        message,
        exchange=arguments.exchange or "",
        keys=keys,
        hidden=hidden,
        raw=properties.raw,
        ttl=None,
        deaths=tuple(deaths),
    )


def is_cycle(message: Message, reason: Reason, target: str) -> bool:
    """Whether it came through this queue before, and no client rejected it since."""
    if reason is Reason.REJECTED:
        return False
    for death in message.deaths:
        if _said(death, "reason") == Reason.REJECTED.value:
            return False
        if _said(death, "queue") == target:
            return True
    return False


def _recorded(
    message: Message, headers: Table, reason: Reason, queue: str, profile: Profile, now: float
) -> Sequence[Table]:
    before = _claimed(headers) if profile.are_deaths_headers else message.deaths
    same = [death for death in before if _said(death, "queue") == queue and _said(death, "reason") == reason.value]
    others = [death for death in before if death not in same]
    if not same:
        death = _death(message, headers, reason, queue, profile, now)
        return [death.sorted() if others and profile.are_deaths_headers else death, *others]
    count = same[0].look("count")
    increased = Table(same[0] | {b"count": long(1 + ((count.integer if count else None) or 0))})
    return [increased, *others]


def _claimed(headers: Table) -> Iterable[Table]:
    """The deaths that a header tells of, whoever wrote it."""
    given = headers.look("x-death")
    if given is None or given.letter != "A":
        return []
    return [Table.of(item.raw) for item in read_array(given.raw) if item.letter == "F"]


def _death(message: Message, headers: Table, reason: Reason, queue: str, profile: Profile, now: float) -> Table:
    if profile.are_deaths_headers:
        keys: Sequence[str] = (message.keys[0], *routes_in(headers, "CC"))
    else:
        keys = message.keys[: len(message.keys) - len(message.hidden)]  # the same key may be hidden and not
    death = Table(
        {
            b"count": long(1),
            b"reason": text(reason.value),
            b"queue": text(queue),
            b"time": moment(now),
            b"exchange": text(message.exchange),
            b"routing-keys": array(text(key.encode("utf-8", "surrogateescape")) for key in keys),
        }
    )
    if message.ttl is None:
        return death
    expiration = Table({b"original-expiration": text(message.properties.part(EXPIRATION) or str(message.ttl))})
    return Table(death | expiration if profile.are_deaths_headers else expiration | death)


def _write_first_and_last(headers: Table, message: Message, reason: Reason, queue: str, profile: Profile) -> None:
    facts = {b"reason": reason.value, b"queue": queue, b"exchange": message.exchange}
    is_first = b"x-death" not in headers if profile.are_deaths_headers else not message.deaths
    if is_first:
        headers.update({b"x-first-death-" + name: text(fact) for name, fact in facts.items()})
    if not profile.are_deaths_headers:
        headers.update({b"x-last-death-" + name: text(fact) for name, fact in facts.items()})


def _said(death: Table, name: str) -> str | None:
    field: Field | None = death.look(name)
    return None if field is None else field.text
