"""Golden span trees: what an enqueue and its runs look like in a trace.

Each line is a span: its label (a letter for the trace, a number for the span in it), name, kind, status if it is
not unset, attributes, events and links. What all have in common is checked while the tree is made (see
`tests.support.traces`), and each span has also gone through OTLP.
"""

import asyncio
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from io import StringIO
from logging import getLogger, makeLogRecord
from textwrap import dedent
from types import FrameType, GenericAlias
from typing import Annotated, Any, cast

import aio_pika
import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter, Setter, TextMapPropagator, default_getter, default_setter
from opentelemetry.trace import SpanContext, TraceFlags
from pydantic import Field

from amqpjobs import (
    Batch,
    BatchContext,
    Beat,
    BlockingClient,
    Cancel,
    EnqueueManyError,
    Job,
    JobContext,
    Queue,
    Snooze,
    Traceable,
    TraceIds,
    Worker,
)
from amqpjobs.codec import loads
from amqpjobs.deadletters import DeadLetters, dead_of
from amqpjobs.errors import UnroutableError
from amqpjobs.events import JobEnded
from amqpjobs.job import options_of
from amqpjobs.logs import log_events, set_up_logging
from tests.support.apps import Bench, Note, dead_queue, record, watch, work_queue
from tests.support.broker import Broker, eventually
from tests.support.ticks import Each
from tests.support.traces import Traces, traced


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Generator[Traces]:
    with traced(monkeypatch) as traces:
        yield traces


def tree(text: str) -> str:
    return dedent(text).lstrip("\n")


def kind_of(kind: type[Note]) -> str:
    return options_of(kind).kind


async def fail(job: Note, context: JobContext[Any]) -> None:
    raise ValueError("as asked")


# The relation of runs to their enqueue


async def test_an_immediate_run_is_a_child_of_its_enqueue(bench: Bench, traces: Traces) -> None:
    app, kind = bench.app(), bench.kind()
    record(app, kind)

    async with Worker(app):
        await app.enqueue(kind())
        await traces.until(2)

    assert traces.tree(note=kind_of(kind), app=app.name) == tree("""
        A1 send tests:note PRODUCER id=job-1
          A2 process tests:note:tests.queue.app CONSUMER attempt=1 id=job-1 outcome=completed -enqueue->A1
    """)


async def test_three_attempts_a_dead_letter_and_its_success_after_a_requeue(bench: Bench, traces: Traces) -> None:
    app, kind = bench.app(), bench.kind()
    is_mended = False

    async def fail_until_mended(job: Note, context: JobContext[Any]) -> None:
        if not is_mended:
            raise ValueError("as asked")

    record(app, kind, fail_until_mended, max_attempts=3)
    async with Worker(app):
        await app.enqueue(kind())
        await traces.until(4)
        await bench.broker.await_count(dead_queue(app), 1)
        is_mended = True
        async with DeadLetters(app) as letters:
            await letters.requeue(dead_of(app.name))
        await traces.until(5)

    assert traces.tree(note=kind_of(kind), app=app.name) == tree("""
        A1 send tests:note PRODUCER id=job-1
          A2 process tests:note:tests.queue.app CONSUMER ERROR attempt=1 error.type=ValueError id=job-1 \
outcome=retrying !ValueError(as asked) !retry(delay=0.1) -enqueue->A1
          A3 process tests:note:tests.queue.app CONSUMER ERROR attempt=2 error.type=ValueError id=job-1 \
outcome=retrying !ValueError(as asked) !retry(delay=0.1) -enqueue->A1 -previous_attempt->A2
          A4 process tests:note:tests.queue.app CONSUMER ERROR attempt=3 dead_reason=attempts_exhausted \
error.type=ValueError id=job-1 outcome=dead !ValueError(as asked) !dead(reason=attempts_exhausted) -enqueue->A1 \
-previous_attempt->A3
        B1 process tests:note:tests.queue.app CONSUMER attempt=1 id=job-1 outcome=completed requeues=1 -enqueue->A1 \
-previous_attempt->A4
    """)


async def test_a_delayed_run_has_a_trace_of_its_own_with_a_link(bench: Bench, traces: Traces) -> None:
    app, kind = bench.app(), bench.kind()
    record(app, kind)

    async with Worker(app):
        await app.enqueue(kind(), delay=0.2)
        await traces.until(2)

    assert traces.tree(note=kind_of(kind), app=app.name) == tree("""
        A1 send tests:note PRODUCER delay=0.2 id=job-1
        B1 process tests:note:tests.queue.app CONSUMER attempt=1 id=job-1 outcome=completed -enqueue->A1
    """)


async def test_jobs_enqueued_together_share_one_span_and_have_traces_of_their_own(bench: Bench, traces: Traces) -> None:
    app, kind = bench.app(), bench.kind()
    record(app, kind)

    async with Worker(app, concurrency=1):
        await app.enqueue_many([kind(n=1), kind(n=2)])
        await traces.until(3)

    assert traces.tree(note=kind_of(kind), app=app.name) == tree("""
        A1 send tests:note PRODUCER message_count=2
        B1 process tests:note:tests.queue.app CONSUMER attempt=1 id=job-1 outcome=completed -enqueue->A1
        C1 process tests:note:tests.queue.app CONSUMER attempt=1 id=job-2 outcome=completed -enqueue->A1
    """)


async def test_an_enqueue_inside_a_handler_is_a_child_of_its_attempt(bench: Bench, traces: Traces) -> None:
    app, kind = bench.app(), bench.kind()

    async def follow(job: Note, context: JobContext[Any]) -> None:
        if job.n:
            await context.enqueue(kind(n=job.n - 1))

    record(app, kind, follow)
    async with Worker(app):
        await app.enqueue(kind(n=1))
        await traces.until(4)

    assert traces.tree(note=kind_of(kind), app=app.name) == tree("""
        A1 send tests:note PRODUCER id=job-1
          A2 process tests:note:tests.queue.app CONSUMER attempt=1 id=job-1 outcome=completed -enqueue->A1
            A3 send tests:note PRODUCER id=job-2 parent=job-1
              A4 process tests:note:tests.queue.app CONSUMER attempt=1 id=job-2 outcome=completed parent=job-1 \
-enqueue->A3
    """)


async def test_ticks_link_to_their_schedule_and_their_runs_to_the_ticks(
    bench: Bench, broker: Broker, traces: Traces
) -> None:
    app, kind = bench.app(), bench.kind()
    record(app, kind)
    app.schedule(Each(0.5), job=kind(), name="often")

    async with Worker(app), Beat(app):
        await traces.until(2, "process")

    first, second = (each.attributes["amqpjobs.job.id"] for each in traces.named("process")[:2])
    # Job by job: the second tick may be sent before the first one runs.
    some = [
        each for job in (None, first, second) for each in traces.spans if each.attributes.get("amqpjobs.job.id") == job
    ]
    assert traces.tree_of(some, note=kind_of(kind), app=app.name) == tree("""
        A1 schedule often INTERNAL name=often
        B1 send tests:note PRODUCER id=job-1 name=often -schedule->A1
        C1 process tests:note:tests.queue.app CONSUMER attempt=1 id=job-1 name=often outcome=completed -enqueue->B1
        D1 send tests:note PRODUCER id=job-2 name=often -schedule->A1
        E1 process tests:note:tests.queue.app CONSUMER attempt=1 id=job-2 name=often outcome=completed -enqueue->D1
    """)
    for queue in app.topology.beat(app.name).queues:
        await broker.delete_queue(queue.name)


async def test_two_services_run_copies_in_traces_of_their_own_where_the_class_says_so(
    bench: Bench, traces: Traces
) -> None:
    mail, stock = bench.app(), bench.app()
    kind = bench.kind(trace_relation="link")
    record(mail, kind)
    record(stock, kind)

    async with Worker(mail), Worker(stock):
        await mail.enqueue(kind())
        await traces.until(3)

    runs = sorted(traces.named("process"), key=lambda each: "mail" in each.name.replace(mail.name, "mail"))
    some = [*traces.named("send"), *runs]
    assert traces.tree_of(some, note=kind_of(kind), stock=stock.name, mail=mail.name) == tree("""
        A1 send tests:note PRODUCER id=job-1
        B1 process tests:note:tests.queue.stock CONSUMER attempt=1 id=job-1 outcome=completed -enqueue->A1
        C1 process tests:note:tests.queue.mail CONSUMER attempt=1 id=job-1 outcome=completed -enqueue->A1
    """)


@pytest.mark.parametrize(("relation", "delay", "is_child"), [("child", 0.1, True), ("link", None, False)])
async def test_a_setting_chooses_the_relation_for_all(
    bench: Bench, traces: Traces, relation: str, delay: float | None, is_child: bool
) -> None:
    app, kind = bench.app(settings=bench.settings(trace_relation=relation)), bench.kind()
    record(app, kind)

    async with Worker(app):
        await app.enqueue(kind(), delay=delay)
        sent, ran = await traces.until(2)

    assert (ran.parent_id == sent.span_id) is is_child
    assert (ran.trace_id == sent.trace_id) is is_child
    assert [to for to, _ in ran.links] == [sent.span_id]


async def test_a_handlers_relation_wins_over_its_class_and_that_over_the_setting(bench: Bench, traces: Traces) -> None:
    app = bench.app(settings=bench.settings(trace_relation="link"))
    of_class, of_handler = bench.kind(trace_relation="child"), bench.kind(trace_relation="link")
    record(app, of_class)
    record(app, of_handler, trace_relation="child")

    async with Worker(app):
        await app.enqueue(of_class())
        await app.enqueue(of_handler())
        await traces.until(4)

    assert len({each.trace_id for each in traces.spans}) == 2


# Outcomes


async def test_snoozed_cancelled_timed_out_and_expired_are_told_by_events_of_stable_names(
    bench: Bench, broker: Broker, traces: Traces
) -> None:
    app, kind = bench.app(), bench.kind()

    async def behave(job: Note, context: JobContext[Any]) -> None:
        match job.text:
            case "snooze" if job.n == 0 and len(traces.named("process")) == 0:
                raise Snooze(0.1, "busy")
            case "cancel":
                raise Cancel("no need")
            case "overrun":
                await asyncio.Event().wait()
            case _:
                pass

    record(app, kind, behave, max_attempts=1, timeout=0.2)
    async with Worker(app):
        for count, text in ((3, "snooze"), (5, "cancel"), (7, "overrun")):
            await app.enqueue(kind(text=text))
            await traces.until(count)
        await broker.publish("tests", kind_of(kind), kind=kind_of(kind), headers={"amqpjobs-expires-at": 1})
        await traces.until(8)
        await broker.publish("tests", kind_of(kind), b'{"n": "none"}', kind=kind_of(kind))
        await traces.until(9)

    assert traces.tree(note=kind_of(kind), app=app.name) == tree("""
        A1 send tests:note PRODUCER id=job-1
          A2 process tests:note:tests.queue.app CONSUMER attempt=1 id=job-1 outcome=snoozed \
!snooze(delay=0.1,reason=busy) -enqueue->A1
          A3 process tests:note:tests.queue.app CONSUMER attempt=1 id=job-1 outcome=completed -enqueue->A1 \
-previous_attempt->A2
        B1 send tests:note PRODUCER id=job-2
          B2 process tests:note:tests.queue.app CONSUMER attempt=1 id=job-2 outcome=cancelled \
!cancel(reason=no need) -enqueue->B1
        C1 send tests:note PRODUCER id=job-3
          C2 process tests:note:tests.queue.app CONSUMER ERROR attempt=1 dead_reason=attempts_exhausted \
error.type=TimeoutError id=job-3 outcome=dead !timeout() !TimeoutError(It ran longer than its timeout of 0.2 s.) \
!dead(reason=attempts_exhausted) -enqueue->C1
        D1 process tests:note:tests.queue.app CONSUMER attempt=1 id=job-4 outcome=expired
        E1 process tests:note:tests.queue.app CONSUMER ERROR attempt=1 dead_reason=invalid_arguments \
error.type=InvalidArgumentsError id=job-5 outcome=dead !InvalidArgumentsError(The payload does not fit Note: n: Input \
should be a valid integer, unable to parse string as an integer.) !dead(reason=invalid_arguments)
    """)


async def test_a_message_that_is_no_job_and_one_of_an_unknown_kind_get_spans_too(
    bench: Bench, broker: Broker, traces: Traces
) -> None:
    app = bench.app(settings=bench.settings(unknown_window=0))

    async with Worker(app):
        await broker.publish("tests.queues", work_queue(app))
        await broker.publish("tests.queues", work_queue(app), kind="x" * 250)
        unreadable, unknown = await traces.until(2)

    assert [unreadable.name, unknown.name] == ["process", "process"]
    assert unreadable.attributes["amqpjobs.job.dead_reason"] == "unreadable"
    assert unknown.attributes["amqpjobs.job.dead_reason"] == "unknown_kind"


async def test_a_job_that_never_ran_is_not_taken_for_the_one_that_ran_before_it(
    bench: Bench, broker: Broker, traces: Traces
) -> None:
    name, kind, may_end = bench.unique(), bench.kind(), asyncio.Event()
    app = bench.app(name, queues=[Queue(name, prefetch=10)])

    async def wait(job: Note, context: JobContext[Any]) -> None:
        await may_end.wait()

    ran = record(app, kind, wait)
    async with Worker(app, concurrency=1) as worker:

        async def has_second() -> bool:
            return worker.waiting == 1

        await app.enqueue(kind(n=1))
        await ran.until(1)
        await broker.publish("tests", kind_of(kind), b'{"n": "none"}', kind=kind_of(kind))
        await eventually(has_second)
        may_end.set()  # the second one begins where the first one ends
        first, second = await traces.until(2, "process")
        [letter] = await broker.take(dead_queue(app), 1)

    assert [each.attributes["amqpjobs.job.outcome"] for each in (first, second)] == ["completed", "dead"]
    assert first.trace_id != second.trace_id
    assert f"{second.span_id:016x}" in letter.text("amqpjobs.previous-traceparent")


async def test_an_enqueue_that_fails_is_an_error(bench: Bench, traces: Traces) -> None:
    app, kind = bench.app(), bench.kind()

    async with app:
        with pytest.raises(UnroutableError):
            await app.enqueue(kind())
        with pytest.raises(EnqueueManyError):
            await app.enqueue_many([kind()])

    one, many = traces.spans
    assert (one.status, one.attributes["error.type"]) == ("ERROR", "UnroutableError")
    assert (many.status, many.attributes["error.type"]) == ("ERROR", "EnqueueManyError")
    assert many.attributes["amqpjobs.batch.failed_count"] == 1


async def test_settling_is_a_span_of_its_own_where_that_is_asked_for(bench: Bench, traces: Traces) -> None:
    app, kind = bench.app(settings=bench.settings(trace_settle=True)), bench.kind()
    record(app, kind)

    async with Worker(app):
        await app.enqueue(kind())
        await traces.until(3)

    assert traces.tree(note=kind_of(kind), app=app.name) == tree("""
        A1 send tests:note PRODUCER id=job-1
          A2 process tests:note:tests.queue.app CONSUMER attempt=1 id=job-1 outcome=completed -enqueue->A1
            A3 ack tests:note:tests.queue.app CLIENT id=job-1 outcome=completed
    """)


# Where the span is current


async def test_the_attempts_span_and_the_enqueuers_baggage_are_current_in_thread_and_loop(
    bench: Bench, traces: Traces
) -> None:
    app, in_loop, in_thread = bench.app(), bench.kind(), bench.kind()
    seen = list[tuple[int, object]]()

    def look() -> None:
        seen.append((trace.get_current_span().get_span_context().span_id, baggage.get_baggage("tenant")))

    async def handle_in_loop(job: Note) -> None:
        look()

    def handle_in_thread(job: Note) -> None:
        look()

    app.handler(in_loop)(handle_in_loop)
    app.handler(in_thread)(handle_in_thread)
    async with Worker(app):
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        await app.enqueue(in_loop())
        await app.enqueue(in_thread(), delay=0.1)
        context.detach(token)
        runs = await traces.until(2, "process")

    assert sorted(seen) == sorted((each.span_id, "acme") for each in runs)


async def test_a_batch_handler_runs_in_a_span_that_links_to_its_attempts(bench: Bench, traces: Traces) -> None:
    app, kind = bench.app(), bench.kind()

    async def handle(jobs: list[Note], context: BatchContext[Any]) -> Sequence[BaseException | None]:
        await context.contexts[0].enqueue(kind(n=3), queue=other)
        return [None, ValueError("as asked")]

    other = bench.unique()
    await bench.broker.declare_queue(f"tests.queue.{other}", {"x-queue-type": "classic"})
    await bench.broker.bind(f"tests.queue.{other}", "tests.queues", f"tests.queue.{other}")
    registering: Any = app.handler(
        cast("type[list[Note]]", GenericAlias(list, (kind,))), batch=Batch(size=2, seconds=600), max_attempts=1
    )
    registering(handle)
    async with Worker(app):
        await app.enqueue(kind(n=1))
        await app.enqueue(kind(n=2))
        await traces.until(6)

    assert traces.tree(note=kind_of(kind), app=app.name, other=other) == tree("""
        A1 send tests:note PRODUCER id=job-1
          A2 process tests:note:tests.queue.app CONSUMER attempt=1 id=job-1 outcome=completed -enqueue->A1
        B1 send tests:note PRODUCER id=job-2
          B2 process tests:note:tests.queue.app CONSUMER ERROR attempt=1 dead_reason=attempts_exhausted \
error.type=ValueError id=job-2 outcome=dead !ValueError(as asked) !dead(reason=attempts_exhausted) -enqueue->B1
        C1 process tests:note:tests.queue.app CONSUMER message_count=2 -batch_member->A2 -batch_member->B2
          C2 send tests.queues:tests.queue.other PRODUCER id=job-3 parent=job-1
    """)
    await bench.broker.delete_queue(f"tests.queue.{other}")


async def test_a_blocking_client_continues_the_trace_of_its_caller(bench: Bench, traces: Traces) -> None:
    app, kind = bench.app(), bench.kind()
    record(app, kind)
    tracer = trace.get_tracer("request")

    def request() -> None:
        with tracer.start_as_current_span("GET /"), BlockingClient(app) as client:
            client.enqueue(kind())

    async with Worker(app):
        await asyncio.to_thread(request)
        await traces.until(3)

    assert traces.tree(note=kind_of(kind), app=app.name) == tree("""
        A1 GET / INTERNAL
          A2 send tests:note PRODUCER id=job-1
            A3 process tests:note:tests.queue.app CONSUMER attempt=1 id=job-1 outcome=completed -enqueue->A2
    """)


async def test_a_job_in_a_buffer_continues_the_trace_of_its_put(bench: Bench, traces: Traces) -> None:
    app, kind = bench.app(), bench.kind()
    record(app, kind)
    tracer = trace.get_tracer("sensor")

    async with Worker(app), app.buffer() as buffer:
        with tracer.start_as_current_span("read"):
            buffer.enqueue(kind())
        await traces.until(3)

    assert traces.tree(note=kind_of(kind), app=app.name) == tree("""
        A1 read INTERNAL
          A2 send tests:note PRODUCER id=job-1
            A3 process tests:note:tests.queue.app CONSUMER attempt=1 id=job-1 outcome=completed -enqueue->A2
    """)


# Others


async def test_a_context_that_a_foreign_client_sends_is_taken_up_and_its_nonsense_is_not(
    bench: Bench, broker: Broker, traces: Traces
) -> None:
    app, kind = bench.app(), bench.kind()
    record(app, kind)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    nonsense: list[object] = [7, bytearray(b"\xff"), ["x"], {"a": 1}, "00-zz", "x" * 9_000, None]

    async with Worker(app):
        await broker.publish("tests", kind_of(kind), kind=kind_of(kind), headers={"traceparent": parent})
        for value in nonsense:
            headers = dict.fromkeys(("traceparent", "tracestate", "baggage", "amqpjobs.previous-traceparent"), value)
            headers |= {"amqpjobs.requeues": "many", "amqpjobs.enqueued-together": value}
            await broker.publish("tests", kind_of(kind), kind=kind_of(kind), headers=headers)
        first, *others = await traces.until(8)

    assert first.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert first.parent_id == 0xB7AD6B7169203331
    assert {each.parent_id for each in others} == {0}
    assert {each.attributes["amqpjobs.job.outcome"] for each in [first, *others]} == {"completed"}


async def test_a_context_that_the_enqueuer_has_put_into_the_headers_stays(bench: Bench, traces: Traces) -> None:
    app, kind = bench.app(), bench.kind()
    ran = record(app, kind)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    async with Worker(app):
        await app.enqueue(kind(), headers={"traceparent": parent})
        await app.enqueue_many([kind()], headers={"traceparent": parent})
        await traces.until(4)

    assert [run.envelope.headers["traceparent"] for run in ran] == [parent, parent]
    assert all([to for to, _ in each.links] == [0xB7AD6B7169203331] for each in traces.spans)


async def test_neither_payloads_nor_results_are_in_any_span(bench: Bench, traces: Traces) -> None:
    app, kind = bench.app(settings=bench.settings(trace_settle=True)), bench.kind()
    record(app, kind, fail, max_attempts=2)

    async with Worker(app):
        await app.enqueue(kind(n=8765, text="a-private-text"))
        await app.enqueue_many([kind(n=8765, text="a-private-text")])
        await traces.until(10)

    assert "a-private-text" not in repr(traces.spans)
    assert "8765" not in repr([(each.attributes, each.events) for each in traces.spans]).replace("server.port", "")


async def test_only_fields_that_are_marked_are_shown(bench: Bench, traces: Traces) -> None:
    class Order(Job[None], kind=bench.unique()):
        number: Annotated[int, Traceable()]
        tags: Annotated[list[str], Traceable(), Field(alias="labels")]
        note: str

    app = bench.app()

    @app.handler(Order)
    async def handle(job: Order) -> None:
        pass

    async with Worker(app):
        await app.enqueue(Order.model_validate({"number": 7, "labels": ["x" * 400], "note": "private"}))
        [run] = await traces.until(1, "process")

    shown = {name: value for name, value in run.attributes.items() if name.startswith("amqpjobs.job.field.")}
    assert shown == {
        "amqpjobs.job.field.number": 7,
        "amqpjobs.job.field.tags": '["' + "x" * 253 + "…",
    }


async def test_exceptions_are_cut(bench: Bench, traces: Traces) -> None:
    app, kind = bench.app(), bench.kind()

    async def fail_at_length(job: Note, context: JobContext[Any]) -> None:
        raise ValueError("x" * 100_000)

    record(app, kind, fail_at_length, max_attempts=1)
    async with Worker(app):
        await app.enqueue(kind())
        [run] = await traces.until(1, "process")

    told = dict(run.events)["exception"]
    assert len(str(told["exception.message"])) == 1_000 - len("ValueError: ")
    assert len(str(told["exception.stacktrace"])) < 8_100
    assert len(run.description) == 1_000


@pytest.fixture
def plain_propagator() -> Generator[None]:
    usual = propagate.get_global_textmap()
    propagate.set_global_textmap(Plain())
    yield
    propagate.set_global_textmap(usual)


@pytest.mark.usefixtures("plain_propagator")
async def test_whatever_propagator_is_configured_carries_the_context(bench: Bench, traces: Traces) -> None:
    app, kind = bench.app(), bench.kind()
    ran = record(app, kind, fail, max_attempts=2)

    async with Worker(app):
        await app.enqueue(kind())
        sent, first, second = await traces.until(3)

    assert set(ran[0].envelope.headers) == {"x-plain"}
    assert {first.parent_id, second.parent_id} == {sent.span_id}
    assert [to for to, _ in second.links] == [sent.span_id, first.span_id]


class Plain(TextMapPropagator):
    """A propagator of somebody's own."""

    def extract(self, carrier: Any, context: Context | None = None, getter: Getter[Any] = default_getter) -> Context:
        ids = (getter.get(carrier, "x-plain") or [""])[0].split("/")
        if len(ids) < 2:
            return context or Context()
        span = SpanContext(int(ids[0]), int(ids[1]), is_remote=True, trace_flags=TraceFlags(1))
        return trace.set_span_in_context(trace.NonRecordingSpan(span), context)

    def inject(self, carrier: Any, context: Context | None = None, setter: Setter[Any] = default_setter) -> None:
        span = trace.get_current_span(context).get_span_context()
        setter.set(carrier, "x-plain", f"{span.trace_id}/{span.span_id}")

    @property
    def fields(self) -> set[str]:
        return {"x-plain"}


# When there is a provider


async def test_without_a_provider_no_call_of_opentelemetry_is_made_for_a_job(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = await calls_for(bench, jobs=20)
    with traced(monkeypatch):
        busy = await calls_for(bench, jobs=20)

    assert idle == 0
    assert busy > 20 * 10  # so the counter counts


#: OpenTelemetry, our part that knows it, and what only that part asks for.
OBSERVING = ("/opentelemetry/", "/amqpjobs/telemetry/", "/amqpjobs/levels.py")


async def calls_for(bench: Bench, *, jobs: int) -> int:
    """Calls into OpenTelemetry, or into our part that knows it, while jobs are enqueued, run and settled."""
    app, kind = bench.app(), bench.kind()
    ended = watch(app.events, JobEnded)
    record(app, kind)
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        file = frame.f_code.co_filename
        calls += event == "call" and any(each in file for each in OBSERVING)

    async with Worker(app):
        sys.setprofile(count)
        try:
            for _ in range(jobs // 2):
                await app.enqueue(kind())
            await app.enqueue_many([kind() for _ in range(jobs // 2)])
            await ended.until(jobs)
        finally:
            sys.setprofile(None)
    return calls


async def test_a_provider_may_be_set_until_the_app_connects(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    built, entered = bench.app(), bench.app()
    kinds = [bench.kind(), bench.kind()]
    record(built, kinds[0])
    record(entered, kinds[1])

    async with Worker(entered):
        with traced(monkeypatch) as traces:
            async with Worker(built):
                await built.enqueue(kinds[0]())
                await traces.until(2)
            await entered.enqueue(kinds[1]())
            seen = len(traces.spans)

    assert (built.is_observed, entered.is_observed) == (True, False)
    assert seen == 2


async def test_an_app_is_traced_once_however_often_it_connects(bench: Bench, traces: Traces) -> None:
    app, kind = bench.app(), bench.kind()
    record(app, kind)

    for _ in range(2):
        async with app, Worker(app):
            await app.enqueue(kind())
            await traces.until(2)
        traces.clear()
    async with Worker(app):
        await app.enqueue(kind())
        await traces.until(2)

    assert len(traces.spans) == 2


# Logs


async def test_log_lines_carry_the_ids_of_their_attempt(
    bench: Bench, traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, kind = bench.app(settings=bench.settings(log_format="json")), bench.kind()
    stream = StringIO()
    monkeypatch.setattr("sys.stderr", stream)

    async def say(job: Note, context: JobContext[Any]) -> None:
        context.log.info("said", extra={"colour": "teal"})
        getLogger("shop").warning("warned")

    record(app, kind, say)
    log_events(app.events)
    with logging_as_before():
        set_up_logging(app.settings)
        ended = watch(app.events, JobEnded)
        async with Worker(app):
            await app.enqueue(kind())
            await ended.until(1)
    lines = {line["message"]: line for line in map(loads, stream.getvalue().splitlines())}

    [run] = traces.named("process")
    for message in ("said", "warned", "completed"):  # the last one comes after the span
        assert lines[message]["trace_id"] == f"{run.trace_id:032x}"
        assert lines[message]["span_id"] == f"{run.span_id:016x}"
    assert lines["said"]["colour"] == "teal"
    assert "trace_id" not in lines["working"]


@contextmanager
def logging_as_before() -> Generator[None]:
    root = getLogger()
    kept = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(kept[0])
        root.handlers[:] = kept[1]


async def test_a_handler_of_ones_own_gets_the_ids_from_the_filter(bench: Bench, traces: Traces) -> None:
    record_in_span, record_outside = (makeLogRecord({"msg": "hello"}) for _ in range(2))

    with trace.get_tracer("shop").start_as_current_span("GET /") as span:
        assert TraceIds().filter(record_in_span)
    assert TraceIds().filter(record_outside)

    assert vars(record_in_span)["span_id"] == f"{span.get_span_context().span_id:016x}"
    assert not hasattr(record_outside, "trace_id")


# Others' instrumentation


async def test_nothing_that_is_sent_or_consumed_passes_what_contrib_instruments(
    bench: Bench, traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """opentelemetry-instrumentation-aio-pika wraps these two; it would make spans of its own there."""

    async def never(*arguments: object, **named: object) -> None:
        raise AssertionError("this would be a second span")

    monkeypatch.setattr(aio_pika.Exchange, "publish", never)
    monkeypatch.setattr(aio_pika.Queue, "consume", never)
    app, kind = bench.app(), bench.kind()
    record(app, kind, fail, max_attempts=2)

    async with Worker(app):
        await app.enqueue(kind())
        await traces.until(3)
