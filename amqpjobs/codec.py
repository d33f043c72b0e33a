"""Envelope to bytes and properties, and back.

The body is the job's own JSON and nothing else, so that any language can enqueue. All else
rides in AMQP properties and in headers that begin with `amqpjobs-`; on the wire times are
milliseconds since the epoch, and nowhere above this file.

Whatever arrives may be wrong, huge or hostile. `decode` raises `UnreadableError` with words
for a person; `job_from` raises `InvalidArgumentsError`, which never repeats the values. A
payload of an older version is upgraded with the standard library's JSON, which keeps whole
numbers of any size and writes nothing that JSON cannot hold.
"""

import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import orjson
from pydantic import ValidationError

from amqpjobs.envelope import Envelope, make_envelope, new_id
from amqpjobs.errors import InvalidArgumentsError, TooLargeError, UnreadableError
from amqpjobs.job import Job, options_of, payload_of, upgrades_of
from amqpjobs.sharding import KEYS, slot_word
from amqpjobs.wire import Delivery, Headers, HeaderValue, Properties, make_properties, table_size

J = TypeVar("J", bound=Job[Any])
R = TypeVar("R")

PREFIX = "amqpjobs-"
CONTENT_TYPE = "application/json"
#: All headers must fit one frame (131,072 bytes as RabbitMQ is delivered), and each delay
#: level on the way adds an `x-death` entry of some 250 bytes.
HEADER_BUDGET = 100_000
#: Of that, what a dead letter's error and traceback may take.
ERROR_BUDGET = 4_000
TRACEBACK_BUDGET = 16_000
#: Told when headers were left out to stay within the budget: their names, comma-separated.
CUT_HEADER = PREFIX + "headers-cut"
#: How many processes the job is known to have killed.
CRASHES_HEADER = PREFIX + "crashes"
#: What the job is sharded by, as a number.
SHARD_HEADER = PREFIX + "shard-key"
#: The broker routes by what it holds too, and takes it away, also when it dead-letters.
_SLOT_HEADER = "BCC"

_OURS = frozenset(
    PREFIX + name
    for name in (
        *(
            "id",
            "attempt",
            "crashes",
            "version",
            "parent",
            "root",
            "schedule",
            "copy",
            "queue",
            "exchange",
            "shard-key",
        ),
        *("run-at", "expires-at", "first-at", "unknown-since", "doubt-since", "max-attempts", "timeout-ms"),
    )
)
#: Headers the broker adds, which must not be sent back to it (≤ 4.0.0 then drops the message).
_BROKERS = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count", "x-opt-")
_NOT_FOREIGN = (PREFIX, *_BROKERS)
_ROUTING = ("CC", "BCC")
_PACKAGE = str(Path(__file__).parent)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class RemoteError(Exception):
    """An error of another process: the words and the traceback it had there."""

    def __init__(self, words: str, trace: str = "") -> None:
        super().__init__(words)
        self.trace = trace


class _Boxed(Job[None], Generic[R]):
    """A result as the one field of a model: it crosses just as the fields of a job do, secrets and all."""

    result: R


def encode(envelope: Envelope, sent_at: datetime) -> Properties:
    """The properties of an envelope; the body is its payload. Each call makes a fresh message id."""
    headers: dict[str, HeaderValue] = dict(envelope.headers)
    headers["amqpjobs-id"] = envelope.job_id
    headers["amqpjobs-attempt"] = envelope.attempt
    if envelope.crashes:
        headers[CRASHES_HEADER] = envelope.crashes
    if envelope.version is not None:
        headers["amqpjobs-version"] = envelope.version
    if envelope.shard_key is not None:
        headers[SHARD_HEADER] = envelope.shard_key
        headers[_SLOT_HEADER] = [slot_word(envelope.shard_key)]
    if envelope.parent is not None:
        headers["amqpjobs-parent"] = envelope.parent
    if envelope.root is not None:
        headers["amqpjobs-root"] = envelope.root
    if envelope.schedule is not None:
        headers["amqpjobs-schedule"] = envelope.schedule
    if envelope.copy is not None:
        headers["amqpjobs-copy"] = envelope.copy
    if envelope.queue:
        headers["amqpjobs-queue"] = envelope.queue
    if envelope.exchange:
        headers["amqpjobs-exchange"] = envelope.exchange
    if envelope.run_at is not None:
        headers["amqpjobs-run-at"] = milliseconds(envelope.run_at)
    if envelope.expires_at is not None:
        headers["amqpjobs-expires-at"] = milliseconds(envelope.expires_at)
    if envelope.first_at is not None:
        headers["amqpjobs-first-at"] = milliseconds(envelope.first_at)
    if envelope.unknown_since is not None:
        headers["amqpjobs-unknown-since"] = milliseconds(envelope.unknown_since)
    if envelope.doubt_since is not None:
        headers["amqpjobs-doubt-since"] = milliseconds(envelope.doubt_since)
    if envelope.max_attempts is not None:
        headers["amqpjobs-max-attempts"] = envelope.max_attempts
    if envelope.timeout is not None:
        headers["amqpjobs-timeout-ms"] = max(1, round(envelope.timeout * 1000))
    return make_properties(
        headers=headers,
        kind=envelope.kind,
        message_id=new_id(),
        correlation_id=envelope.correlation_id or envelope.job_id,
        reply_to=envelope.reply_to,
        app_id=envelope.app_id,
        content_type=CONTENT_TYPE,
        priority=envelope.priority,
        timestamp=envelope.enqueued_at or sent_at,
    )


def decode(delivery: Delivery) -> Envelope:
    """The envelope of a delivery. The payload is not looked at. Raises UnreadableError."""
    properties, headers = delivery.properties, delivery.properties.headers
    if delivery.defect:
        raise UnreadableError(delivery.defect)
    if not properties.kind:
        raise UnreadableError(
            "The AMQP property `type` is missing: it must hold the kind of the job. The routing key is not read."
        )
    if properties.content_encoding not in (None, "", "identity", "utf-8", "UTF-8"):
        raise UnreadableError(
            f"The content encoding {properties.content_encoding[:40]!r} is not read here; send plain JSON."
        )
    job_id = _text(headers, "amqpjobs-id")
    attempt = _number(headers, "amqpjobs-attempt", least=1)
    version = _number(headers, "amqpjobs-version", least=1)
    usual = (job_id is not None) + (attempt is not None) + (version is not None)
    make = make_envelope if len(headers) == usual else partial(make_envelope, **_unusual(headers))
    return make(
        kind=properties.kind,
        payload=delivery.body,
        job_id=job_id or properties.message_id or new_id(),
        queue=delivery.queue,
        attempt=attempt or 1,
        version=version,
        enqueued_at=properties.timestamp,
        priority=properties.priority,
        app_id=properties.app_id,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
    )


def _unusual(headers: Headers) -> dict[str, Any]:
    """What most jobs have nothing of, as far as this one has it."""
    found = dict[str, Any]()
    for name in headers:
        if name in _UNUSUAL:
            field, read = _UNUSUAL[name]
            value = read(headers, name)
            if value is not None:
                found[field] = value
    if not headers.keys() <= _OURS:
        found["headers"] = foreign(headers)
    return found


def job_from(cls: type[J], payload: bytes, version: int | None = None) -> J:
    """The typed job of a payload; without a version it is of the current one. Raises InvalidArgumentsError."""
    current = payload if version is None or version == options_of(cls).version else _upgraded(cls, payload, version)
    try:
        job: J = cls.__pydantic_validator__.validate_json(current)
        return job
    except ValidationError as error:
        problems = problems_of(error)
        shown = "; ".join(problems[:20]) + ("; …" if len(problems) > 20 else "")
        raise InvalidArgumentsError(f"The payload does not fit {cls.__name__}: {shown}.", problems) from None
    except Exception as error:  # a validator of the user's may raise anything, and its text may hold values
        problem = f"a validator of {cls.__name__} raised {type(error).__name__}"
        raise InvalidArgumentsError(f"The payload cannot be validated: {problem}.", [problem]) from error


def _upgraded(cls: type[Job[Any]], payload: bytes, version: int) -> bytes:
    """The payload as the current version has it. What is no JSON object is left for validation to refuse."""
    own, steps = options_of(cls), upgrades_of(cls)
    if version < own.oldest_version:
        raise _unreadable(f"version {version} is older than {own.oldest_version}, the oldest that {cls.__name__} reads")
    if version >= own.version or not steps:
        return payload
    try:
        value: object = json.loads(payload)
    except (ValueError, RecursionError):
        return payload
    if not isinstance(value, dict):
        return payload
    made = cast("dict[str, Any]", value)
    for number in range(version, own.version):
        made = _stepped(f"the upgrade of {cls.__name__} from version {number}", steps[number], made)
    return json.dumps(made).encode()


def _stepped(name: str, step: Callable[[dict[str, Any]], object], payload: dict[str, Any]) -> dict[str, Any]:
    try:
        made = step(payload)
        json.dumps(made)
    except Exception as error:  # its text may hold values, so only its class and place are told
        frames = [each for each in traceback.extract_tb(error.__traceback__) if each.filename != __file__]
        place = frames[0] if frames else None
        where = f" at {Path(place.filename).name}:{place.lineno}" if place else ""
        raise _unreadable(f"{name} failed with {type(error).__name__}{where}") from None
    if not isinstance(made, dict):
        raise _unreadable(f"{name} returned {type(made).__name__}, and no dict")
    return cast("dict[str, Any]", made)


def _unreadable(problem: str) -> InvalidArgumentsError:
    return InvalidArgumentsError(f"The payload cannot be read: {problem}.", [problem])


def problems_of(error: ValidationError) -> list[str]:
    """What is wrong with each field, without the values: they may be secret, or huge."""
    problems = list[str]()
    for each in error.errors(include_input=False, include_url=False, include_context=False):
        place = ".".join(str(part)[:60] for part in each["loc"][:10])
        problems.append(f"{place}: {each['msg'][:300]}" if place else each["msg"][:300])
    return problems


def result_json(job: type[Job[Any]], result: object) -> bytes:
    """What a handler returned, as JSON of its job's result type. Raises ValueError when it is none."""
    try:
        return payload_of(boxed(job)(result=result))
    except ValidationError as error:
        problems = "; ".join(problems_of(error)[:20])
        raise ValueError(
            f"The handler returned a {type(result).__name__}, no result of {job.__name__}: {problems}."
        ) from None


def result_from(job: type[Job[Any]], raw: bytes) -> object:
    """The typed result again. Raises ValueError, which never repeats the values."""
    try:
        return boxed(job).model_validate_json(raw).result
    except ValidationError as error:
        problems = "; ".join(problems_of(error)[:20])
        raise ValueError(f"The result of {job.__name__} does not come back from its own JSON: {problems}.") from None


@cache
def boxed(job: type[Job[Any]]) -> type[_Boxed[Any]]:
    """The model a job's results cross in. Raises what pydantic does about types it cannot write as JSON."""
    wanted: Any = job.result_type()
    return _Boxed[wanted]


def foreign(headers: Headers) -> dict[str, HeaderValue]:
    """The headers that are neither ours nor the broker's: they survive every republish."""
    return {
        name: value
        for name, value in headers.items()
        if name == CUT_HEADER or not (name.startswith(_NOT_FOREIGN) or name in _ROUTING)
    }


def lasting(headers: Headers) -> dict[str, HeaderValue]:
    """The headers but for the broker's, and for ours that tell of an end; the slot of a sharded job is said again."""
    kept = {
        name: value
        for name, value in headers.items()
        if not (name.startswith((PREFIX + "dead-", *_BROKERS)) or name in _ROUTING)
    }
    key = shard_key_of(headers)
    return kept if key is None else kept | {_SLOT_HEADER: [slot_word(key)]}


def shard_key_of(headers: Headers) -> int | None:
    """What a message is sharded by, if it says so in a way that can be read."""
    key = headers.get(SHARD_HEADER)
    return key if type(key) is int and 0 <= key < KEYS else None


def as_it_came(delivery: Delivery) -> Properties:
    """The properties of a message that nobody could read, but for what the broker added.

    The message id is fresh, since the broker's returns are told apart by it; the old one
    becomes the job id where there is none.
    """
    old = delivery.properties
    headers = lasting(old.headers)
    headers.setdefault("amqpjobs-id", old.message_id or new_id())
    return replace(old, headers=headers, message_id=new_id())


def check_headers(headers: Mapping[str, HeaderValue]) -> None:
    """Headers of a user at enqueue: ours and the broker's names are refused, and so is too much."""
    for name in headers:
        if foreign({name: None}) == {}:
            raise ValueError(f"The header name {name!r} is reserved; choose one that does not begin with it.")
        if not name or len(name.encode()) > 128:
            raise ValueError(f"A header name has 1 to 128 bytes, not {name[:40]!r}.")
    size = table_size(headers)
    if size > HEADER_BUDGET // 2:
        raise TooLargeError(
            f"The headers need {size} bytes and may have {HEADER_BUDGET // 2}. Put what is large into the job itself."
        )


def within_budget(headers: Headers, budget: int = HEADER_BUDGET) -> Headers:
    """These headers, the largest left out and their names told, until they fit."""
    total = table_size(headers)
    if total <= budget:
        return headers
    kept, cut = dict(headers), list[str]()
    room = budget - 2_000  # for the names of what is cut
    sizes = {name: table_size({name: value}) - 4 for name, value in headers.items()}
    # Ours are few and small; what else bears our prefix was not written by us.
    loose = [name for name in headers if not (name in _OURS or name == _SLOT_HEADER) or sizes[name] > 400]
    for name in sorted(loose, key=lambda each: sizes[each], reverse=True):
        if total <= room:
            break
        total -= sizes[name]
        del kept[name]
        cut.append(name)
    told_before = headers.get(CUT_HEADER)
    names = ([told_before] if isinstance(told_before, str) else []) + [name for name in cut if name != CUT_HEADER]
    return kept | {CUT_HEADER: clip(", ".join(names), 1_000)}


def clip(text: str, budget: int) -> str:
    """The text within so many bytes: its beginning and, for a traceback the more telling, its end."""
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) <= budget:
        return raw.decode()
    head, tail = raw[: budget // 4], raw[-(budget - budget // 4 - 20) :]
    return head.decode("utf-8", "ignore") + "\n[… cut …]\n" + tail.decode("utf-8", "ignore")


def words_of(error: BaseException) -> str:
    """`ValueError: what was wrong`, whatever the error's own `__str__` does."""
    if isinstance(error, RemoteError):
        return str(error)
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__}, which cannot say what was wrong"


def traceback_of(error: BaseException) -> str:
    """The traceback of an error that came out of a handler, from the handler's own frames on."""
    if isinstance(error, RemoteError):
        return error.trace or str(error)
    told = traceback.TracebackException.from_exception(error)
    theirs = [frame for frame in told.stack if not frame.filename.startswith(_PACKAGE)]
    told.stack = traceback.StackSummary.from_list(theirs)
    return "".join(told.format()).rstrip()


def dumps(value: object) -> bytes:
    """JSON for logs and machines; what JSON does not know is written as text."""
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)


def pretty(value: object) -> bytes:
    """JSON for a file under version control: sorted and indented, so that two of them can be compared by line."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def canonical(value: object) -> str:
    """JSON to compare by: equal values give equal texts, and 1, 1.0 and true do not."""
    return json.dumps(value, sort_keys=True)


def loads(text: str | bytes) -> Any:
    """JSON from a person or a file. Raises ValueError with the place of the fault."""
    return orjson.loads(text)


def milliseconds(time: datetime) -> int:
    """A time as the wire has it; what was before the epoch is as past as the epoch itself."""
    return max(0, (time - _EPOCH) // _MILLISECOND)


def _text(headers: Headers, name: str) -> str | None:
    value = headers.get(name)
    if value is None or (isinstance(value, str) and 0 < len(value) <= 255):
        return value or None
    raise UnreadableError(f"The header {name} must be a string of 1 to 255 characters, {_not(value)}.")


def _number(headers: Headers, name: str, *, least: int = 0, most: int = 2**31 - 1) -> int | None:
    value = headers.get(name)
    if value is None:
        return None
    if type(value) is int and least <= value <= most:
        return value
    raise UnreadableError(f"The header {name} must be a whole number from {least} to {most}, {_not(value)}.")


def _time(headers: Headers, name: str) -> datetime | None:
    value = _number(headers, name, most=253_402_300_799_999)  # the end of the year 9999
    return None if value is None else _EPOCH + value * _MILLISECOND


def _seconds(headers: Headers, name: str) -> float | None:
    value = _number(headers, name, least=1, most=2**63 - 1)
    return None if value is None else value / 1000


def _not(value: object) -> str:
    shown = repr(value)
    return f"not {type(value).__name__} {shown[:40]}{'…' if len(shown) > 40 else ''}"


#: Headers that most jobs do not have: the field of an envelope that each is, and what reads it.
_UNUSUAL: Mapping[str, tuple[str, Callable[[Headers, str], object]]] = {
    "amqpjobs-exchange": ("exchange", _text),
    CRASHES_HEADER: ("crashes", _number),
    SHARD_HEADER: ("shard_key", partial(_number, most=KEYS - 1)),
    "amqpjobs-run-at": ("run_at", _time),
    "amqpjobs-expires-at": ("expires_at", _time),
    "amqpjobs-max-attempts": ("max_attempts", partial(_number, least=1)),
    "amqpjobs-timeout-ms": ("timeout", _seconds),
    "amqpjobs-parent": ("parent", _text),
    "amqpjobs-root": ("root", _text),
    "amqpjobs-schedule": ("schedule", _text),
    "amqpjobs-copy": ("copy", _text),
    "amqpjobs-doubt-since": ("doubt_since", _time),
    "amqpjobs-first-at": ("first_at", _time),
    "amqpjobs-unknown-since": ("unknown_since", _time),
}
