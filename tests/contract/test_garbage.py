"""Whatever arrives, it ends as a dead letter that says why, and nothing else suffers from it."""

import asyncio
import struct
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from amqpjobs import Job, JobContext, Worker
from amqpjobs.events import ConnectionLost, JobEnded
from tests.support.apps import Bench, Note, dead_queue, record, watch, work_queue
from tests.support.broker import PATIENCE, Broker, Foreign, counted, item, table

#: For many that come at once: deep tables cost the broker and this process some 0.3 s each.
FOR_ALL = 8 * PATIENCE

#: Of an app's kind: what is wrong with the message, its body, its properties, and what the dead letter says.
Garbage = tuple[str, bytes, Foreign, str, str]

LONG = ">q"
BEYOND_9999 = struct.pack(">Q", 300_000_000_000_000)


def nested(depth: int) -> bytes:
    """A header table with tables in it, so many deep."""
    inner = b""
    for _ in range(depth):
        inner = item("d", b"F", counted(inner))
    return counted(inner)


def broken_header(name: str, value: object) -> Garbage:
    return f"{name} is {value!r}"[:60], b"{}", {"headers": {name: value}}, "unreadable", name


BODIES: list[Garbage] = [
    ("random bytes", bytes(range(256)), {}, "invalid_arguments", "Invalid JSON"),
    ("nothing", b"", {}, "invalid_arguments", "Invalid JSON"),
    ("half of a JSON", b'{"n": 1, "te', {}, "invalid_arguments", "Invalid JSON"),
    ("a JSON list", b"[1, 2]", {}, "invalid_arguments", "object"),
    ("a JSON null", b"null", {}, "invalid_arguments", "object"),
    ("a wrong field", b'{"n": "seven"}', {}, "invalid_arguments", "n: Input should be a valid integer"),
    ("a number too large", b'{"n": 1e999}', {}, "invalid_arguments", "n: "),
    ("no UTF-8", b'{"text": "\xff\xfe"}', {}, "invalid_arguments", "Invalid JSON"),
    ("lone surrogates", b'{"text": "\\ud800"}', {}, "invalid_arguments", "Invalid JSON"),
    ("nested 100,000 deep", b'{"text":' + b"[" * 100_000, {}, "invalid_arguments", "recursion"),
    ("closed, too", b'{"text":' + b"[" * 100_000 + b"]" * 100_000 + b"}", {}, "invalid_arguments", "recursion"),
    ("15 MB", b'{"text": "' + b"x" * 15_000_000 + b'"}', {}, "too_large", "AMQPJOBS_MAX_BODY"),
    ("gzip", b"\x1f\x8b\x08", {"content_encoding": "gzip"}, "unreadable", "'gzip' is not read"),
]
PROPERTIES: list[Garbage] = [
    ("no kind", b"{}", {"kind": ""}, "unreadable", "`type` is missing"),
    ("a kind of 255 bytes", b"{}", {"kind": "k" * 255}, "unknown_kind", "No handler for kind 'kkkk"),
    ("a kind that is no UTF-8", b"{}", {"raw_kind": b"\xff\xfe"}, "unreadable", "cannot be decoded"),
    ("a control character", b"{}", {"kind": "a\x1b[31m\x00"}, "unknown_kind", "No handler for kind"),
    ("no UTF-8 in a name", b"{}", {"table": table(item(b"\xff", b"V", b""))}, "unreadable", "cannot be decoded"),
    (
        "a time beyond 9999",
        b"{}",
        {"table": table(item("when", b"T", BEYOND_9999))},
        "unreadable",
        "cannot be decoded",
    ),
    ("tables 15,000 deep", b"{}", {"table": nested(15_000)}, "unreadable", "nested too deep"),
    broken_header("amqpjobs-attempt", "three"),
    broken_header("amqpjobs-attempt", 0),
    broken_header("amqpjobs-attempt", -1),
    broken_header("amqpjobs-attempt", True),
    broken_header("amqpjobs-attempt", 2**40),
    broken_header("amqpjobs-attempt", {"n": 1}),
    broken_header("amqpjobs-id", 7),
    broken_header("amqpjobs-id", "i" * 300),
    broken_header("amqpjobs-version", "new"),
    broken_header("amqpjobs-run-at", 2**62),
    broken_header("amqpjobs-run-at", "tomorrow"),
    broken_header("amqpjobs-expires-at", -(2**62)),
    broken_header("amqpjobs-max-attempts", 0),
    broken_header("amqpjobs-timeout-ms", 0),
    broken_header("amqpjobs-timeout-ms", [1]),
    broken_header("amqpjobs-parent", ["a"]),
    broken_header("amqpjobs-root", 1),
    broken_header("amqpjobs-first-at", "then"),
    broken_header("amqpjobs-unknown-since", False),
    broken_header("amqpjobs-crashes", -1),
    broken_header("amqpjobs-exchange", 3),
]


@pytest.mark.parametrize("garbage", [BODIES, PROPERTIES], ids=["bodies", "properties"])
async def test_garbage_is_dead_lettered_and_good_jobs_in_between_run(
    bench: Bench, broker: Broker, garbage: list[Garbage]
) -> None:
    app, kind = bench.app(settings=bench.settings(unknown_window=0)), bench.kind()
    name = kind.__amqpjobs__.kind
    ran, lost = record(app, kind), watch(app.events, ConnectionLost)

    told: dict[str, tuple[str, str]] = {}
    async with Worker(app, concurrency=3):
        for n, (what, body, properties, _, _) in enumerate(garbage):
            given: Foreign = {"kind": name, **properties}
            await broker.publish(app.topology.jobs, name, body, **given)
            (letter,) = await broker.take(dead_queue(app), 1)
            told[what] = letter.text("amqpjobs-dead-reason"), letter.text("amqpjobs-dead-error")
            assert letter.body == body
            assert letter.text("amqpjobs-dead-queue") == app.name
            await app.enqueue(kind(n=n))
        await ran.until(len(garbage))

    assert [run.n for run in ran] == list(range(len(garbage)))
    assert {what: reason for what, (reason, _) in told.items()} == {what: reason for what, _, _, reason, _ in garbage}
    assert [(what, told[what][1]) for what, _, _, _, text in garbage if text not in told[what][1]] == []
    assert not list(lost)
    assert await broker.count(work_queue(app)) == 0


async def test_a_missing_field_is_told_without_the_values(bench: Bench, broker: Broker) -> None:
    name = bench.unique()

    class Mail(Job[None], kind=name):
        to: str

    app = bench.app()

    @app.handler(Mail)
    async def send(job: Mail) -> None:
        raise AssertionError(job.to)

    async with Worker(app):
        await broker.publish(app.topology.jobs, name, b'{"password": "hunter2"}', kind=name)
        (letter,) = await broker.take(dead_queue(app), 1)

    assert letter.text("amqpjobs-dead-error") == (
        "InvalidArgumentsError: The payload does not fit Mail: to: Field required."
    )
    assert "amqpjobs-dead-traceback" not in letter.headers


async def test_all_garbage_at_once_takes_no_slot_from_good_jobs(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(settings=bench.settings(unknown_window=0)), bench.kind()
    name = kind.__amqpjobs__.kind
    ran, lost = record(app, kind), watch(app.events, ConnectionLost)
    garbage = BODIES[:-2] + PROPERTIES
    messages: list[tuple[bytes, Foreign]] = []
    good: Foreign = {"kind": name}
    for _, body, properties, _, _ in garbage * 2:
        given: Foreign = {"kind": name, **properties}
        messages += [(body, given), (b"{}", good)]

    async with Worker(app, concurrency=2):
        await broker.publish_all(app.topology.jobs, name, messages)
        letters = await broker.take(dead_queue(app), 2 * len(garbage), within=FOR_ALL)
        await ran.until(2 * len(garbage), within=FOR_ALL)

    assert len(letters) == len(ran) == 2 * len(garbage)
    assert not list(lost)


#: A header of every type that RabbitMQ knows, as bytes, and as it is decoded.
EVERY_TYPE: list[tuple[bytes, object]] = [
    (item("bool", b"t", b"\x01"), True),
    (item("false", b"t", b"\x00"), False),
    (item("int8", b"b", struct.pack(">b", -7)), -7),
    (item("uint8", b"B", struct.pack(">B", 200)), 200),
    (item("int16", b"s", struct.pack(">h", -30_000)), -30_000),
    (item("uint16", b"u", struct.pack(">H", 60_000)), 60_000),
    (item("int32", b"I", struct.pack(">i", -(2**31))), -(2**31)),
    (item("uint32", b"i", struct.pack(">I", 2**32 - 1)), 2**32 - 1),
    (item("int64", b"l", struct.pack(LONG, 2**62)), 2**62),
    (item("float", b"f", struct.pack(">f", 0.5)), 0.5),
    (item("double", b"d", struct.pack(">d", 0.1)), 0.1),
    (item("decimal", b"D", struct.pack(">Bi", 2, 314)), Decimal("3.14")),
    (item("time", b"T", struct.pack(">Q", 1_700_000_000)), datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
    (item("text", b"S", counted("Grüße".encode())), "Grüße"),
    (item("no text", b"S", counted(b"\xff\xfe")), b"\xff\xfe"),
    (item("binary", b"x", counted(b"\x00\xff")), bytearray(b"\x00\xff")),
    (item("null", b"V", b""), None),
    (
        item("table", b"F", table(item("deep", b"F", table(item("n", b"I", struct.pack(">i", 5)))))),
        {"deep": {"n": 5}},
    ),
    (
        item("array", b"A", counted(b"t\x01" + b"S" + counted(b"x") + b"A" + counted(b"V"))),
        [True, "x", [None]],
    ),
]


async def test_foreign_headers_of_every_type_survive_retry_and_death(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    name = kind.__amqpjobs__.kind

    async def fail(job: Note, context: JobContext[None]) -> None:
        raise ValueError("no")

    ran = record(app, kind, fail, max_attempts=3)
    raw = table(*(each for each, _ in EVERY_TYPE))
    async with Worker(app):
        await broker.publish(app.topology.jobs, name, kind=name, table=raw)
        (letter,) = await broker.take(dead_queue(app), 1)

    wanted = {each[1 : 1 + each[0]].decode(): value for each, value in EVERY_TYPE}
    kept = {header: value for header, value in letter.headers.items() if not header.startswith("amqpjobs-")}
    for headers in (*(dict(run.envelope.headers) for run in ran), kept):
        assert headers == wanted
        assert {header: type(value) for header, value in headers.items()} == {
            header: type(value) for header, value in wanted.items()
        }


async def test_a_job_with_a_frame_full_of_headers_runs_and_dies_like_any_other(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    name = kind.__amqpjobs__.kind
    lost = watch(app.events, ConnectionLost)

    async def fail(job: Note, context: JobContext[None]) -> None:
        raise ValueError("no")

    ran = record(app, kind, fail, max_attempts=2)
    headers = {"huge": "x" * 110_000, "large": "y" * 10_000, "small": "kept"}
    async with Worker(app):
        await broker.publish(app.topology.jobs, name, kind=name, headers=headers)
        (letter,) = await broker.take(dead_queue(app), 1)

    assert [run.attempt for run in ran] == [1, 2]
    assert letter.text("small") == "kept"
    assert letter.text("large") == "y" * 10_000
    assert letter.text("amqpjobs-headers-cut") == "huge"
    assert letter.text("amqpjobs-dead-reason") == "attempts_exhausted"
    assert not list(lost)


async def test_many_small_headers_are_cut_to_the_budget(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    name = kind.__amqpjobs__.kind
    headers = {f"h{n:05}": "x" * 6 for n in range(7_000)}

    async with Worker(app):
        pass
    record(app, kind)
    async with Worker(app):
        await broker.publish(app.topology.jobs, name, b"[]", kind=name, headers=headers)
        (letter,) = await broker.take(dead_queue(app), 1)

    assert letter.text("amqpjobs-headers-cut")
    assert letter.text("amqpjobs-dead-reason") == "invalid_arguments"
    assert 4_000 < len(letter.headers) < 7_000


async def test_headers_of_any_depth_neither_stop_the_worker_nor_stay(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    name = kind.__amqpjobs__.kind
    lost = watch(app.events, ConnectionLost)

    async def fail(job: Note, context: JobContext[None]) -> None:
        raise ValueError("no")

    # Somewhere between, a table can just be decoded but not be written any more.
    depths = [1, 10, 50, *range(60, 600, 9), 1_000, 5_000, 18_000]
    record(app, kind, fail, max_attempts=2)
    async with Worker(app):
        await broker.publish_all(
            app.topology.jobs, name, [(b"{}", {"kind": name, "table": nested(depth)}) for depth in depths]
        )
        letters = await broker.take(dead_queue(app), len(depths), within=FOR_ALL)

    assert {letter.text("amqpjobs-dead-reason") for letter in letters} == {"attempts_exhausted", "unreadable"}
    assert not list(lost)
    assert await broker.count(work_queue(app)) == 0


async def test_one_id_used_twice_is_two_jobs(bench: Bench, broker: Broker) -> None:
    app, kind = bench.app(), bench.kind()
    name = kind.__amqpjobs__.kind
    ran, ended = record(app, kind), watch(app.events, JobEnded)

    async with Worker(app):
        for n in range(2):
            await broker.publish(
                app.topology.jobs,
                name,
                b'{"n": %d}' % n,
                kind=name,
                message_id="same",
                headers={"amqpjobs-id": "same"},
            )
        await ended.until(2)

    assert sorted(run.n for run in ran) == [0, 1]
    assert {run.envelope.job_id for run in ran} == {"same"}


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), RecursionError()])
async def test_a_handler_that_raises_what_ends_programs_only_fails(
    bench: Bench, broker: Broker, error: BaseException
) -> None:
    app, kind = bench.app(), bench.kind()

    async def fail(job: Note, context: JobContext[None]) -> None:
        if job.n == 0:
            raise error

    ran = record(app, kind, fail, max_attempts=1)
    async with Worker(app):
        await app.enqueue(kind(n=0))
        (letter,) = await broker.take(dead_queue(app), 1)
        await app.enqueue(kind(n=1))
        await ran.until(2)

    assert letter.text("amqpjobs-dead-error").startswith(type(error).__name__)
