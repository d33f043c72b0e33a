"""The answer to a job, for the process that awaits its result: written by the worker, read by the caller.

Only a final outcome has one. Its body is JSON: `{"state": "completed", "result": …}`, or a state and
the text of an error. Nothing of it is bound to a language: exceptions travel as words.

A result must never cost its job: what cannot be written, or is too large, is told in the place of the
result. And an answer must never cost its caller more than itself: what is no answer is said to be none.
"""

from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from amqpjobs.codec import (
    CONTENT_TYPE,
    ERROR_BUDGET,
    TRACEBACK_BUDGET,
    RemoteError,
    clip,
    dumps,
    problems_of,
    result_from,
    result_json,
    traceback_of,
    words_of,
)
from amqpjobs.envelope import Envelope, new_id
from amqpjobs.errors import JobCancelledError, JobFailedError, ResultError, UnreadableError
from amqpjobs.job import Job
from amqpjobs.outcome import Cancelled, Completed, Dead, Expired
from amqpjobs.registry import Registry
from amqpjobs.topology import Topology
from amqpjobs.wire import Properties, Publication

#: The outcomes that are answered. A job that is tried again has not ended.
FinalOutcome = Completed | Dead | Cancelled | Expired
#: Bytes of the name of an error's class.
TYPE_BUDGET = 200


class ErrorText(BaseModel, defer_build=True):
    """An error, in words."""

    type: str = ""
    message: str = ""
    traceback: str = ""


class Reply(BaseModel, defer_build=True):
    """An answer but for the result itself, which stays in the body until somebody knows its type."""

    state: Literal["completed", "dead", "cancelled", "expired"]
    reason: str = ""
    error: ErrorText | None = None


class Replies:
    """What one worker answers."""

    def __init__(self, topology: Topology, registry: Registry, *, longest: int) -> None:
        self._topology = topology
        self._registry = registry
        self._longest = longest

    def answer(self, envelope: Envelope, outcome: FinalOutcome) -> Publication | None:
        """What to tell who awaits the job; None when that is to go to a place that is none of ours."""
        route = self._topology.to_reply(envelope.reply_to or "")
        if route is None:
            return None
        properties = Properties(
            headers={"amqpjobs-id": envelope.job_id},
            kind=envelope.kind,
            message_id=new_id(),
            correlation_id=envelope.correlation_id or envelope.job_id,
            content_type=CONTENT_TYPE,
        )
        body = self._body(envelope, outcome)
        return Publication(exchange=route.exchange, routing_key=route.key, body=body, properties=properties)

    def _body(self, envelope: Envelope, outcome: FinalOutcome) -> bytes:
        match outcome:
            case Completed(result):
                return self._completed(envelope, result)
            case Dead(reason, error):
                return _body("dead", reason=reason.value, error=_text_of(error))
            case Cancelled(reason):
                return _body("cancelled", reason=clip(str(reason), ERROR_BUDGET))
            case Expired():
                return _body("expired")

    def _completed(self, envelope: Envelope, result: object) -> bytes:
        handler = self._registry.get(envelope.kind)
        try:
            raw = (
                b'{"result":null}' if handler is None or _is_nothing(handler.job) else result_json(handler.job, result)
            )
        except Exception as error:  # not of its type, or of one that pydantic cannot write
            return _untold(f"it cannot be written: {words_of(error)}")
        body = b'{"state":"completed",' + raw[1:]
        return body if len(body) <= self._longest else _untold(_too_large(len(body), f"{self._longest} are the most"))


def in_few_words(answer: Publication) -> Publication:
    """An answer without its result, where the broker takes no message of that size."""
    return replace(answer, body=_untold(_too_large(len(answer.body), "the broker takes less")))


def read_reply(body: bytes) -> Reply:
    """Raises UnreadableError for what is no answer."""
    try:
        return Reply.model_validate_json(body)
    except ValidationError as error:
        raise UnreadableError(f"The answer cannot be read: {'; '.join(problems_of(error)[:5])}.") from None


def result_in(job: type[Job[Any]], job_id: str, body: bytes, reply: Reply) -> object:
    """The typed result of an answer. Raises ResultError and its kin, with the job's id."""
    try:
        return _result_in(job, job_id, body, reply)
    except ResultError as error:
        error.job_id = job_id
        raise


def _result_in(job: type[Job[Any]], job_id: str, body: bytes, reply: Reply) -> object:
    what = f"Job {job.__name__} ({job_id})"
    told = reply.error or ErrorText()
    match reply.state:
        case "completed" if reply.error is not None:
            raise ResultError(f"{what} has completed, but its result did not come: {clip(told.message, ERROR_BUDGET)}")
        case "completed":
            return _typed(job, what, body)
        case "dead":
            words = clip(": ".join(part for part in (told.type, told.message) if part), ERROR_BUDGET)
            raise JobFailedError(
                f"{what} has failed ({clip(reply.reason, TYPE_BUDGET)}): {words or 'no error was told'}",
                reason=clip(reply.reason, TYPE_BUDGET),
                error_type=clip(told.type, TYPE_BUDGET),
                message=clip(told.message, ERROR_BUDGET),
                traceback=clip(told.traceback, TRACEBACK_BUDGET),
            )
        case "cancelled":
            why = clip(reply.reason, ERROR_BUDGET)
            text = f"{what} has cancelled itself{f': {why}' if why else '.'}"
            raise JobCancelledError(text, state="cancelled", reason=why)
        case "expired":
            raise JobCancelledError(f"{what} expired before it was started.", state="expired")


def _typed(job: type[Job[Any]], what: str, body: bytes) -> object:
    try:
        return None if _is_nothing(job) else result_from(job, body)
    except Exception as error:  # a validator of the user's may raise anything
        unfit = ResultError(
            f"{what} has completed, but its result is none of {job.__name__} here ({words_of(error)[:1_000]}). Caller "
            "and worker may have different versions of the class; what came is in the error's attribute `came`."
        )
        unfit.came = body
        raise unfit from None


def _is_nothing(job: type[Job[Any]]) -> bool:
    return job.result_type() in (None, type(None))


def _body(state: str, **more: object) -> bytes:
    return dumps({"state": state, **more})


def _untold(why: str) -> bytes:
    """Of a job that has completed, and whose result cannot be told."""
    return _body("completed", error={"type": "ResultError", "message": clip(why, ERROR_BUDGET), "traceback": ""})


def _too_large(size: int, limit: str) -> str:
    return (
        f"it has {size} bytes, and {limit}. Keep what is large in a store of its own and return its address, or raise "
        "AMQPJOBS_MAX_BODY for worker and caller (RabbitMQ 4 takes 16 MiB at most)."
    )


def _text_of(error: BaseException | None) -> dict[str, str] | None:
    if error is None:
        return None
    words = words_of(error)
    name, _, message = words.partition(": ") if isinstance(error, RemoteError) else _named(error, words)
    return {
        "type": clip(name, TYPE_BUDGET),
        "message": clip(message, ERROR_BUDGET),
        "traceback": clip(traceback_of(error), TRACEBACK_BUDGET),
    }


def _named(error: BaseException, words: str) -> tuple[str, str, str]:
    name = type(error).__name__
    return name, ": ", words.removeprefix(f"{name}: ")
