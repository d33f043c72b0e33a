"""How a worker process stops: asked to, or by itself, and what becomes of the jobs it holds."""

import asyncio
import signal

from tests.support.proxy import Proxy
from tests.support.service import Service, lines_of, until

READY = '"message":"working"'


async def test_on_sigterm_what_runs_ends_here_and_what_waits_runs_elsewhere(service: Service) -> None:
    with service.type("amqpjobs run shop -c 1") as first:
        assert first.shows(READY)
        await service.send(0, do="wait")
        await service.until_noted("start", 0)
        [old] = service.pids()
        await service.send(*range(1, 10))
        await service.broker.await_count(service.queue, 0)

        first.signal(signal.SIGTERM)

        assert first.shows('"message":"stopping" … "running":1,"handed_back":9'), first.text
        with service.type("amqpjobs run shop") as second:
            await service.until_noted("start", *range(1, 10))
            service.let_go()
            await service.until_noted("end", *range(10))
            assert first.end() == 0, first.text
            second.signal(signal.SIGTERM)
            assert second.end() == 0
    assert service.noted("start", by=old) == service.noted("end", by=old) == [0]
    assert sorted(service.noted("start")) == sorted(service.noted("end")) == list(range(10))
    assert not lines_of(first, "no connection")
    assert await service.broker.count(service.queue) == 0


async def test_a_worker_that_drains_goes_on_sending_heartbeats_and_keeps_what_runs(service: Service, url: str) -> None:
    async with Proxy(url).running() as proxy:
        # As short as may be: a connection over which nothing goes for twice as long is lost, and rightly.
        with service.type("amqpjobs run shop", AMQPJOBS_URL=proxy.url, AMQPJOBS_HEARTBEAT="6") as worker:
            assert await asyncio.to_thread(worker.shows, READY)
            await service.send(0, do="wait")
            await service.until_noted("start", 0)
            worker.signal(signal.SIGTERM)
            assert await asyncio.to_thread(worker.shows, '"message":"stopping"'), worker.text
            before = proxy.to_broker["heartbeat"]

            await until(lambda: proxy.to_broker["heartbeat"] >= before + 4)  # of two connections
            service.let_go()

            assert await asyncio.to_thread(worker.end) == 0, worker.text
    assert service.noted("end") == [0]
    assert await service.broker.count(service.queue) == 0


async def test_what_does_not_end_within_the_drain_timeout_is_cut_short_and_runs_elsewhere(service: Service) -> None:
    with service.type("amqpjobs run shop --drain-timeout 0.2") as first:
        assert first.shows(READY)
        await service.send(0, do="wait")
        await service.until_noted("start", 0)

        first.signal(signal.SIGTERM)

        assert first.end() == 6, first.text
    with service.type("amqpjobs run shop") as second:
        assert second.shows(READY)
        await until(lambda: service.noted("start") == [0, 0])
        service.let_go()
        await service.until_noted("end", 0)
        second.signal(signal.SIGTERM)
        assert second.end() == 0
    assert service.noted("end") == [0]


async def test_after_max_jobs_a_process_stops_and_leaves_the_others(service: Service) -> None:
    with service.type("amqpjobs run shop -c 1 --max-jobs 3") as worker:
        assert worker.shows(READY)
        await service.send(0, do="wait")
        await service.send(*range(1, 8))
        await service.broker.await_count(service.queue, 0)  # it holds them all

        service.let_go()

        assert worker.end() == 0, worker.text
    assert service.noted("start") == service.noted("end") == [0, 1, 2]
    await service.broker.await_count(service.queue, 5)
    assert [line["value"] for line in lines_of(worker, "a limit is reached")] == [3]


async def test_a_signal_after_max_jobs_is_still_the_first_one(service: Service) -> None:
    with service.type("amqpjobs run shop -c 2 --max-jobs 1") as worker:
        assert worker.shows(READY)
        await service.send(0, do="wait")
        await service.send(1)
        assert worker.shows('"message":"stopping"')

        worker.signal(signal.SIGTERM)
        service.let_go()

        assert worker.end() == 0, worker.text
    assert sorted(service.noted("end")) == [0, 1]


async def test_a_process_that_holds_too_much_memory_after_a_job_stops(service: Service) -> None:
    with service.type("amqpjobs run shop", AMQPJOBS_MAX_MEMORY="250M") as worker:
        assert worker.shows(READY)
        await service.send(0)
        await service.until_noted("end", 0)
        await service.send(1, do="eat")

        assert worker.end() == 0, worker.text

    [limit] = lines_of(worker, "a limit is reached")
    assert limit["limit"] == "max_memory"
    assert limit["value"] > 300_000_000
    assert service.noted("end") == [0, 1]


async def test_a_burst_ends_with_the_queues_and_waits_for_no_retry(service: Service) -> None:
    with service.type("amqpjobs run shop --burst") as empty:
        assert empty.end() == 0, empty.text
    await service.send(*range(5), do="sleep", seconds=0.6)
    await service.send(5, do="fail")

    with service.type("amqpjobs run shop -c 2 --burst") as worker:
        assert worker.end() == 0, worker.text

    assert sorted(service.noted("end")) == list(range(5))
    assert lines_of(worker, "failed, will be tried again")
    assert await service.broker.count(service.queue) == 0


def test_a_size_that_is_none_is_a_usage_error(service: Service) -> None:
    for words in ("--max-memory much", "--max-memory 0", "--max-jobs 0", "--drain-timeout -1", "--processes 0"):
        with service.type(f"amqpjobs run shop {words}") as refused:
            assert refused.end() == 2, (words, refused.text)
