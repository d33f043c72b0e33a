"""The values that arguments of queues and consumers may have, and what RabbitMQ says of others."""

import re
from collections.abc import Callable

from amqpjobs.devbroker.errors import failed
from amqpjobs.devbroker.message import LONGEST_EXPIRY
from amqpjobs.devbroker.profile import Profile
from amqpjobs.devbroker.table import Field, Table

CLASSIC, QUORUM, STREAM = "classic", "quorum", "stream"
#: Types of queues, and what error texts call them.
KINDS = {kind: f"rabbit_{kind}_queue" for kind in (CLASSIC, QUORUM, STREAM)}
DROP_HEAD, REJECT_PUBLISH, REJECT_PUBLISH_DLX = "drop-head", "reject-publish", "reject-publish-dlx"
_AGE_UNITS = {"Y": 365 * 86_400, "M": 30 * 86_400, "D": 86_400, "h": 3_600, "m": 60, "s": 1}
_AGE = re.compile(r"0*[1-9]\d*[YMDhms]")
_LOCATORS = ("client-local", "balanced", "random", "least-leaders")


def check_argument(
    given: Table, name: str, what: str, check: Callable[[Field, Table, Profile | None], str | None]
) -> None:
    field = given.look(name)
    problem = None if field is None else check(field, given, None)
    if problem is not None:
        raise failed(f"invalid arg '{name}' for {what}: {problem}")


def check_integer(field: Field, *_: object) -> str | None:
    return None if field.integer is not None else f'"expected integer, got {field.type_name}"'


def check_natural(field: Field, *_: object) -> str | None:
    value = field.integer
    if value is None:
        return check_integer(field)
    return f"{{value_negative,{value}}}" if value < 0 else None


def _check_positive(field: Field, *_: object) -> str | None:
    return "{value_zero,0}" if field.integer == 0 else check_natural(field)


def _check_duration(field: Field, *_: object) -> str | None:
    value = field.integer
    if value is not None and value > LONGEST_EXPIRY:
        return f"{{value_too_large,{value}}}"
    return check_natural(field)


def _check_expires(field: Field, *_: object) -> str | None:
    return "{value_zero,0}" if field.integer == 0 else _check_duration(field)


def _check_priority(field: Field, *_: object) -> str | None:
    value = field.integer
    return f"{{max_value_exceeded,{value}}}" if value is not None and value > 255 else check_natural(field)


def _check_text(field: Field, *_: object) -> str | None:
    return None if field.letter == "S" else f"{{unacceptable_type,{field.type_name}}}"


def _check_key(field: Field, given: Table, *_: object) -> str | None:
    if field.letter == "S" and given.look("x-dead-letter-exchange") is None:
        return "routing_key_but_no_dlx_defined"
    return _check_text(field)


def _check_flag(field: Field, *_: object) -> str | None:
    return None if field.letter == "t" else f"{{unacceptable_type,{field.type_name}}}"


def check_kind(field: Field, *_: object) -> str | None:
    if field.text is not None and field.text not in KINDS:
        return f"\"unsupported queue type '{field.text}'\""
    return _check_text(field)


def _check_mode(field: Field, *_: object) -> str | None:
    if field.text is not None and field.text not in ("default", "lazy"):
        return f"\"unsupported queue mode '{field.text}'\""
    return _check_text(field)


def _check_age(field: Field, *_: object) -> str | None:
    if field.text is not None and not _AGE.fullmatch(field.text):
        return "invalid_max_age"
    return _check_text(field)


def seconds_of(age: str) -> float:
    """Of an age such as 7D, which was checked."""
    return float(int(age[:-1]) * _AGE_UNITS[age[-1]])


def check_offset(field: Field, *_: object) -> str | None:
    text = field.text
    is_known = text is not None and (text in ("first", "last", "next") or _AGE.fullmatch(text) is not None)
    if is_known or field.letter == "T" or (field.integer or -1) >= 0 or field.integer == 0:
        return None
    shown = f'<<"{text}">>' if text is not None else field.value
    return f"{{invalid_stream_offset_arg,{{{field.type_name},{shown}}}}}"


def _one_of(choices: tuple[str, ...], problem: str) -> Callable[..., str | None]:
    def check(field: Field, *_: object) -> str | None:
        return problem if field.text is not None and field.text not in choices else _check_text(field)

    return check


def _version(choices: tuple[int, ...]) -> Callable[..., str | None]:
    def check(field: Field, *_: object) -> str | None:
        value = field.integer
        if value is not None and value >= 0 and value not in choices:
            return f"\"unsupported queue version '{value}'\""
        return check_natural(field)

    return check


def queue_checks(profile: Profile) -> dict[str, Callable[..., str | None]]:
    checks: dict[str, Callable[..., str | None]] = {
        "x-expires": _check_expires,
        "x-message-ttl": _check_duration,
        "x-dead-letter-exchange": _check_text,
        "x-dead-letter-routing-key": _check_key,
        "x-dead-letter-strategy": _one_of(("at-most-once", "at-least-once"), "invalid_dlx_strategy"),
        "x-max-length": check_natural,
        "x-max-length-bytes": check_natural,
        "x-max-in-memory-length": check_natural,
        "x-max-in-memory-bytes": check_natural,
        "x-max-priority": _check_priority,
        "x-overflow": _one_of((DROP_HEAD, REJECT_PUBLISH, REJECT_PUBLISH_DLX), "invalid_overflow"),
        "x-queue-version": _version((1, 2) if profile.has_deprecated else (2,)),
        "x-single-active-consumer": _check_flag,
        "x-quorum-initial-group-size": _check_positive,
        "x-max-age": _check_age,
        "x-stream-max-segment-size-bytes": check_natural,
        "x-initial-cluster-size": _check_positive,
        "x-queue-leader-locator": _one_of(_LOCATORS, "invalid_queue_locator_arg"),
        "x-consumer-timeout": check_natural,
        "x-consumer-disconnected-timeout": check_natural,
    }
    if profile.has_deprecated:
        checks["x-queue-mode"] = _check_mode
    return checks
