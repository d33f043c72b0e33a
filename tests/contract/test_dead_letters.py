"""Looking at dead letters and moving them: nothing is lost, doubled or reordered, on any broker."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from aiormq.abc import DeliveredMessage

from amqpjobs import App, Queue
from amqpjobs.amqp.connection import open_session
from amqpjobs.amqp.declare import Declarer
from amqpjobs.codec import milliseconds
from amqpjobs.deadletters import (
    EDITED_AT,
    EDITED_FROM,
    PARKED,
    REQUEUED_AT,
    REQUEUED_FROM,
    REQUEUES,
    UNROUTABLE,
    DeadLetter,
    DeadLetters,
    Filter,
    LetterError,
    Place,
    Tally,
    dead_of,
)
from tests.support.apps import Bench, dead_queue, record, work_queue
from tests.support.broker import Broker, Foreign


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


class Morgue:
    """An app whose queues are declared, and letters in them."""

    def __init__(self, bench: Bench, app: App[None], kind: str, letters: DeadLetters) -> None:
        self.app = app
        self.kind = kind
        self.letters = letters
        self.place = dead_of(app.name)
        self.broker: Broker = bench.broker

    async def bury(
        self, count: int = 1, headers: Mapping[str, object] | None = None, *, first: int = 0, body: bytes = b""
    ) -> None:
        """Dead letters `job-0`, `job-1`, …, of two reasons in turn."""
        messages, died = list[tuple[bytes, Foreign]](), now()
        for n in range(first, first + count):
            told: dict[str, object] = {
                "amqpjobs-id": f"job-{n}",
                "amqpjobs-attempt": 5,
                "amqpjobs-dead-reason": ("attempts_exhausted", "not_retryable")[n % 2],
                "amqpjobs-dead-error": "ValueError: no",
                "amqpjobs-dead-at": milliseconds(died - timedelta(minutes=n)),
                "amqpjobs-first-at": milliseconds(died - timedelta(hours=2)),
                "tenant": "acme",
                **(headers or {}),
            }
            sent: Foreign = {"kind": self.kind, "message_id": f"m-{n}", "headers": told, "priority": n % 5}
            messages.append((body or b'{"n": %d}' % n, sent))
        await self.broker.publish_all(self.app.topology.queues, dead_queue(self.app), messages)

    async def ids(self, place: Place | None = None) -> list[str | None]:
        return [letter.job_id for letter in await self.letters.find(place or self.place)]

    async def only(self) -> DeadLetter:
        (found,) = await self.letters.find(self.place, bodies=True)
        return found


@pytest.fixture
async def morgue(bench: Bench) -> AsyncGenerator[Morgue]:
    app, kind = bench.app(), bench.kind()
    record(app, kind)
    session = await open_session(app.settings.urls[0], app.settings, "tests")
    declarer = Declarer(app.topology, app.events)
    await declarer.infrastructure(session)
    await declarer.plan(session, app.plan())
    await session.close()
    async with DeadLetters(app) as letters:
        yield Morgue(bench, app, kind.__amqpjobs__.kind, letters)


async def test_a_hundred_listings_in_a_row_lose_and_reorder_nothing(morgue: Morgue) -> None:
    await morgue.bury(250)
    first = await morgue.ids()

    for n in range(100):
        limit = None if n % 3 else 50  # those who look at a part must hold the rest, too
        await morgue.letters.find(morgue.place, Filter(limit=limit))

    assert sorted(map(str, first)) == sorted(f"job-{n}" for n in range(250))
    assert await morgue.ids() == first
    assert len(await morgue.broker.take(dead_queue(morgue.app), 250)) == 250


async def test_what_arrives_during_and_after_a_listing_stands_behind_what_was_there(morgue: Morgue) -> None:
    await morgue.bury(120, {"amqpjobs-run-at": 1})
    before = await morgue.ids()

    await morgue.bury(5, first=500)

    assert (await morgue.ids())[:120] == before
    assert len(await morgue.ids()) == 125


async def test_a_listing_that_was_cut_off_loses_nothing(morgue: Morgue) -> None:
    await morgue.bury(150)
    seen = asyncio.Event()

    def visit(letter: DeadLetter) -> None:
        seen.set()

    listing = asyncio.create_task(morgue.letters.scan(morgue.place, visit))
    await seen.wait()
    listing.cancel()
    await asyncio.wait([listing])

    await morgue.broker.await_count(dead_queue(morgue.app), 150)
    assert len(set(await morgue.ids())) == 150


async def test_letters_are_chosen_by_filters(morgue: Morgue) -> None:
    await morgue.bury(10)

    async def chosen(where: Filter) -> set[str | None]:
        return {letter.job_id for letter in await morgue.letters.find(morgue.place, where)}

    assert await chosen(Filter(reason="not_*")) == {f"job-{n}" for n in (1, 3, 5, 7, 9)}
    assert await chosen(Filter(ids=frozenset({"job-3", "m-4"}))) == {"job-3", "job-4"}
    assert await chosen(Filter(newer_than=timedelta(minutes=30), older_than=timedelta(minutes=7, seconds=-30))) == {
        f"job-{n}" for n in (7, 8, 9)
    }
    assert await chosen(Filter(kind="nothing.*")) == set()


async def test_requeueing_brings_the_chosen_to_attempt_1_and_leaves_the_others_in_order(morgue: Morgue) -> None:
    await morgue.bury(300, {"amqpjobs-max-attempts": 7, "amqpjobs-unknown-since": 1})
    before = await morgue.letters.find(morgue.place)

    tally = await morgue.letters.requeue(morgue.place, Filter(reason="not_retryable"))

    assert (tally.seen, tally.chosen, tally.done, tally.stayed) == (300, 150, 150, {})
    assert await morgue.ids() == [letter.job_id for letter in before if letter.reason != "not_retryable"]
    letters = await morgue.broker.take(work_queue(morgue.app), 150)
    assert {each.text("amqpjobs-id") for each in letters} == {f"job-{n}" for n in range(1, 300, 2)}
    one = next(each for each in letters if each.text("amqpjobs-id") == "job-7")
    assert one.body == b'{"n": 7}'
    assert one.message_id not in (None, "m-7")
    assert (one.kind, one.priority) == (morgue.kind, 2)
    assert dict(one.headers) | {REQUEUED_AT: 0} == {
        "amqpjobs-id": "job-7",
        "amqpjobs-attempt": 1,
        "amqpjobs-max-attempts": 7,
        "tenant": "acme",
        REQUEUES: 1,
        REQUEUED_FROM: "m-7",
        REQUEUED_AT: 0,
    }


async def test_a_letter_tells_how_often_it_was_requeued(morgue: Morgue) -> None:
    await morgue.bury(1, {REQUEUES: 2})

    assert (await morgue.only()).requeues == 2
    await morgue.letters.requeue(morgue.place)

    (again,) = await morgue.broker.take(work_queue(morgue.app), 1)
    assert again.headers[REQUEUES] == 3


async def test_what_cannot_be_delivered_stays_where_it_was(morgue: Morgue) -> None:
    await morgue.bury(20)
    before = await morgue.ids()
    await morgue.broker.delete_queue(work_queue(morgue.app))

    tally = await morgue.letters.requeue(morgue.place)

    assert (tally.done, tally.stayed.total()) == (0, 20)
    assert "No queue is bound" in next(iter(tally.stayed))
    assert await morgue.ids() == before


async def test_what_has_expired_is_requeued_only_on_demand_and_then_does_not_expire(morgue: Morgue) -> None:
    await morgue.bury(1, {"amqpjobs-expires-at": milliseconds(now() - timedelta(days=1))})

    stayed = await morgue.letters.requeue(morgue.place)
    gone = await morgue.letters.requeue(morgue.place, even_expired=True)

    assert (stayed.done, gone.done) == (0, 1)
    assert "expired" in next(iter(stayed.stayed))
    (again,) = await morgue.broker.take(work_queue(morgue.app), 1)
    assert "amqpjobs-expires-at" not in again.headers


async def test_what_the_broker_rejected_itself_is_shown_and_requeued_without_its_headers(morgue: Morgue) -> None:
    await morgue.broker.publish(morgue.app.topology.jobs, morgue.kind, b"{}", kind=morgue.kind, message_id="mine")
    await morgue.broker.reject(work_queue(morgue.app))
    await morgue.broker.await_count(dead_queue(morgue.app), 1)

    letter = await morgue.only()
    await morgue.letters.requeue(morgue.place)

    assert (letter.job_id, letter.reason, letter.queue) == ("mine", "rejected", morgue.app.name)
    assert letter.dead_at is not None
    assert abs((letter.dead_at - now()).total_seconds()) < 600
    (again,) = await morgue.broker.take(work_queue(morgue.app), 1)
    assert again.text("amqpjobs-id") == "mine"
    assert not [name for name in again.headers if name.startswith("x-") and name != "x-delivery-count"]


async def test_a_stop_leaves_the_rest_in_order(morgue: Morgue) -> None:
    await morgue.bury(400)
    before, tally = await morgue.ids(), Tally()

    async def arrived(message: DeliveredMessage) -> None:
        tally.is_stopped = True

    async with morgue.broker.channel() as channel:
        await channel.basic_consume(work_queue(morgue.app), arrived)
        await morgue.letters.requeue(morgue.place, tally=tally)

    assert 0 < tally.done < 400
    left = await morgue.ids()
    assert left == [each for each in before if each in left]
    assert len(left) == 400 - tally.done


async def test_a_purge_deletes_only_what_is_meant(morgue: Morgue) -> None:
    await morgue.bury(10)

    tally = await morgue.letters.purge(morgue.place, Filter(reason="not_retryable"))

    assert tally.done == 5
    assert set(await morgue.ids()) == {f"job-{n}" for n in range(0, 10, 2)}
    assert await morgue.broker.count(work_queue(morgue.app)) == 0


async def test_an_edited_letter_keeps_its_job_id_and_a_link_to_what_it_was(morgue: Morgue) -> None:
    begun = now()
    await morgue.bury(3)
    letter = next(each for each in await morgue.letters.find(morgue.place, bodies=True) if each.job_id == "job-1")

    same = await morgue.letters.edit(letter, b'{"n": 1}')
    changed = await morgue.letters.edit(letter, b'{"n": 100}')
    gone = await morgue.letters.edit(letter, b'{"n": 200}')

    assert (same, changed, gone) == (False, True, False)
    (again,) = await morgue.broker.take(work_queue(morgue.app), 1)
    assert (again.body, again.text("amqpjobs-id")) == (b'{"n": 100}', "job-1")
    assert (again.headers[EDITED_FROM], again.headers["amqpjobs-attempt"]) == ("m-1", 1)
    assert again.number(EDITED_AT) >= milliseconds(begun)
    assert set(await morgue.ids()) == {"job-0", "job-2"}


async def test_an_edited_letter_may_stay_dead_with_its_reason(morgue: Morgue) -> None:
    await morgue.bury(1)

    assert await morgue.letters.edit(await morgue.only(), b"{}", requeue=False)

    letter = await morgue.only()
    assert (letter.body, letter.reason, letter.attempt) == (b"{}", "attempts_exhausted", 5)
    assert letter.headers[EDITED_FROM] == "m-0"


async def test_an_export_is_imported_losslessly_and_only_once(morgue: Morgue) -> None:
    table: dict[str, Any] = {
        "bytes": bytearray(b"\xff"),
        "time": now(),
        "decimal": Decimal("1.25"),
        "nested": {"list": [1, None, True, {"deep": "é"}]},
        "large": 2**40,
    }
    await morgue.bury(1, table, body=b"\xff\x00 no text")
    await morgue.bury(2, first=1)
    await morgue.broker.publish(morgue.app.topology.jobs, morgue.kind, b"{}", kind=morgue.kind)  # it has no id at all
    await morgue.broker.reject(work_queue(morgue.app))
    await morgue.broker.await_count(dead_queue(morgue.app), 4)
    before = await morgue.letters.find(morgue.place, bodies=True)
    lines = list[str]()

    exported = await morgue.letters.export(morgue.place, lines.append)
    none = await morgue.letters.import_lines(lines)
    await morgue.letters.purge(morgue.place, Filter())
    back = await morgue.letters.import_lines(lines)
    again = await morgue.letters.import_lines(lines)

    assert (exported.done, none.done, back.done, again.done) == (4, 0, 4, 0)
    after = await morgue.letters.find(morgue.place, bodies=True)
    for old in before:
        new = next(each for each in after if each.body == old.body)
        assert (new.kind, new.reason, new.dead_at, new.attempt) == (old.kind, old.reason, old.dead_at, old.attempt)
        for name, value in old.headers.items():
            if not name.startswith("x-"):
                assert new.headers[name] == value
                assert type(new.headers[name]) is type(value)


async def test_a_broken_line_stops_an_import_before_anything_is_published(morgue: Morgue) -> None:
    await morgue.bury(1)
    lines = list[str]()
    await morgue.letters.export(morgue.place, lines.append)
    await morgue.letters.purge(morgue.place, Filter())

    with pytest.raises(LetterError, match="Line 2"):
        await morgue.letters.import_lines([*lines, "nonsense"])

    assert await morgue.ids() == []


@pytest.mark.parametrize("place", [UNROUTABLE, PARKED], ids=str)
async def test_unroutable_and_parked_jobs_go_by_their_kind_or_queue_again(morgue: Morgue, place: Place) -> None:
    topology = morgue.app.topology
    exchange, key = (topology.queues, topology.parked) if place == PARKED else (topology.unroutable, "")
    unwanted = f"{morgue.kind}-unwanted"
    later = milliseconds(datetime.now(UTC) + timedelta(seconds=1))
    jobs: list[tuple[str, dict[str, object]]] = [
        (morgue.kind, {"amqpjobs-attempt": 3}),
        (unwanted, {}),
        (morgue.kind, {"amqpjobs-queue": f"{morgue.app.name}-elsewhere"}),
        (unwanted, {"amqpjobs-queue": morgue.app.name}),
        (morgue.kind, {"amqpjobs-run-at": later}),
    ]
    for number, (kind, headers) in enumerate(jobs):
        headers["amqpjobs-id"] = f"{morgue.app.name}-{number}"
        await morgue.broker.publish(exchange, key, b"{}", kind=kind, headers=headers)
    mine = Filter(ids=frozenset(f"{morgue.app.name}-{number}" for number in range(5)))

    tally = await morgue.letters.requeue(place, mine)

    came = await morgue.broker.take(work_queue(morgue.app), 3)
    assert {each.text("amqpjobs-id")[-1] for each in came} == {"0", "3", "4"}
    assert {each.headers.get("amqpjobs-attempt") for each in came} == {3, None}
    assert (tally.done, tally.stayed.total()) == (3, 2)
    left = {str(letter.job_id)[-1] for letter in await morgue.letters.find(place, mine)}
    assert left == {"1", "2"}
    await morgue.letters.purge(place, mine)


async def test_an_export_of_parked_jobs_goes_back_to_parked(morgue: Morgue) -> None:
    topology, mine = morgue.app.topology, Filter(ids=frozenset({morgue.app.name}))
    for place, exchange, key in ((PARKED, topology.queues, topology.parked), (UNROUTABLE, topology.unroutable, "x")):
        await morgue.broker.publish(exchange, key, b"{}", kind="x", headers={"amqpjobs-id": morgue.app.name})
        lines = list[str]()
        await morgue.letters.export(place, lines.append, mine)
        await morgue.letters.purge(place, mine)

        await morgue.letters.import_lines(lines)

        assert json.loads(lines[0])["place"] == place.name
        assert (await morgue.letters.purge(place, mine)).done == 1


async def test_a_place_that_is_not_there_is_named_with_the_way_out(morgue: Morgue) -> None:
    with pytest.raises(LetterError, match=r"no queue 'tests\.dead\.nowhere'.*topology apply"):
        await morgue.letters.find(dead_of("nowhere"))


async def test_dead_letters_end_by_themselves_where_a_retention_is_set(bench: Bench) -> None:
    name = bench.unique()
    app = bench.app(name, queues=[Queue(name, dead_retention=1)])
    session = await open_session(app.settings.urls[0], app.settings, "tests")
    declarer = Declarer(app.topology, app.events)
    await declarer.infrastructure(session)
    await declarer.plan(session, app.plan())
    await session.close()

    # Returned if no queue had taken it. How long it then stays there is too short to be looked at on a busy machine.
    await bench.broker.publish(app.topology.queues, dead_queue(app), b"{}")

    await bench.broker.await_count(dead_queue(app), 0)
