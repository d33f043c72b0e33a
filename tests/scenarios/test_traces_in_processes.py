"""Handlers in processes see the span of their attempt too, whether there is an SDK there or not."""

import json
import logging
import os
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from importlib import import_module
from typing import Any

import pytest
from opentelemetry import baggage, context

from amqpjobs import Worker
from amqpjobs.events import JobEnded
from amqpjobs.job import options_of
from amqpjobs.outcome import Completed
from tests.support.apps import NAMESPACE, dead_queue, watch, work_queue
from tests.support.broker import Broker
from tests.support.traces import Traces, traced

HOME = "tests.support.traced_app"
#: Imports the app, as each child does.
Load = Callable[[bool], Any]


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Generator[Traces]:
    with traced(monkeypatch) as traces:
        yield traces


@pytest.fixture
async def load(
    url: str, unique: Callable[[], str], monkeypatch: pytest.MonkeyPatch, broker: Broker, traces: Traces
) -> AsyncGenerator[Load]:
    apps = list[Any]()

    def load(has_sdk: bool) -> Any:
        settings = json.dumps({"url": url, "namespace": NAMESPACE, "processes": 1})
        options = {"name": unique(), "settings": settings, "worker": str(os.getpid())}
        monkeypatch.setenv("TRACED_APP_OPTIONS", json.dumps(options | {"endpoint": traces.endpoint if has_sdk else ""}))
        sys.modules.pop(HOME, None)
        home = import_module(HOME)
        apps.append(home.app)
        return home

    yield load
    for app in apps:
        await app.close()
        await broker.delete_queue(work_queue(app))
        await broker.delete_queue(dead_queue(app))


async def test_with_an_sdk_in_the_child_its_spans_are_part_of_the_trace(load: Load, traces: Traces) -> None:
    home = load(True)
    async with Worker(home.app):
        await home.app.enqueue(home.Outer())
        await traces.until(5)

    assert traces.tree(app=home.name) == (
        "A1 send tests:app.outer PRODUCER id=job-1\n"
        "  A2 process tests:app.outer:tests.queue.app CONSUMER attempt=1 id=job-1 outcome=completed -enqueue->A1\n"
        "    A3 work INTERNAL\n"
        "      A4 send tests:app.inner PRODUCER id=job-2 parent=job-1\n"
        "        A5 process tests:app.inner:tests.queue.app CONSUMER attempt=1 id=job-2 outcome=completed "
        "parent=job-1 -enqueue->A4\n"
    )
    sent = traces.named("send")
    assert sent[0].pid != sent[1].pid


async def test_without_one_the_context_is_passed_on_all_the_same(
    load: Load, traces: Traces, caplog: pytest.LogCaptureFixture
) -> None:
    home = load(False)
    ended = watch(home.app.events, JobEnded)
    async with Worker(home.app):
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        await home.app.enqueue(home.Outer())
        context.detach(token)
        await traces.until(3)
        await ended.until(2)

    assert traces.tree(app=home.name) == (
        "A1 send tests:app.outer PRODUCER id=job-1\n"
        "  A2 process tests:app.outer:tests.queue.app CONSUMER attempt=1 id=job-1 outcome=completed -enqueue->A1\n"
        "    A3 process tests:app.inner:tests.queue.app CONSUMER attempt=1 id=job-2 outcome=completed "
        "parent=job-1 -enqueue->A2\n"
    )
    outer = traces.named("process")[0]
    assert Completed(f"{outer.span_id} acme") in [each.outcome for each in ended]
    [line] = [each for each in caplog.records if each.getMessage() == "in a process"]
    assert line.levelno == logging.WARNING
    assert (vars(line)["trace_id"], vars(line)["span_id"]) == (f"{outer.trace_id:032x}", f"{outer.span_id:016x}")


async def test_the_span_of_a_suspect_is_made_in_the_process_it_runs_in(
    load: Load, traces: Traces, broker: Broker
) -> None:
    home, kind = load(True), options_of(import_module(HOME).Inner).kind
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    async with Worker(home.app):
        await broker.publish(NAMESPACE, kind, kind=kind, headers={"amqpjobs-crashes": 1, "traceparent": parent})
        [run] = await traces.until(1)

    assert run.parent_id == 0xB7AD6B7169203331
    assert run.attributes["amqpjobs.job.outcome"] == "completed"
    assert run.pid not in (None, os.getpid())
