"""The rows of the house and the one room of each verb, as data, and a reading of the source against it.

A file imports files of the rows above its own, and of its own row only those to its left. A verb that has
a room is spoken nowhere else. Both checks work on source text, so that planted violations can show that
they find something.
"""

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "amqpjobs"
ROOT = Path(__file__).parent.parent / PACKAGE

#: From the top down. `*` stands for whatever a room holds, in no order.
HOUSE: dict[str, tuple[str, ...]] = {
    "words": ("errors", "clock", "retry", "sharding", "job", "wire", "handle", "envelope", "outcome", "settings"),
    "plans": (
        "topology",
        "definitions",
        "comparison",
        "permissions",
        "codec",
        "subschemas",
        "inclusion",
        "schemas",
        "contracts",
        "asyncapi",
        "context",
        "batch",
        "signatures",
        "registry",
        "replies",
        "middleware",
        "effects",
        "events",
        "levels",
        "limits",
    ),
    "amqp": (
        "amqp",
        "amqp.table",
        "amqp.properties",
        "amqp.guard",
        "amqp.lane",
        "amqp.transport",
        "amqp.waits",
        "amqp.connection",
        "amqp.loans",
        "amqp.confirms",
        "amqp.declare",
        "amqp.publisher",
        "amqp.consumer",
        "amqp.shard",
        "amqp.watchdog",
        "amqp.browse",
        "amqp.lease",
        "amqp.tokens",
        "amqp.register",
        "amqp.inbox",
        "amqp.mailbox",
        "amqp.runs",
    ),
    "engines": (
        "draft",
        "results",
        "client",
        "producer",
        "backlog",
        "tank",
        "buffer",
        "engine",
        "blocking_buffer",
        "blocking",
        "control",
        "deadletters.place",
        "deadletters.letter",
        "deadletters.filter",
        "deadletters.grouping",
        "deadletters.portable",
        "deadletters.way",
        "deadletters.sieve",
        "deadletters.shelf",
        "deadletters",
    ),
    "worker": (
        "worker.threads",
        "worker.crossing",
        "worker.introduction",
        "worker.process",
        "worker.processes",
        "worker.joint",
        "worker.batches",
        "worker.slots",
        "worker.suspicion",
        "worker.shards",
        "worker.begun",
        "worker.run",
        "worker.severed",
        "worker.intake",
        "worker.execution",
        "worker.quarantine",
        "worker.child",
        "worker.ticks",
        "worker.settle",
        "worker.readiness",
        "worker.running",
        "worker.parked",
        "worker.worker",
        "worker.ending",
        "worker.supervised",
        "worker.shift",
        "worker.supervisor",
        "worker",
    ),
    "beat": (
        "beat.schedule",
        "beat.zone",
        "beat.exclusion",
        "beat.refined",
        "beat.every",
        "beat.fields",
        "beat.cron",
        "beat.plan",
        "beat.form",
        "beat.added",
        "beat.runtime",
        "beat.state",
        "beat.overlap",
        "beat.runs",
        "beat.status",
        "beat.command",
        "beat.term",
        "beat.control",
        "beat.beat",
        "beat.schedules",
        "beat",
    ),
    "workflow": ("workflow.*",),
    "observers": (
        "logs",
        "telemetry.names",
        "telemetry.providers",
        "telemetry.prometheus",
        "telemetry.carrier",
        "telemetry.spans",
        "telemetry.series",
        "telemetry.traceable",
        "telemetry.outcomes",
        "telemetry.sending",
        "telemetry.measures",
        "telemetry.vitals",
        "telemetry.attempts",
        "telemetry.settling",
        "telemetry.log_ids",
        "telemetry",
        "health.report",
        "health.messages",
        "health.server",
        "health.pulse",
        "health.asked",
        "health.pages",
        "health.own",
        "health.asking",
        "health.merging",
        "health.crew",
        "health.endpoint",
        "health",
    ),
    "top": ("app", ""),
    "contrib": ("contrib", "contrib.django", "contrib.sqlalchemy"),
    "devbroker": ("devbroker.*",),
    "cli": ("cli.*", "__main__"),
    "web": ("web.*",),
    "testing": (
        "testing.clock",
        "testing.course",
        "testing.beats",
        "testing.record",
        "testing.rest",
        "testing.performance",
        "testing.harness",
        "testing",
        "testing.plugin",
    ),
}
#: Rooms that do not import each other, whatever their rows.
APART = frozenset({"worker", "beat", "workflow"})
#: Its imports under TYPE_CHECKING name what it loads when first asked: they are no imports.
LAZY = ""
#: An AMQP broker of its own: no verb of ours means the same there.
EXEMPT_FROM_VERBS = "devbroker.*"

#: Libraries, and the rooms that may import them.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "aio_pika": ("amqp.*",),
    "aiormq": ("amqp.*",),
    "pamqp": ("amqp.guard", "devbroker.*"),
    "orjson": ("codec",),
    "croniter": ("beat.fields",),
    "opentelemetry": ("telemetry.*",),
    "prometheus_client": ("telemetry.prometheus",),
    "time": ("clock", "amqp.*"),
    "watchfiles": ("cli.changes",),
}


@dataclass(frozen=True)
class Verb:
    """Something that only some rooms say. `says` looks at dotted text such as `asyncio.sleep`."""

    name: str
    rooms: tuple[str, ...]
    says: Callable[[str], object]


VERBS = (
    Verb("the environment", ("settings",), re.compile(r"^os\.(environb?|getenvb?|putenv|unsetenv)\b").search),
    Verb(
        "the time of day",
        ("clock", "amqp.*"),
        re.compile(r"(^|\.)(datetime\.(now|utcnow|today)|date\.today)$").search,
    ),
    Verb("waiting", ("clock", "amqp.*"), re.compile(r"^asyncio\.(sleep|timeout|timeout_at|wait_for)$").search),
    Verb("timers", ("clock", "amqp.*"), re.compile(r"\.call_(later|at)$").search),
    Verb("publish", ("amqp.confirms",), re.compile(r"\.basic_publish$").search),
    Verb("declare and bind", ("amqp.declare",), re.compile(r"\.\w+_(declare|bind|unbind)$").search),
    Verb("settling on a channel", ("amqp.*",), re.compile(r"\.basic_(ack|nack|reject)$").search),
    Verb("settling a delivery", ("worker.settle", "amqp.*"), re.compile(r"\.(ack|nack|reject)$").search),
)


def is_in(module: str, rooms: Sequence[str]) -> bool:
    """Whether a module is one of these, or within one that ends in `.*`."""
    return any(module == room or (room.endswith(".*") and f"{module}.".startswith(room[:-1])) for room in rooms)


def place_of(module: str) -> tuple[int, int] | None:
    """Row and column; None for a file that nobody gave a place."""
    for row, names in enumerate(HOUSE.values()):
        for column, name in enumerate(names):
            if is_in(module, [name]):
                return row, column
    return None


def forbidden_imports(module: str, source: str, modules: frozenset[str]) -> list[str]:
    """What a file imports although it stands below it, to its right, or in a room apart."""
    here = place_of(module)
    if here is None:
        return [f"{module} has no place in the house"]
    return [
        f"{module} imports {target}"
        for target in imported(module, source, modules)
        if target != module and not may_import(module, target)
    ]


def may_import(module: str, target: str) -> bool:
    here, there = place_of(module), place_of(target)
    if here is None or there is None:
        return False
    rooms = {module.split(".")[0], target.split(".")[0]}
    if len(rooms) == 2 and rooms <= APART:
        return False
    if here == there:  # a room without an order of its own
        return True
    return there < here


def imported(module: str, source: str, modules: frozenset[str]) -> Iterator[str]:
    """The files of ours that a file imports, by their names within the package."""
    tree = ast.parse(source)
    skipped = set(type_checking_nodes(tree)) if module == LAZY else set[ast.AST]()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        match node:
            case ast.Import():
                for alias in node.names:
                    if is_in(alias.name, [f"{PACKAGE}.*"]):
                        yield alias.name.removeprefix(PACKAGE).removeprefix(".")
            case ast.ImportFrom(module=str(origin)) if is_in(origin, [f"{PACKAGE}.*"]):
                base = origin.removeprefix(PACKAGE).removeprefix(".")
                for alias in node.names:
                    inner = f"{base}.{alias.name}".removeprefix(".")
                    yield inner if inner in modules else base
            case ast.ImportFrom(level=level) if level > 0:
                yield "a relative import"
            case ast.Call(args=[ast.Constant(value=str(name)), *_]) if dotted(node.func).endswith(
                ("import_module", "__import__")
            ) and is_in(name, [f"{PACKAGE}.*"]):
                yield name.removeprefix(PACKAGE).removeprefix(".")
            case _:
                pass


def type_checking_nodes(tree: ast.Module) -> Iterator[ast.AST]:
    for node in tree.body:
        if isinstance(node, ast.If) and dotted(node.test).endswith("TYPE_CHECKING"):
            for inner in node.body:
                yield from ast.walk(inner)


def forbidden_verbs(module: str, source: str) -> list[str]:
    """The verbs and libraries a file uses although their room is another one."""
    if is_in(module, [EXEMPT_FROM_VERBS]):
        return []
    found = list[str]()
    for library, line in libraries(ast.parse(source)):
        rooms = LIBRARIES.get(library.split(".")[0])
        if rooms is not None and not is_in(module, rooms):
            found.append(f"{module}:{line} imports {library}")
    for text, line in said(ast.parse(source)):
        found += [
            f"{module}:{line} says {text} ({verb.name})"
            for verb in VERBS
            if verb.says(text) and not is_in(module, verb.rooms)
        ]
    return found


def libraries(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from ((alias.name, node.lineno) for alias in node.names)
            case ast.ImportFrom(module=str(origin), level=0):
                yield origin, node.lineno
            case ast.Call(args=[ast.Constant(value=str(name)), *_]) if dotted(node.func).endswith(
                ("import_module", "__import__")
            ):
                yield name, node.lineno
            case _:
                pass


def said(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Each dotted name, with import aliases undone: `from os import environ as e; e` says os.environ."""
    aliases = dict[str, str]()
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                aliases.update({each.asname: each.name for each in node.names if each.asname})
            case ast.ImportFrom(module=str(origin), level=0):
                for each in node.names:
                    aliases[each.asname or each.name] = f"{origin}.{each.name}"
                    yield f"{origin}.{each.name}", node.lineno
            case _:
                pass
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            head, dot, rest = dotted(node).partition(".")
            yield aliases.get(head, head) + dot + rest, node.lineno


def dotted(node: ast.AST) -> str:
    """`a.b.c` for such an expression; what it cannot name is a question mark."""
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            return f"{dotted(node.value)}.{node.attr}"
        case _:
            return "?"


def sources() -> dict[str, str]:
    """All files of the package, by their names within it."""
    found = dict[str, str]()
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = file.read_text(encoding="utf-8")
    return found


SOURCES = sources()
MODULES = frozenset(SOURCES)


@pytest.mark.parametrize("module", SOURCES, ids=lambda name: str(name) or "__init__")
def test_imports_only_go_up_and_to_the_left(module: str) -> None:
    assert forbidden_imports(module, SOURCES[module], MODULES) == []


@pytest.mark.parametrize("module", SOURCES, ids=lambda name: str(name) or "__init__")
def test_each_verb_is_said_in_its_own_room_only(module: str) -> None:
    assert forbidden_verbs(module, SOURCES[module]) == []


def test_no_file_has_two_places() -> None:
    names = [name for row in HOUSE.values() for name in row]

    assert len(names) == len(set(names))


PLANTED_IMPORTS = [
    ("errors", "from amqpjobs.clock import Clock"),
    ("retry", "import amqpjobs.job"),
    ("codec", "from amqpjobs.app import App"),
    ("codec", "def f():\n    from amqpjobs.registry import Registry"),
    ("codec", "from amqpjobs import App"),
    ("codec", "import amqpjobs"),
    ("topology", "from amqpjobs import codec"),
    ("amqp.guard", "from amqpjobs.amqp.connection import Link"),
    ("amqp.table", "from amqpjobs.amqp import publisher"),
    ("client", "from amqpjobs.worker import Worker"),
    ("worker.settle", "from amqpjobs.worker.worker import Worker"),
    ("worker.execution", "import amqpjobs.worker.settle as s"),
    ("beat.beat", "from amqpjobs.worker.threads import Threads"),
    ("workflow.chain", "from amqpjobs.beat.every import every"),
    ("worker.worker", "from amqpjobs.beat.every import every"),
    ("logs", "from amqpjobs.cli.run import run"),
    ("app", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from amqpjobs.cli import main"),
    ("", "from amqpjobs.cli import main"),
    ("outcome", "from . import settings"),
    ("outcome", 'from importlib import import_module\nimport_module("amqpjobs.settings")'),
    ("unheard_of", "x = 1"),
]


@pytest.mark.parametrize(("module", "source"), PLANTED_IMPORTS)
def test_a_planted_import_is_found(module: str, source: str) -> None:
    names = frozenset(name for row in HOUSE.values() for name in row)

    assert len(forbidden_imports(module, source, names)) == 1


GOOD_IMPORTS = [
    ("clock", "from amqpjobs.errors import AmqpJobsError"),
    ("codec", "from amqpjobs import topology, wire"),
    ("amqp.connection", "from amqpjobs.amqp.guard import GuardedTransport\nimport asyncio"),
    ("worker", "from amqpjobs.worker.worker import Worker"),
    ("cli.run", "from amqpjobs.cli.show import show\nfrom amqpjobs.app import App"),
    ("", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from amqpjobs.cli import main"),
    ("worker.worker", "from amqpjobs.client import Client"),
    ("errors", "import amqpjobs_of_others"),
]


@pytest.mark.parametrize(("module", "source"), GOOD_IMPORTS)
def test_an_import_that_may_be_is_let_pass(module: str, source: str) -> None:
    names = frozenset(name for row in HOUSE.values() for name in row)

    assert forbidden_imports(module, source, names) == []


PLANTED_VERBS = [
    ("client", "import aio_pika"),
    ("worker.worker", "from aiormq.abc import AbstractChannel"),
    ("amqp.table", "import pamqp.decode"),
    ("job", "import orjson"),
    ("job", 'from importlib import import_module\nimport_module("orjson")'),
    ("beat.beat", "from croniter import croniter"),
    ("app", "from opentelemetry import trace"),
    ("telemetry.measures", "from prometheus_client import Counter"),
    ("app", "import time"),
    ("cli.dev", "import watchfiles"),
    ("app", "from time import monotonic"),
    ("app", "import os\nos.environ['A']"),
    ("app", "import os\nos.getenv('A')"),
    ("app", "import os as o\no.environ"),
    ("app", "from os import environ"),
    ("app", "from datetime import datetime\ndatetime.now()"),
    ("app", "import datetime as d\nd.datetime.utcnow()"),
    ("app", "from datetime import datetime as dt\nread = dt.now"),
    ("app", "import asyncio\nawait asyncio.sleep(0)"),
    ("app", "import asyncio\nasync with asyncio.timeout(1): pass"),
    ("app", "import asyncio as a\na.wait_for(x, 1)"),
    ("app", "from asyncio import sleep"),
    ("app", "import asyncio\nasyncio.get_running_loop().call_later(1, f)"),
    ("app", "loop.call_at(1, f)"),
    ("amqp.browse", "channel.basic_publish(b'')"),
    ("client", "self._channel.basic_publish(b'')"),
    ("amqp.consumer", "channel.queue_declare('q')"),
    ("amqp.browse", "bind = channel.exchange_bind"),
    ("client", "(await x()).queue_unbind('q')"),
    ("worker.settle", "channel.basic_ack(1)"),
    ("client", "channel.basic_nack(1)"),
    ("worker.worker", "delivery.settler.ack(1)"),
    ("worker.worker", "run.delivery.settler.nack(1)"),
    ("control", "settler.reject(1)"),
]


@pytest.mark.parametrize(("module", "source"), PLANTED_VERBS)
def test_a_planted_verb_is_found(module: str, source: str) -> None:
    assert forbidden_verbs(module, source)


GOOD_VERBS = [
    ("amqp.connection", "import aio_pika, aiormq, asyncio, time\nasyncio.sleep(1)"),
    ("amqp.guard", "import pamqp"),
    ("devbroker.server", "import pamqp, time\nchannel.basic_ack(1)"),
    ("codec", "import orjson"),
    ("settings", "import os\nos.environ"),
    ("clock", "import time, asyncio\nfrom datetime import datetime\ndatetime.now()\nasyncio.sleep(1)"),
    ("app", "self._clock.now()\nself._clock.sleep(1)\nclock.timeout(5)\nos.path"),
    ("app", "import asyncio\nasyncio.wait([])\nasyncio.create_task(x)"),
    ("amqp.confirms", "channel.basic_publish(b'')"),
    ("amqp.declare", "channel.queue_declare('q')\nself._bind(x)"),
    ("amqp.consumer", "channel.basic_ack(1)"),
    ("worker.settle", "delivery.settler.ack(1)"),
    ("app", "def f(): 'datetime.now() in words'"),
]


@pytest.mark.parametrize(("module", "source"), GOOD_VERBS)
def test_a_verb_in_its_own_room_is_let_pass(module: str, source: str) -> None:
    assert forbidden_verbs(module, source) == []


def test_every_verb_and_library_has_a_planted_violation() -> None:
    found = " ".join(problem for module, source in PLANTED_VERBS for problem in forbidden_verbs(module, source))

    assert all(f"({verb.name})" in found for verb in VERBS)
    assert all(f"imports {library}" in found for library in LIBRARIES)
