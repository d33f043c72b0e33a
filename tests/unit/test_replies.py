"""What a worker answers, and what its caller makes of it, or of whatever else came."""

import json
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from amqpjobs import JobCancelledError, JobFailedError, ResultError
from amqpjobs.codec import ERROR_BUDGET, TRACEBACK_BUDGET, RemoteError
from amqpjobs.errors import UnreadableError
from amqpjobs.job import Job
from amqpjobs.outcome import Cancelled, Completed, Dead, DeadReason, Expired
from amqpjobs.registry import Registry
from amqpjobs.replies import FinalOutcome, Replies, in_few_words, read_reply, result_in
from amqpjobs.topology import Topology
from tests.unit.making import envelope

TOPOLOGY = Topology("ns")
MINE = TOPOLOGY.reply_queue("mine")
LONGEST = 100_000


class Receipt(BaseModel):
    id: str
    at: datetime
    token: SecretStr = SecretStr("")


class Buy(Job[Receipt], kind="buy"):
    pass


class Count(Job[int], kind="count"):
    pass


class Measure(Job[float], kind="measure"):
    pass


class Nothing(Job[None], kind="nothing"):
    pass


class Anything(Job[Any], kind="anything"):
    pass


class Strange:
    pass


class Unwritable(Job[Strange], kind="unwritable"):
    pass


def handle(job: Any) -> Any:
    """Nobody calls it here."""


def replies(*, longest: int = LONGEST) -> Replies:
    registry = Registry("work")
    for job in (Buy, Count, Measure, Nothing, Anything, Unwritable):
        registry.add(cast("type[Job[Any]]", job), handle, {})
    return Replies(TOPOLOGY, registry, longest=longest)


def body_of(job: type[Job[Any]], outcome: FinalOutcome, *, longest: int = LONGEST) -> bytes:
    """What is answered."""
    asked = envelope(job.__amqpjobs__.kind, reply_to=MINE)
    answer = replies(longest=longest).answer(asked, outcome)
    assert answer is not None
    return answer.body


def heard(job: type[Job[Any]], body: bytes) -> object:
    """What the caller gets."""
    return result_in(job, "job-1", body, read_reply(body))


@pytest.mark.parametrize(
    ("job", "result"),
    [
        (Buy, Receipt(id="1", at=datetime(2026, 1, 1, tzinfo=UTC), token=SecretStr("hidden"))),
        (Count, 3),
        (Nothing, None),
        (Anything, {"a": [1, None, "ü"]}),
    ],
)
def test_a_result_comes_as_it_was_returned(job: type[Job[Any]], result: object) -> None:
    assert heard(job, body_of(job, Completed(result))) == result


def test_an_answer_says_in_json_how_the_job_ended() -> None:
    assert json.loads(body_of(Count, Completed(3))) == {"state": "completed", "result": 3}
    assert json.loads(body_of(Count, Expired())) == {"state": "expired"}
    assert json.loads(body_of(Count, Cancelled("no need"))) == {"state": "cancelled", "reason": "no need"}


def test_an_answer_goes_to_the_queue_that_was_asked_for_with_the_ids_of_its_job() -> None:
    answer = replies().answer(envelope("count", reply_to=MINE, correlation_id="theirs"), Completed(1))

    assert answer is not None
    assert (answer.exchange, answer.routing_key) == ("ns.queues", MINE)
    assert answer.properties.correlation_id == "theirs"
    assert answer.properties.headers == {"amqpjobs-id": "job-1"}
    assert answer.properties.reply_to is None


@pytest.mark.parametrize(
    "place",
    [
        "",
        "ns.queue.work",
        "ns.dead.work",
        "ns.parked.v1",
        "ns.replies.v1",
        "ns.replies.v1.",
        "ns.replies.v1.a.b",
        "ns.replies.v1.a\n",
        "ns.replies.v1.*",
        "other.replies.v1.mine",
        "ns.replies.v1." + "x" * 200,
        "amq.rabbitmq.reply-to.abc",
    ],
)
def test_no_other_place_is_answered_to(place: str) -> None:
    assert replies().answer(envelope("count", reply_to=place), Completed(1)) is None


def test_a_failure_comes_with_its_type_its_message_and_where_it_was() -> None:
    try:
        raise KeyError("colour")
    except KeyError as error:
        body = body_of(Count, Dead(DeadReason.ATTEMPTS_EXHAUSTED, error))

    with pytest.raises(JobFailedError) as caught:
        heard(Count, body)

    failed = caught.value
    assert (failed.error_type, failed.message, failed.reason) == ("KeyError", "'colour'", "attempts_exhausted")
    assert 'raise KeyError("colour")' in failed.traceback
    assert failed.job_id == "job-1"
    assert "KeyError: 'colour'" in str(failed)
    assert any("test_replies" in note for note in failed.__notes__)


def test_a_failure_of_another_process_is_told_as_its_own() -> None:
    remote = RemoteError("OSError: disk: full", "Traceback of the child")

    with pytest.raises(JobFailedError) as caught:
        heard(Count, body_of(Count, Dead(DeadReason.NOT_RETRYABLE, remote)))

    assert (caught.value.error_type, caught.value.message) == ("OSError", "disk: full")
    assert caught.value.traceback == "Traceback of the child"


def test_a_failure_without_an_error_says_its_reason() -> None:
    with pytest.raises(JobFailedError, match="too_large"):
        heard(Count, body_of(Count, Dead(DeadReason.TOO_LARGE)))


def test_a_failure_is_bounded_however_much_it_has_to_say() -> None:
    body = body_of(Count, Dead(DeadReason.NOT_RETRYABLE, ValueError("x" * 10_000_000)))

    assert len(body) < ERROR_BUDGET + TRACEBACK_BUDGET + 2_000
    with pytest.raises(JobFailedError):
        heard(Count, body)


@pytest.mark.parametrize(("outcome", "state"), [(Expired(), "expired"), (Cancelled("why not"), "cancelled")])
def test_a_job_that_ended_without_a_result_says_so(outcome: FinalOutcome, state: str) -> None:
    with pytest.raises(JobCancelledError) as caught:
        heard(Count, body_of(Count, outcome))

    assert caught.value.state == state
    assert caught.value.reason == ("why not" if state == "cancelled" else "")
    assert caught.value.job_id == "job-1"


def test_a_result_too_large_is_told_and_its_job_has_completed() -> None:
    body = body_of(Anything, Completed("x" * 5_000), longest=2_000)

    assert len(body) < 2_000
    with pytest.raises(ResultError, match=r"has completed, but its result did not come: it has 50\d\d bytes") as caught:
        heard(Anything, body)
    assert type(caught.value) is ResultError


def test_an_answer_that_the_broker_will_not_take_is_said_in_few_words() -> None:
    answer = replies().answer(envelope("anything", reply_to=MINE), Completed("x" * 50_000))
    assert answer is not None

    short = in_few_words(answer)

    assert (short.routing_key, short.properties) == (answer.routing_key, answer.properties)
    assert len(short.body) < 1_000
    with pytest.raises(ResultError, match=r"50\d\d\d bytes, and the broker takes less"):
        heard(Anything, short.body)


@pytest.mark.parametrize(("job", "result"), [(Count, "three"), (Unwritable, Strange()), (Anything, object())])
def test_a_result_that_cannot_be_written_is_told(job: type[Job[Any]], result: object) -> None:
    with pytest.raises(ResultError, match="its result did not come: it cannot be written"):
        heard(job, body_of(job, Completed(result)))


def test_a_result_of_another_version_of_the_class_is_told_without_its_values_and_kept_aside() -> None:
    body = b'{"state":"completed","result":{"id":"secret","at":"never"}}'

    with pytest.raises(ResultError, match="none of Buy here") as caught:
        heard(Buy, body)

    assert caught.value.came == body
    assert "secret" not in str(caught.value)
    assert "never" not in str(caught.value)


GARBAGE = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b"\xff\xfe",
    b'{"state": "running"}',
    b'{"state": ["completed"]}',
    b'{"state": "dead", "error": 7}',
    b'{"state": "dead", "reason": {}}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("body", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_no_answer(body: bytes) -> None:
    with pytest.raises(UnreadableError):
        read_reply(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {"state": st.sampled_from(["completed", "dead", "cancelled", "expired"]) | JSON},
    optional={
        "result": JSON,
        "reason": st.text() | JSON,
        "error": st.fixed_dictionaries({}, optional={"type": st.text(), "message": st.text(), "traceback": st.text()})
        | JSON,
    },
)
BODIES = st.binary() | JSON.map(lambda value: json.dumps(value).encode()) | FIELDS.map(lambda v: json.dumps(v).encode())


@given(BODIES, st.sampled_from([Buy, Count, Nothing, Anything]))
@example(b'{"state":"completed"}', Count)
@example(b'{"state":"completed","result":1e999}', Count)
@example(b'{"state":"dead","error":{"type":"\\ud800"}}', Count)
def test_whatever_comes_is_a_result_or_an_error_of_ours(body: bytes, job: type[Job[Any]]) -> None:
    try:
        result = heard(job, body)
    except (UnreadableError, ResultError):
        return

    assert json.loads(body)["state"] == "completed"
    assert job is not Count or isinstance(result, int)


@given(JSON)
def test_any_json_survives_the_way(value: object) -> None:
    assert heard(Anything, body_of(Anything, Completed(value))) == value


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_an_infinite_result_once_came_back_as_none(value: float) -> None:
    assert heard(Measure, body_of(Measure, Completed(value))) == value
    assert heard(Anything, body_of(Anything, Completed([value]))) == [str(value).replace("inf", "Infinity")]


def test_no_prefix_of_an_answer_is_one() -> None:
    body = body_of(Buy, Completed(Receipt(id="1", at=datetime(2026, 1, 1, tzinfo=UTC))))

    for end in range(len(body)):
        with pytest.raises(UnreadableError):
            read_reply(body[:end])
