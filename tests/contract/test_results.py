"""The result of a job comes back to who asked for it, and costs nobody else anything."""

import asyncio
import gc
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from pydantic import BaseModel

from amqpjobs import (
    App,
    Batch,
    BlockingClient,
    Cancel,
    EnqueueManyError,
    Job,
    JobCancelledError,
    JobContext,
    JobFailedError,
    JobHandle,
    ResultError,
    ResultTimeoutError,
    Snooze,
    UnroutableError,
    Worker,
)
from amqpjobs.events import JobEnded, MailboxOpened, ParkedReleased, ReplyDropped, ReplyUndelivered
from amqpjobs.handle import CallOptions
from amqpjobs.outcome import Completed
from amqpjobs.topology import Topology
from tests.support.apps import NAMESPACE, Bench, Seen, watch, work_queue
from tests.support.broker import PATIENCE, Broker, eventually
from tests.support.cable import Cable
from tests.support.length import is_full
from tests.support.proxy import Proxy

TOPOLOGY = Topology(NAMESPACE)
#: Calls that leave nothing behind.
MANY = 10_000 if is_full() else 500


class Total(BaseModel):
    sum: int
    at: datetime


class AddUp(Job[Total]):
    numbers: list[int]
    behave: str = ""


AT = datetime(2026, 1, 1, tzinfo=UTC)


def add_up(bench: Bench) -> type[AddUp]:
    """A kind of its own."""

    class Mine(AddUp, kind=bench.unique(), max_attempts=2):
        pass

    return Mine


class Service:
    """An app that adds up, what it was asked for, and somebody who asks."""

    def __init__(self, bench: Bench) -> None:
        self.kind = add_up(bench)
        self.app, self.caller = bench.app(), bench.app()
        self.runs = Seen[AddUp]()
        self.gate = asyncio.Event()
        self.app.handler(self.kind)(self.handle)

    async def handle(self, job: AddUp, context: JobContext[None]) -> Total:
        self.runs.add(job)
        match job.behave:
            case "fail":
                raise ValueError("cannot add up")
            case "fail once" if context.attempt == 1:
                raise ValueError("not yet")
            case "snooze once" if len(self.runs) == 1:
                raise Snooze(0.1)
            case "cancel":
                raise Cancel("nothing to add up")
            case "wait":
                await self.gate.wait()
            case _:
                pass
        return Total(sum=sum(job.numbers), at=AT)

    def job(self, *numbers: int, behave: str = "") -> AddUp:
        return self.kind(numbers=list(numbers), behave=behave)


async def test_a_call_returns_what_the_handler_returned(bench: Bench, broker: Broker) -> None:
    service = Service(bench)

    async with Worker(service.app):
        total = await service.caller.call(service.job(1, 2, 3), timeout=PATIENCE)

    assert total == Total(sum=6, at=AT)
    assert await broker.count(work_queue(service.app)) == 0


async def test_a_handle_that_asked_has_the_result_however_often_it_is_asked(bench: Bench) -> None:
    service = Service(bench)

    async with Worker(service.app):
        handle = await service.caller.enqueue(service.job(1, 2), reply=True)
        results = [await handle.result(timeout=PATIENCE) for _ in range(2)]

    assert [each.sum for each in results] == [3, 3]


async def test_many_enqueued_together_have_a_result_each(bench: Bench) -> None:
    service = Service(bench)

    async with Worker(service.app):
        handles = await service.caller.enqueue_many([service.job(n) for n in range(20)], reply=True)
        totals = await service.caller.gather(*handles, timeout=PATIENCE)

    assert [each.sum for each in totals] == list(range(20))


async def test_results_are_gathered_in_their_order_from_jobs_and_handles(bench: Bench) -> None:
    service = Service(bench)

    async with Worker(service.app):
        handle = await service.caller.enqueue(service.job(7), reply=True)
        totals = await service.caller.gather(
            service.job(1, behave="fail once"), handle, service.job(3), timeout=PATIENCE
        )

    assert [each.sum for each in totals] == [1, 7, 3]


async def test_the_first_error_of_those_gathered_is_raised_unless_all_are_wanted(bench: Bench) -> None:
    service = Service(bench)

    async with Worker(service.app):
        with pytest.raises(JobFailedError):
            await service.caller.gather(
                service.job(behave="fail"), service.job(behave="wait"), service.job(1), timeout=PATIENCE
            )
        service.gate.set()
        cancelled, total, failed = await service.caller.gather(
            service.job(behave="cancel"),
            service.job(1),
            service.job(behave="fail"),
            timeout=PATIENCE,
            return_exceptions=True,
        )

    assert isinstance(cancelled, JobCancelledError)
    assert isinstance(total, Total)
    assert isinstance(failed, JobFailedError)


@pytest.mark.parametrize("behave", ["fail once", "snooze once"])
async def test_a_job_that_is_tried_again_answers_when_it_has_ended(bench: Bench, behave: str) -> None:
    service = Service(bench)

    async with Worker(service.app):
        total = await service.caller.call(service.job(5, behave=behave), timeout=PATIENCE)

    assert total.sum == 5
    assert len(service.runs) == 2


async def test_a_job_that_fails_for_good_says_with_what(bench: Bench, broker: Broker) -> None:
    service = Service(bench)

    async with Worker(service.app):
        with pytest.raises(JobFailedError) as caught:
            await service.caller.call(service.job(behave="fail"), timeout=PATIENCE)
        await broker.await_count(TOPOLOGY.dead_queue(service.app.name), 1)

    failed = caught.value
    assert (failed.error_type, failed.message, failed.reason) == ("ValueError", "cannot add up", "attempts_exhausted")
    assert 'raise ValueError("cannot add up")' in failed.traceback
    assert failed.job_id is not None


async def test_a_job_that_cancels_itself_or_expires_has_no_result(bench: Bench) -> None:
    service = Service(bench)
    async with Worker(service.app):
        pass  # its queue is there
    late = await service.caller.enqueue(service.job(1), reply=True, expires=0.001)

    async with Worker(service.app):
        cancelled = await service.caller.enqueue(service.job(behave="cancel"), reply=True)
        errors = list[JobCancelledError]()
        for handle in (cancelled, late):
            with pytest.raises(JobCancelledError) as caught:
                await handle.result(timeout=PATIENCE)
            errors.append(caught.value)

    assert [(each.state, each.reason) for each in errors] == [("cancelled", "nothing to add up"), ("expired", "")]


async def test_a_job_whose_payload_fits_nobody_fails_its_caller(bench: Bench) -> None:
    service = Service(bench)

    class Wrong(Job[Total], kind=service.kind.__amqpjobs__.kind):
        numbers: str

    async with Worker(service.app):
        with pytest.raises(JobFailedError, match="invalid_arguments"):
            await service.caller.call(Wrong(numbers="many"), timeout=PATIENCE)


async def test_a_result_too_large_is_said_and_the_job_has_completed(bench: Bench) -> None:
    app, caller = bench.app(settings=bench.settings(max_body=2_000)), bench.app()
    ended = watch(app.events, JobEnded)

    class Large(Job[str], kind=bench.unique()):
        pass

    @app.handler(Large)
    async def large(job: Large) -> str:
        return "x" * 5_000

    async with Worker(app):
        with pytest.raises(ResultError, match=r"completed, but its result did not come: it has 50\d\d bytes"):
            await caller.call(Large(), timeout=PATIENCE)
        await ended.until(1)

    assert [type(each.outcome) for each in ended] == [Completed]


async def test_batch_and_thread_handlers_answer_too(bench: Bench) -> None:
    app, caller = bench.app(), bench.app()

    class Double(Job[int], kind=bench.unique()):
        n: int

    class Half(Job[float], kind=bench.unique()):
        n: int

    @app.handler(list[Double], batch=Batch(size=3, seconds=0.1))
    async def double(jobs: list[Double]) -> list[int | ValueError]:
        return [ValueError("odd") if each.n % 2 else each.n * 2 for each in jobs]

    @app.handler(Half, max_attempts=1)
    def half(job: Half) -> float:
        return job.n / 2

    async with Worker(app):
        doubled = await caller.gather(*[Double(n=n * 2) for n in range(3)], timeout=PATIENCE)
        halved = await caller.call(Half(n=3), timeout=PATIENCE)

    assert (doubled, halved) == ((0, 2 * 2, 4 * 2), 1.5)


async def test_a_handler_may_call_another_job(bench: Bench) -> None:
    service = Service(bench)

    class Mean(Job[float], kind=bench.unique()):
        numbers: list[int]

    @service.app.handler(Mean)
    async def mean(job: Mean, context: JobContext[None]) -> float:
        handle = await context.enqueue(service.job(*job.numbers), reply=True)
        again = await service.app.call(service.job(*job.numbers), timeout=PATIENCE)
        return ((await handle.result(PATIENCE)).sum + again.sum) / 2 / len(job.numbers)

    async with Worker(service.app):
        assert await service.caller.call(Mean(numbers=[2, 4]), timeout=PATIENCE) == 3.0


async def test_where_two_services_run_a_kind_the_first_answer_counts(bench: Bench) -> None:
    first, second = Service(bench), bench.app()
    gate, dropped = asyncio.Event(), watch(first.caller.events, ReplyDropped)

    @second.handler(first.kind)
    async def late(job: AddUp) -> Total:
        await gate.wait()
        return Total(sum=-1, at=AT)

    async with Worker(first.app), Worker(second):
        handle = await first.caller.enqueue(first.job(1), reply=True)
        total = await handle.result(PATIENCE)
        gate.set()
        await dropped.until(1)
        again = await handle.result(PATIENCE)

    assert (total.sum, again.sum) == (1, 1)
    assert (dropped[0].job_id, dropped[0].garbage) == (handle.job_id, "")


async def test_who_does_not_ask_sends_no_address_and_makes_no_queue(bench: Bench, url: str) -> None:
    service = Service(bench)
    opened = watch(service.caller.events, MailboxOpened)
    async with Proxy(url).running() as proxy:
        asking = bench.app(settings=bench.settings(url=proxy.url))
        working = bench.app(service.app.name, settings=bench.settings(url=proxy.url))
        working.handler(service.kind)(service.handle)
        ended = watch(working.events, JobEnded)
        async with Worker(working), asking:
            await asking.enqueue(service.job(0))
            await ended.until(1)
            before = proxy.to_broker.copy()
            await asking.enqueue(service.job(1))
            await asking.enqueue_many([service.job(2)])
            await ended.until(3)

            async def is_acked() -> bool:
                return proxy.to_broker["basic.ack"] > before["basic.ack"]

            await eventually(is_acked)
            said = proxy.to_broker - before

    assert {name: count for name, count in said.items() if name not in ("header", "body", "heartbeat")} == {
        "basic.publish": 2,
        "basic.ack": said["basic.ack"],
    }
    assert len(opened) == 0
    with pytest.raises(ResultError, match="reply=True"):
        await JobHandle("id", "kind").result()


async def test_the_address_of_a_job_is_in_its_properties_and_stays_there(bench: Bench) -> None:
    service = Service(bench)
    asked = list[str | None]()

    @service.app.run_middleware
    async def note(context: JobContext[Any], following: Any) -> Any:
        asked.append(context.envelope.reply_to)
        return await following(context)

    async with Worker(service.app):
        await service.caller.enqueue(service.job(1))
        await service.runs.until(1)
        await service.caller.call(service.job(1, behave="fail once"), timeout=PATIENCE)

    plain, first, second = asked
    assert plain is None
    assert first == second
    assert TOPOLOGY.to_reply(first or "") is not None


async def test_all_calls_of_a_process_share_one_queue_which_goes_with_it(bench: Bench, broker: Broker) -> None:
    service = Service(bench)
    opened = watch(service.caller.events, MailboxOpened)

    async with Worker(service.app, concurrency=100):
        for start in range(0, MANY, 100):
            await service.caller.gather(*(service.job(n) for n in range(start, start + 100)), timeout=PATIENCE)
        (mailbox,) = opened
        await broker.await_count(mailbox.queue, 0)
        consumers = await broker.consumers(mailbox.queue)
        await service.caller.close()
        is_there = await broker.exists(mailbox.queue)

    assert consumers == 1
    assert not is_there


async def test_a_caller_that_gave_up_leaves_no_wait_behind_and_the_late_answer_is_dropped(bench: Bench) -> None:
    service = Service(bench)
    dropped = watch(service.caller.events, ReplyDropped)

    async with Worker(service.app):
        with pytest.raises(ResultTimeoutError, match="No answer to Mine"):
            await service.caller.call(service.job(behave="wait"), timeout=0.5)
        cut_short = asyncio.create_task(service.caller.call(service.job(behave="wait"), timeout=PATIENCE))
        await service.runs.until(2)
        cut_short.cancel()
        await asyncio.wait([cut_short])
        del cut_short
        gc.collect()
        service.gate.set()
        await dropped.until(2)

    assert [each.garbage for each in dropped] == ["", ""]


async def test_a_caller_that_is_gone_keeps_no_job(bench: Bench, broker: Broker) -> None:
    service = Service(bench)
    undelivered, ended = watch(service.app.events, ReplyUndelivered), watch(service.app.events, JobEnded)

    async with Worker(service.app):
        handle = await service.caller.enqueue(service.job(behave="wait"), reply=True)
        await service.runs.until(1)
        await service.caller.close()
        service.gate.set()
        await ended.until(1)

    assert [(each.envelope.job_id, each.why) for each in undelivered] == [(handle.job_id, "its caller is gone")]
    assert [type(each.outcome) for each in ended] == [Completed]
    assert await broker.count(work_queue(service.app)) == 0
    with pytest.raises(ResultError, match="closed here"):
        await handle.result()


async def test_a_closed_app_calls_again_on_a_new_connection(bench: Bench) -> None:
    service = Service(bench)

    async with Worker(service.app):
        first = await service.caller.call(service.job(1), timeout=PATIENCE)
        await service.caller.close()
        second = await service.caller.call(service.job(2), timeout=PATIENCE)

    assert (first.sum, second.sum) == (1, 2)


async def test_an_answer_that_comes_while_its_caller_is_not_connected_waits_for_it(bench: Bench, url: str) -> None:
    service = Service(bench)
    async with Cable(url).running() as cable:
        caller = bench.app(settings=bench.settings(url=cable.url))
        opened, ended = watch(caller.events, MailboxOpened), watch(service.app.events, JobEnded)
        async with Worker(service.app):
            handle = await caller.enqueue(service.job(4, behave="wait"), reply=True)
            waiting = asyncio.create_task(handle.result(PATIENCE))
            await service.runs.until(1)
            cable.cut()
            service.gate.set()
            await ended.until(1)
            total = await waiting
            await opened.until(2)
        await caller.close()

    assert total.sum == 4
    assert len({each.queue for each in opened}) == 1


async def test_a_job_asks_again_when_its_queue_was_deleted(bench: Bench, broker: Broker) -> None:
    service = Service(bench)
    opened = watch(service.caller.events, MailboxOpened)

    async with Worker(service.app):
        await service.caller.call(service.job(1), timeout=PATIENCE)
        await broker.delete_queue(opened[0].queue)
        await opened.until(2)
        total = await service.caller.call(service.job(2), timeout=PATIENCE)

    assert total.sum == 2
    assert opened[0].queue == opened[1].queue


async def test_nobody_is_answered_at_a_place_that_is_no_reply_queue(bench: Bench, broker: Broker) -> None:
    service = Service(bench)
    victim = bench.app()
    undelivered, ended = watch(service.app.events, ReplyUndelivered), watch(service.app.events, JobEnded)
    async with Worker(victim):
        pass
    places = [work_queue(victim), TOPOLOGY.parked, "amq.rabbitmq.reply-to.g1.abc"]

    async with Worker(service.app):
        for place in places:
            await broker.publish(
                TOPOLOGY.jobs,
                service.kind.__amqpjobs__.kind,
                b'{"numbers":[1]}',
                kind=service.kind.__amqpjobs__.kind,
                reply_to=place,
            )
        await ended.until(3)

    assert [repr(place) in each.why for place, each in zip(places, undelivered, strict=True)] == [True] * 3
    assert await broker.count(work_queue(victim)) == 0


async def test_a_foreign_program_that_asks_at_a_reply_queue_of_its_own_is_answered_in_json(
    bench: Bench, broker: Broker
) -> None:
    service = Service(bench)
    kind, mine = service.kind.__amqpjobs__.kind, TOPOLOGY.reply_queue(bench.unique())

    async with Worker(service.app):
        await broker.declare_queue(mine, {"x-queue-type": "classic", "x-expires": 60_000})
        await broker.bind(mine, TOPOLOGY.queues, mine)
        await broker.publish(
            TOPOLOGY.jobs, kind, b'{"numbers":[1,2]}', kind=kind, reply_to=mine, correlation_id="theirs"
        )
        (letter,) = await broker.take(mine, 1)
        await broker.delete_queue(mine)

    assert json.loads(letter.body) == {"state": "completed", "result": {"sum": 3, "at": "2026-01-01T00:00:00Z"}}
    assert letter.content_type == "application/json"


async def test_garbage_among_the_answers_harms_no_other(bench: Bench, broker: Broker) -> None:
    service = Service(bench)
    opened, dropped = watch(service.caller.events, MailboxOpened), watch(service.caller.events, ReplyDropped)

    async with Worker(service.app):
        handle = await service.caller.enqueue(service.job(8, behave="wait"), reply=True)
        mailbox = opened[0].queue
        for body, key in [(b"\xff", handle.job_id), (b"{}", handle.job_id), (b"x" * 100_000, "nobody"), (b"", "")]:
            await broker.publish(TOPOLOGY.queues, mailbox, body, correlation_id=key)
        await broker.publish(TOPOLOGY.queues, mailbox, b"no id")
        await dropped.until(5)
        service.gate.set()
        total = await handle.result(PATIENCE)
        await broker.await_count(mailbox, 0)

    assert total.sum == 8
    assert [bool(each.garbage) for each in dropped] == [True, True, False, False, False]


async def test_a_call_that_nobody_takes_is_refused_at_once(bench: Bench) -> None:
    caller, nobody = bench.app(), add_up(bench)

    with pytest.raises(UnroutableError):
        await caller.call(nobody(numbers=[]), timeout=PATIENCE)
    with pytest.raises(EnqueueManyError):
        await caller.enqueue_many([nobody(numbers=[])], reply=True)


async def test_a_parked_job_answers_when_it_is_let_out(bench: Bench) -> None:
    service = Service(bench)
    released = watch(service.app.events, ParkedReleased)

    handle = await service.caller.enqueue(service.job(3), reply=True, on_unroutable="park")
    async with Worker(service.app):
        await released.until(1)
        total = await handle.result(PATIENCE)

    assert handle.is_parked
    assert total.sum == 3


async def test_where_nothing_is_declared_the_queue_of_answers_is_all_the_same(bench: Bench) -> None:
    service = Service(bench)
    caller = bench.app(settings=bench.settings(declare=False))

    async with Worker(service.app):
        total = await caller.call(service.job(3), timeout=PATIENCE)

    assert total.sum == 3


async def test_a_job_in_a_buffer_cannot_ask(bench: Bench) -> None:
    app, kind = bench.app(), add_up(bench)

    async with app.buffer() as buffer:
        with pytest.raises(ValueError, match="no reply"):
            buffer.enqueue(kind(numbers=[]), reply=True)


# Without an event loop


async def in_a_thread(app: App[Any], script: Callable[[BlockingClient], Any]) -> Any:
    def run() -> Any:
        with BlockingClient(app) as client:
            return script(client)

    return await asyncio.to_thread(run)


async def test_a_thread_calls_too(bench: Bench) -> None:
    service = Service(bench)

    def script(client: BlockingClient) -> list[int]:
        called = client.call(service.job(1), timeout=PATIENCE)
        asked = client.enqueue(service.job(2), reply=True).result(timeout=PATIENCE)
        (many,) = client.enqueue_many([service.job(3)], reply=True)
        gathered = client.gather(many, service.job(4), timeout=PATIENCE)
        return [called.sum, asked.sum, *(each.sum for each in gathered)]

    async with Worker(service.app):
        assert await in_a_thread(service.caller, script) == [1, 2, 3, 4]


async def test_a_thread_is_told_of_failures_and_of_time_that_is_over(bench: Bench) -> None:
    service = Service(bench)

    def script(client: BlockingClient) -> tuple[BaseException | Total, ...]:
        with pytest.raises(ResultTimeoutError):
            client.call(service.job(behave="wait"), timeout=0.5)
        with pytest.raises(ResultError, match="reply=True"):
            client.enqueue(service.job(1)).result()
        with pytest.raises(JobFailedError):
            client.gather(service.job(behave="fail"), service.job(1), timeout=PATIENCE)
        return client.gather(service.job(behave="fail"), service.job(1), timeout=PATIENCE, return_exceptions=True)

    async with Worker(service.app):
        failed, total = await in_a_thread(service.caller, script)
        service.gate.set()

    assert isinstance(failed, JobFailedError)
    assert isinstance(total, Total)


async def test_a_client_that_was_closed_says_that_its_results_went_with_it(bench: Bench) -> None:
    service = Service(bench)

    def script(client: BlockingClient) -> None:
        handle = client.enqueue(service.job(1), reply=True)
        client.close()
        with pytest.raises(ResultError, match="was closed"):
            handle.result(timeout=PATIENCE)

    async with Worker(service.app):
        await in_a_thread(service.caller, script)


async def test_a_result_is_not_waited_for_in_an_event_loop(bench: Bench) -> None:
    service = Service(bench)

    async with Worker(service.app):
        client = BlockingClient(service.caller)
        handle = await asyncio.to_thread(client.enqueue, service.job(1), reply=True)
        with pytest.raises(RuntimeError, match="event loop"):
            handle.result()
        await asyncio.to_thread(client.close)


async def test_an_option_that_is_not_one_of_a_call_is_refused(bench: Bench) -> None:
    misspelt = cast("CallOptions", {"dealy": 3})

    with pytest.raises(TypeError, match="Did you mean 'delay'"):
        await bench.app().call(add_up(bench)(numbers=[]), **misspelt)
