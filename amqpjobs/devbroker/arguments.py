"""The arguments of queues and exchanges: which type knows which, what values they take, and what they mean.

Unknown names are let pass, as RabbitMQ does; names that another type of queue knows are refused.
"""

from dataclasses import dataclass

from amqpjobs.devbroker.checks import (
    CLASSIC,
    DROP_HEAD,
    KINDS,
    QUORUM,
    REJECT_PUBLISH,
    REJECT_PUBLISH_DLX,
    STREAM,
    check_argument,
    check_integer,
    check_kind,
    check_natural,
    check_offset,
    queue_checks,
    seconds_of,
)
from amqpjobs.devbroker.errors import failed, unsupported
from amqpjobs.devbroker.profile import Profile
from amqpjobs.devbroker.table import Field, Table, text

#: In RabbitMQ's order, in which they are compared.
_KNOWN: dict[str, tuple[str, ...]] = {
    CLASSIC: (
        "x-expires",
        "x-message-ttl",
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-max-length",
        "x-max-length-bytes",
        "x-max-priority",
        "x-overflow",
        "x-queue-mode",
        "x-queue-version",
        "x-single-active-consumer",
        "x-queue-type",
        "x-queue-master-locator",
    ),
    QUORUM: (
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-dead-letter-strategy",
        "x-expires",
        "x-max-length",
        "x-max-length-bytes",
        "x-max-in-memory-length",
        "x-max-in-memory-bytes",
        "x-overflow",
        "x-single-active-consumer",
        "x-queue-type",
        "x-quorum-initial-group-size",
        "x-delivery-limit",
        "x-message-ttl",
        "x-queue-leader-locator",
    ),
    STREAM: (
        "x-max-length-bytes",
        "x-queue-type",
        "x-max-age",
        "x-stream-max-segment-size-bytes",
        "x-initial-cluster-size",
        "x-queue-leader-locator",
    ),
}
_DELAYED_RETRY = ("x-delayed-retry-type", "x-delayed-retry-min", "x-delayed-retry-max")
_CONSUMER_TIMEOUTS = ("x-consumer-timeout", "x-consumer-disconnected-timeout")
_CONSUMER_UNSUPPORTED = ("x-credit", "x-stream-filter", "x-stream-match-unfiltered")
_CONSUMER_KNOWN = {
    CLASSIC: {"x-priority", "x-cancel-on-ha-failover", "x-credit"},
    QUORUM: {"x-priority", "x-credit"},
    STREAM: {"x-stream-offset", "x-credit"},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueArguments:
    """What a queue was declared with. Times are milliseconds."""

    table: Table
    kind: str
    ttl: int | None
    expires: int | None
    #: Where dead letters go, and with which key if not with their own.
    exchange: str | None
    key: str | None
    is_at_least_once: bool
    max_length: int | None
    max_bytes: int | None
    overflow: str
    #: The highest priority of a classic queue; none of them without.
    max_priority: int | None
    has_single_active_consumer: bool
    #: Returns that a quorum queue bears; None for any number.
    delivery_limit: int | None
    #: Milliseconds that a consumer may hold a message.
    consumer_timeout: int | None
    #: Seconds that a stream keeps.
    max_age: float | None


@dataclass(frozen=True, slots=True)
class ConsumerArguments:
    """What a consumer asked for, if anything."""

    priority: int
    #: Milliseconds that it may hold a message.
    timeout: int | None
    #: Where in a stream to begin.
    offset: Field | None


def known_arguments(kind: str, profile: Profile) -> tuple[str, ...]:
    """Names that a type of queue understands."""
    if kind == CLASSIC and profile.has_classic_locator:
        return (*_KNOWN[kind], "x-queue-leader-locator")
    if kind == QUORUM and profile.has_consumer_timeout:
        return (*_KNOWN[kind], *_CONSUMER_TIMEOUTS, *_DELAYED_RETRY)
    return _KNOWN[kind]


def checked_queue(given: Table, what: str, profile: Profile) -> QueueArguments:
    """Raises `RefusedError` in RabbitMQ's words; `what` names the queue."""
    check_argument(given, "x-queue-type", what, check_kind)
    kind = _text(given, "x-queue-type") or CLASSIC
    known = known_arguments(kind, profile)
    for name, check in queue_checks(profile).items():
        if name in known:
            check_argument(given, name, what, check)
    others = {name for other in KINDS for name in known_arguments(other, profile)}.difference(known)
    for raw in given:
        if (name := raw.decode("utf-8", "replace")) in others:
            raise failed(f"invalid arg '{name}' for {what} of queue type {KINDS[kind]}")
    _refuse_unsupported(given, kind, profile)
    return _meaning(given, kind, profile)


def _meaning(given: Table, kind: str, profile: Profile) -> QueueArguments:
    overflow = _text(given, "x-overflow") or DROP_HEAD
    if kind == QUORUM and overflow == REJECT_PUBLISH_DLX:
        overflow = DROP_HEAD  # quorum queues do not know it, and say nothing
    exchange = _text(given, "x-dead-letter-exchange")
    strategy = _text(given, "x-dead-letter-strategy")
    active = given.look("x-single-active-consumer")
    age = _text(given, "x-max-age")
    return QueueArguments(
        table=given,
        kind=kind,
        ttl=_integer(given, "x-message-ttl"),
        expires=_integer(given, "x-expires"),
        exchange=exchange,
        key=_text(given, "x-dead-letter-routing-key"),
        is_at_least_once=exchange is not None and strategy == "at-least-once" and overflow == REJECT_PUBLISH,
        max_length=_integer(given, "x-max-length"),
        max_bytes=_integer(given, "x-max-length-bytes"),
        overflow=overflow,
        max_priority=_integer(given, "x-max-priority") if kind == CLASSIC else None,
        has_single_active_consumer=active is not None and active.value is True,
        delivery_limit=_delivery_limit(given, profile),
        consumer_timeout=_integer(given, "x-consumer-timeout") if profile.has_queue_timeout else None,
        max_age=None if age is None else seconds_of(age),
    )


def _delivery_limit(given: Table, profile: Profile) -> int | None:
    limit = _integer(given, "x-delivery-limit")
    if limit is None:
        return profile.delivery_limit
    return None if limit < 0 and profile.is_negative_limit_none else limit


def check_equivalent(current: QueueArguments, given: Table, what: str, profile: Profile) -> None:
    """Raises `RefusedError` when a queue is declared again with other arguments."""
    if not profile.are_deaths_headers and given.look("x-queue-type") is None:
        given = Table(given | {b"x-queue-type": text(CLASSIC)})  # since 3.13 it is written into the arguments
    for name in known_arguments(current.kind, profile):
        check_same(current.table.look(name), given.look(name), name, what)


def check_same(current: Field | None, given: Field | None, name: str, what: str) -> None:
    """Raises `RefusedError` for two values of an argument that are not the same."""
    if current is not None and given is not None:
        if current.type_class != given.type_class or current.value != given.value:
            differs(name, what, f"'{_shown(given)}'", f"'{_shown(current)}'")
        return
    one = current or given
    if one is not None and not (name == "x-queue-type" and one.text == CLASSIC):
        differs(name, what, _described(given), _described(current))


def differs(name: str, what: str, given: str, current: str) -> None:
    """Raises `RefusedError` for an attribute that is not what it was declared as."""
    raise failed(f"inequivalent arg '{name}' for {what}: received {given} but current is {current}")


def check_consumer(given: Table, kind: str, what: str, profile: Profile) -> ConsumerArguments:
    """Raises `RefusedError` for what the queue does not know."""
    check_argument(given, "x-priority", what, check_integer)
    timed = QUORUM if profile.has_consumer_timeout else None
    if kind == timed:
        check_argument(given, "x-consumer-timeout", what, check_natural)
    if kind == STREAM:
        check_argument(given, "x-stream-offset", what, check_offset)
    others = set[str]().union(*_CONSUMER_KNOWN.values()) - _CONSUMER_KNOWN[kind]
    if timed is not None and kind != timed:
        others.add("x-consumer-timeout")
    for raw in given:
        if (name := raw.decode("utf-8", "replace")) in others:
            raise failed(f"invalid arg '{name}' for {what} of queue type {KINDS[kind]}")
    for name in _CONSUMER_UNSUPPORTED:
        if given.look(name) is not None:
            raise unsupported(f"{name} on consumers")
    timeout = _integer(given, "x-consumer-timeout") if kind == timed else None
    return ConsumerArguments(_integer(given, "x-priority") or 0, timeout, given.look("x-stream-offset"))


def _refuse_unsupported(given: Table, kind: str, profile: Profile) -> None:
    if kind == QUORUM and profile.has_consumer_timeout and _DELAYED_RETRY[0].encode() in given:
        raise unsupported("x-delayed-retry-type")


def _text(given: Table, name: str) -> str | None:
    field = given.look(name)
    return None if field is None else field.text


def _integer(given: Table, name: str) -> int | None:
    field = given.look(name)
    return None if field is None else field.integer


def _shown(field: Field) -> str:
    if field.text is not None:
        return field.text
    value = field.value
    return str(value).lower() if isinstance(value, bool) else str(value)


def _described(field: Field | None) -> str:
    return "none" if field is None else f"the value '{_shown(field)}' of type '{field.type_name}'"
