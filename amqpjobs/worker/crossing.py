"""What crosses between a worker and its children, and how it looks in between.

A frame is a small JSON object, the head, and a body of bytes, which is a payload or a result
as it is: neither is copied into the other's JSON, however large. Nothing is ever unpickled,
and nothing is imported by a name that came from the broker.
"""

import logging
import struct
import sys
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from amqpjobs.codec import (
    ERROR_BUDGET,
    TRACEBACK_BUDGET,
    RemoteError,
    clip,
    dumps,
    loads,
    result_from,
    result_json,
    traceback_of,
    words_of,
)
from amqpjobs.envelope import Envelope
from amqpjobs.job import Job
from amqpjobs.outcome import (
    Cancelled,
    Completed,
    Dead,
    DeadReason,
    Expired,
    Outcome,
    Retrying,
    Returned,
    Snoozed,
)

Head = dict[str, Any]
Frame = tuple[Head, bytes]

#: The lengths of head and body, before both.
LENGTHS = struct.Struct("!IQ")
#: Of a log line's text and of each of its fields, in bytes.
LOG_BUDGET = 64 * 1024

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def packed(head: Mapping[str, object], body: bytes = b"") -> list[bytes]:
    """A frame as it is sent, one piece after the other."""
    raw = dumps(head)
    return [LENGTHS.pack(len(raw), len(body)) + raw, body]


def job_frame(envelope: Envelope) -> Frame:
    """An envelope for a child. Header values that JSON does not know become text."""
    head = {each.name: getattr(envelope, each.name) for each in fields(envelope)}
    head["headers"] = {name: _plain(value) for name, value in envelope.headers.items()}
    return {"say": "job", "envelope": head | {"payload": ""}}, envelope.payload


def envelope_of(frame: Frame) -> Envelope:
    head, body = frame
    return _envelope_type().validate_python(head["envelope"]).evolve(payload=body)


@cache
def _envelope_type() -> TypeAdapter[Envelope]:
    return TypeAdapter(Envelope)  # when a child first needs it: no worker does


def outcome_frame(outcome: Outcome, job: type[Job[Any]]) -> Frame:
    """How a job ended, for the worker. Raises ValueError when its result is not what the job promises."""
    match outcome:
        case Completed(result):
            return _outcome("completed"), b"" if _returns_nothing(job) else result_json(job, result)
        case Retrying(delay, error):
            return _outcome("retrying", delay=_finite(delay), error=_told(error)), b""
        case Snoozed(delay, reason, unknown):
            return _outcome("snoozed", delay=_finite(delay), reason=_text(reason), unknown=unknown), b""
        case Cancelled(reason):
            return _outcome("cancelled", reason=_text(reason)), b""
        case Expired():
            return _outcome("expired"), b""
        case Returned():
            return _outcome("returned"), b""
        case Dead(reason, error):
            return _outcome("dead", reason=reason.value, error=_told(error)), b""


def outcome_of(frame: Frame, job: type[Job[Any]]) -> Outcome:
    """The same outcome again, its result typed and its error a RemoteError."""
    head, body = frame
    match head["outcome"]:
        case "completed":
            return Completed(None if not body or _returns_nothing(job) else result_from(job, body))
        case "retrying":
            return Retrying(head["delay"], error_of(head))
        case "snoozed":
            return Snoozed(head["delay"], head["reason"], head["unknown"])
        case "cancelled":
            return Cancelled(head["reason"])
        case "expired":
            return Expired()
        case "dead":
            return Dead(DeadReason(head["reason"]), error_of(head))
        case _:
            return Returned()


def failure_frame(say: str, error: BaseException) -> Frame:
    return {"say": say, "error": _told(error)}, b""


def error_of(head: Head, prefix: str = "") -> RemoteError | None:
    told = head["error"]
    return None if told is None else RemoteError(prefix + told["words"], told["trace"])


def log_frame(record: logging.LogRecord) -> Frame:
    """A log line, its arguments and its exception already text."""
    error = record.exc_info[1] if record.exc_info else None
    return {
        "say": "log",
        "name": record.name,
        "levelno": record.levelno,
        "levelname": record.levelname,
        "msg": clip(record.getMessage(), LOG_BUDGET),
        "created": record.created,
        "extra": {name: _plain(value) for name, value in vars(record).items() if name not in _STANDARD},
        "error": _told(error),
    }, b""


def record_of(head: Head) -> logging.LogRecord:
    """The log line again, for any formatter."""
    record = logging.makeLogRecord(
        head["extra"] | {name: head[name] for name in ("name", "levelno", "levelname", "msg", "created")}
    )
    record.msecs = (record.created % 1) * 1000
    if (error := error_of(head)) is not None:
        record.exc_info, record.exc_text = (type(error), error, None), error.trace
    return record


def _outcome(name: str, **more: object) -> Head:
    return {"say": "outcome", "outcome": name, **more}


def _told(error: BaseException | None) -> dict[str, str] | None:
    if error is None:
        return None
    return {"words": clip(words_of(error), ERROR_BUDGET), "trace": clip(traceback_of(error), TRACEBACK_BUDGET)}


def _text(words: object) -> str:
    return clip(str(words), ERROR_BUDGET)


def _returns_nothing(job: type[Job[Any]]) -> bool:
    return job.result_type() in (None, type(None))


def _finite(delay: float) -> float:
    return min(delay, sys.float_info.max)  # JSON has no infinity


def _plain(value: object) -> object:
    """What JSON can say of a value, as small as a log line or a header may be."""
    try:
        raw = dumps(value)
    except Exception:  # surrogates, circles, a __str__ that fails
        return clip(object.__repr__(value), LOG_BUDGET)
    return loads(raw) if len(raw) <= LOG_BUDGET else clip(raw.decode(), LOG_BUDGET)
