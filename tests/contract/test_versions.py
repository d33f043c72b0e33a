"""Payloads of three versions on one broker: old ones are upgraded, new ones wait for code that knows them."""

from types import new_class
from typing import Any, TypeVar

from pydantic import ConfigDict

from amqpjobs import App, Job, JobContext, Worker
from amqpjobs.events import JobEnded
from amqpjobs.job import upgrade
from amqpjobs.outcome import Snoozed
from tests.support.apps import Bench, Seen, dead_queue, watch
from tests.support.broker import Broker

J = TypeVar("J", bound=Job[None])


class First(Job[None]):
    euros: float


class Second(Job[None], version=2):
    cents: int


class Third(Job[None], version=3):
    model_config = ConfigDict(extra="forbid")

    cents: int
    currency: str

    @upgrade(from_version=1)
    @staticmethod
    def in_cents(payload: dict[str, Any]) -> dict[str, Any]:
        return {"cents": round(payload["euros"] * 100)}

    @upgrade(from_version=2)
    @staticmethod
    def with_currency(payload: dict[str, Any]) -> dict[str, Any]:
        return payload | {"currency": "EUR"}


def of_kind(job: type[J], kind: str) -> type[J]:
    """The same class, with its version and upgrades, under a kind of the test's own."""
    made: type[J] = new_class(job.__name__, (job,), {"kind": kind})
    return made


def read_by(app: App[None], job: type[J]) -> Seen[tuple[J, int]]:
    """A handler that notes each job and its attempt."""
    seen = Seen[tuple[J, int]]()

    async def handle(read: J, context: JobContext[Any]) -> None:
        seen.add((read, context.attempt))

    handle.__annotations__.clear()
    app.registry.add(job, handle, {})
    return seen


async def test_new_code_reads_what_is_queued_in_three_versions(bench: Bench, broker: Broker) -> None:
    name, kind = bench.unique(), bench.unique()
    first, second, third = of_kind(First, kind), of_kind(Second, kind), of_kind(Third, kind)
    app, producer = bench.app(name), bench.app()
    seen = read_by(app, third)
    async with Worker(app):
        pass  # its queue is there, and nobody listens

    await producer.enqueue(first(euros=1.5))
    await producer.enqueue(first(euros=2.5), delay=0.2)
    await producer.enqueue(second(cents=350))
    await producer.enqueue(third(cents=450, currency="USD"))
    await broker.publish("tests", kind, b'{"cents": 550, "currency": "GBP"}', kind=kind)
    async with Worker(app):
        await seen.until(5)

    read = sorted((job.cents, job.currency, attempt) for job, attempt in seen)
    assert read == [(150, "EUR", 1), (250, "EUR", 1), (350, "EUR", 1), (450, "USD", 1), (550, "GBP", 1)]
    assert await broker.count(dead_queue(app)) == 0


async def test_old_code_lets_new_payloads_wait_for_new_code(bench: Bench, broker: Broker) -> None:
    name, kind = bench.unique(), bench.unique()
    settings = bench.settings(unknown_delay=0.2, unknown_window=60)
    old, new = bench.app(name, settings=settings), bench.app(name, settings=settings)
    seen_old, seen_new = read_by(old, of_kind(First, kind)), read_by(new, of_kind(Third, kind))
    ended = watch(old.events, JobEnded)
    producer = bench.app()

    async with Worker(old):
        await producer.enqueue(of_kind(First, kind)(euros=1))
        await producer.enqueue(of_kind(Second, kind)(cents=200))
        await producer.enqueue(of_kind(Third, kind)(cents=300, currency="USD"))
        await ended.until(5)
    async with Worker(new):
        await seen_new.until(2)

    assert [job.euros for job, _ in seen_old] == [1]
    assert sorted((job.cents, job.currency, attempt) for job, attempt in seen_new) == [(200, "EUR", 1), (300, "USD", 1)]
    assert all(each.outcome.unknown for each in ended if isinstance(each.outcome, Snoozed))
    assert await broker.count(dead_queue(new)) == 0


async def test_a_payload_that_no_upgrade_can_read_is_a_dead_letter_as_it_came(bench: Bench, broker: Broker) -> None:
    kind, app = bench.unique(), bench.app()
    seen = read_by(app, of_kind(Third, kind))

    async with Worker(app):
        await broker.publish("tests", kind, b'{"dollars": 4711}', kind=kind, headers={"amqpjobs-version": 1})
        (letter,) = await broker.take(dead_queue(app), 1)

    assert not list(seen)
    assert letter.body == b'{"dollars": 4711}'
    assert letter.number("amqpjobs-version") == 1
    assert letter.text("amqpjobs-dead-reason") == "invalid_arguments"
    assert "the upgrade of Third from version 1 failed with KeyError" in letter.text("amqpjobs-dead-error")
    assert "4711" not in str(letter.headers)
