"""`amqpjobs topology`: each subcommand's help, and what it does to a broker."""

import asyncio
import json
import os
import pty
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import aiormq
import pytest

from tests.conftest import MakeNode
from tests.scenarios.conftest import control
from tests.support.broker import Broker, plain_client
from tests.support.shop import Shop

SUBCOMMANDS = ("show", "check", "apply", "export", "prune", "permissions")


def test_every_subcommand_explains_itself_with_an_example(shop: Shop) -> None:
    listed = shop.run("amqpjobs topology --help")[1]

    for name in SUBCOMMANDS:
        code, text = shop.run(f"amqpjobs topology {name} --help")
        assert code == 0
        assert f"amqpjobs topology {name} " in text, text
        assert name in listed


def test_show_needs_no_broker_and_tells_queues_arguments_and_bindings(shop: Shop) -> None:
    nowhere = {"AMQPJOBS_URL": "amqp://127.0.0.1:1/orders", "COLUMNS": "40"}

    code, text = shop.run("amqpjobs topology show shop", **nowhere)
    everything = shop.run("amqpjobs topology show shop --all", **nowhere)[1]
    found = json.loads(shop.run("amqpjobs topology show shop --json", **nowhere)[1])

    assert code == 0
    assert f"queue tests.queue.{shop.name}  quorum" in text
    assert f"x-dead-letter-routing-key=tests.dead.{shop.name}" in text
    assert f"bound to tests by {shop.name}.order" in text
    assert f"bound to tests.due.v1 by (32 stars).kind.{shop.name}.order" in text
    assert "tests.delay.v1.31" not in text
    assert "queue tests.delay.v1.31  quorum" in everything
    assert found[0]["app"] == shop.name
    assert {each["vhost"] for each in found[0]["own"]["queues"]} == {"orders"}
    assert len(found[0]["shared"]["queues"]) == 34


def test_check_tells_what_is_missing_and_apply_makes_it_fit(shop: Shop) -> None:
    missing = shop.run("amqpjobs topology check shop")
    tried = shop.run("amqpjobs topology apply shop --dry-run")
    still_missing = shop.run("amqpjobs topology check shop --json")
    applied, again = shop.run("amqpjobs topology apply shop"), shop.run("amqpjobs topology apply shop")
    fits = shop.run("amqpjobs topology check shop")

    assert missing[0] == 1
    assert f"tests.queue.{shop.name}, tests.dead.{shop.name}" in missing[1]
    assert "amqpjobs topology apply shop" in missing[1]
    assert tried[0] == 0
    assert f"would declare queues: tests.queue.{shop.name}" in tried[1]
    assert "Nothing was changed." in tried[1]
    assert still_missing[0] == 1
    found = json.loads(still_missing[1])[0]
    assert found["missing"]["queues"][-2:] == [f"tests.queue.{shop.name}", f"tests.dead.{shop.name}"]
    assert found["fits"] is False
    assert len(found["bindings"]["missing"]) >= 5
    assert applied[0] == again[0] == 0
    assert f"will declare queues: tests.queue.{shop.name}, tests.dead.{shop.name}" in applied[1]
    assert "all exchanges and queues are there" in again[1]
    assert fits[0] == 0
    assert "all exchanges and queues are there and fit" in fits[1]
    assert "AMQP cannot tell" in fits[1]


async def test_check_tells_safe_differences_from_others_and_apply_changes_nothing_then(
    shop: Shop, broker: Broker
) -> None:
    shop.run("amqpjobs topology apply shop")
    work, dead = f"tests.queue.{shop.name}", f"tests.dead.{shop.name}"
    await broker.delete_queue(dead)
    await broker.declare_queue(dead, {"x-queue-type": "quorum", "x-delivery-limit": 7})
    safe = shop.run("amqpjobs topology check shop")
    await broker.delete_queue(work)
    await broker.declare_queue(work, {"x-queue-type": "classic"})
    await broker.delete_queue(dead)

    unsafe, told = shop.run("amqpjobs topology check shop"), shop.run("amqpjobs topology check shop --json")
    applied = shop.run("amqpjobs topology apply shop")

    assert safe[0] == 0
    assert f"differs, but safely: queue {dead} has x-delivery-limit = 7, ours is 1000000" in safe[1]
    assert unsafe[0] == 5
    assert f"differs: queue {work} has x-queue-type = 'classic', ours is 'quorum'" in unsafe[1]
    drift = {each["argument"]: each for each in json.loads(told[1])[0]["drift"]}
    assert drift["x-queue-type"]["theirs"] == "classic"
    assert drift["x-queue-type"]["is_safe"] is False
    assert applied[0] == 5
    assert "give this one another name" in applied[1]
    assert not await broker.exists(dead)


def test_a_broker_that_is_away_is_exit_code_4(shop: Shop) -> None:
    for command in ("check shop", "apply shop", "prune shop --queue old --yes"):
        code, text = shop.run(f"amqpjobs topology {command}", AMQPJOBS_URL="amqp://guest:guest@127.0.0.1:1/")
        assert code == 4, text
        assert "No connection to the broker" in text


async def test_prune_deletes_a_queue_that_no_service_names_and_asks_before(shop: Shop, broker: Broker) -> None:
    shop.run("amqpjobs topology apply shop")
    old = f"{shop.name}-old"
    (shop.folder / "old.py").write_text((shop.folder / "shop.py").read_text().replace(shop.name, old))
    shop.run("amqpjobs topology apply old")
    prune = f"amqpjobs topology prune shop --queue {old}"
    await broker.publish("tests.queues", f"tests.dead.{old}")

    named, full = shop.run(f"amqpjobs topology prune shop --queue {shop.name}"), shop.run(f"{prune} --yes")
    tried = shop.run(f"{prune} --with-messages --dry-run")
    unanswered = shop.run(f"{prune} --with-messages")
    both_are_there = await broker.exists(f"tests.queue.{old}") and await broker.exists(f"tests.dead.{old}")
    answered = answer(shop, f"{prune} --with-messages", "y")
    again = shop.run(f"{prune} --yes")

    assert named[0] == 2
    assert f"App '{shop.name}' still works on queue '{shop.name}'" in named[1]
    assert full[0] == 1
    assert f"Queue 'tests.dead.{old}' is not empty: it holds 1 messages" in full[1]
    assert tried[0] == 0
    assert f"would delete queue tests.dead.{old} with 1 messages" in tried[1]
    assert unanswered[0] == 1
    assert "Nothing was removed." in unanswered[1]
    assert both_are_there
    assert answered[0] == 0
    assert f"deleted queue tests.dead.{old} and 1 messages" in answered[1]
    assert not await broker.exists(f"tests.queue.{old}")
    assert not await broker.exists(f"tests.dead.{old}")
    assert again[0] == 0
    assert "There is nothing to delete." in again[1]


def test_prune_refuses_a_queue_that_is_consumed(shop: Shop) -> None:
    old = f"{shop.name}-old"
    (shop.folder / "old.py").write_text((shop.folder / "shop.py").read_text().replace(shop.name, old))

    with shop.type("amqpjobs run old") as worker:
        assert worker.shows('"message":"working"')
        code, text = shop.run(f"amqpjobs topology prune shop --queue {old} --yes --with-messages")
        worker.signal(signal.SIGTERM)
        worker.end()

    assert code == 1
    assert "has 1 consumers: stop its workers first" in text


def test_prune_unbinds_a_kind_that_no_service_wants_there(shop: Shop) -> None:
    old = f"{shop.name}-old"
    (shop.folder / "old.py").write_text((shop.folder / "shop.py").read_text().replace(shop.name, old))
    shop.run("amqpjobs topology apply old")
    prune = f"amqpjobs topology prune --queue {old} --kind {old}.order"

    wanted, tried = shop.run(f"{prune} old --yes"), shop.run(f"{prune} shop --dry-run")
    sent_before = shop.run(f"amqpjobs send old {old}.order number=0")
    done = shop.run(f"{prune} shop --yes")
    sent_after = shop.run(f"amqpjobs send old {old}.order number=0")

    assert wanted[0] == 2
    assert f"still wants '{old}.order' on queue '{old}'" in wanted[1]
    assert tried[0] == sent_before[0] == done[0] == 0
    assert f"unbound {old}.order from queue {old}" in done[1]
    assert sent_after[0] == 1
    assert "No queue is bound" in sent_after[1]


def test_prune_wants_to_be_told_what(shop: Shop) -> None:
    refused = {
        "prune shop": "--queue",
        "prune shop --queue 'a b'": "name of a queue",
        "prune shop --queue old --exchange orders": "name the kind",
    }

    for command, words in refused.items():
        code, text = shop.run(f"amqpjobs topology {command}")
        assert code == 2, text
        assert words in text, text


async def test_what_is_exported_is_imported_into_a_fresh_broker_and_enough_to_work(
    make_node: MakeNode, tmp_path: Path, unique: Callable[[], str]
) -> None:
    node = await asyncio.to_thread(make_node)
    await control(node, "add_vhost", "orders/eu")
    await control(node, "set_permissions", "-p", "orders/eu", "guest", ".*", ".*", ".*")
    shop = Shop(unique(), tmp_path, f"{node.url}orders%2Feu")
    shop.environment["AMQPJOBS_DECLARE"] = "false"
    refused = shop.run("amqpjobs run shop")

    exported = shop.run("amqpjobs topology export shop")
    definitions = node.folder / "definitions.json"  # where a broker in a chroot sees it, too
    definitions.write_text(exported[1])
    await control(node, "import_definitions", str(definitions))
    await control(node, "import_definitions", str(definitions))
    checked = shop.run("amqpjobs topology check shop")
    # Nobody may declare anything now.
    await control(node, "set_permissions", "-p", "orders/eu", "guest", "^$", ".*", ".*")

    with shop.type("amqpjobs run shop") as worker:
        assert worker.shows('"message":"working"'), worker.text
        shop.run(f"amqpjobs send shop {shop.name}.order number=0 --delay 0.3")
        assert worker.shows('"message":"completed"'), worker.text
        shop.run(f"amqpjobs send shop {shop.name}.order number=-1")
        assert worker.shows("dead-lettered"), worker.text
        worker.signal(signal.SIGTERM)
        assert worker.end() == 0
    async with plain_client(f"{node.url}orders%2Feu") as client:
        await client.await_count(f"tests.dead.{shop.name}", 1)

    assert refused[0] == 5
    assert "amqpjobs topology export" in refused[1]
    assert set(json.loads(exported[1])) == {"exchanges", "queues", "bindings"}
    assert checked[0] == 0, checked[1]


@pytest.mark.parametrize("role", ["producer", "worker"])
def test_permissions_of_who_calls_have_its_reply_queues_and_else_what_its_role_has(shop: Shop, role: str) -> None:
    def printed(options: str) -> dict[str, str]:
        code, text = shop.run(f"amqpjobs topology permissions {role} shop --no-declare --json {options}")
        assert code == 0, text
        found: list[dict[str, str]] = json.loads(text)
        return found[0]

    plain, calling = printed(""), printed("--calls")

    for what in ("configure", "write", "read"):
        assert re.search(calling[what], "tests.replies.v1.0f3a")
        assert not re.search(plain[what], "tests.replies.v1.0f3a")
        assert not re.search(calling[what], f"tests.dead.{shop.name}x")
    assert re.search(calling["read"], "tests.queues")
    assert shop.run("amqpjobs topology permissions observer shop --calls")[0] == 2


async def test_what_permissions_prints_is_a_command_that_rabbitmqctl_takes(
    make_node: MakeNode, tmp_path: Path, unique: Callable[[], str]
) -> None:
    node = await asyncio.to_thread(make_node)
    shop = Shop(unique(), tmp_path, node.url)
    shop.run("amqpjobs topology apply shop")
    for user in ("producer", "worker"):
        await control(node, "add_user", user, "secret")
        code, line = shop.run(f"amqpjobs topology permissions {user} shop --no-declare --user {user}")
        assert code == 0, line
        await control(node, *shlex.split(line)[1:])
    shop.environment["AMQPJOBS_DECLARE"] = "false"
    of = {user: {"AMQPJOBS_URL": node.url.replace("guest:guest", f"{user}:secret")} for user in ("producer", "worker")}

    with shop.type("amqpjobs run shop", **of["worker"]) as worker:
        assert worker.shows('"message":"working"'), worker.text
        sent = shop.run(f"amqpjobs send shop {shop.name}.order number=0 --delay 0.2", **of["producer"])
        assert worker.shows('"message":"completed"'), worker.text
        worker.signal(signal.SIGTERM)
        assert worker.end() == 0
    as_worker = shop.run("amqpjobs run shop", **of["producer"])
    found = json.loads(shop.run("amqpjobs topology permissions worker shop --json", **of["worker"])[1])

    assert sent[0] == 0, sent[1]
    assert as_worker[0] == 4
    assert "permission" in as_worker[1]
    assert found[0]["user"] == "worker"
    assert found[0]["vhost"] == "/"
    assert found[0]["configure"] == "^$"


def answer(shop: Shop, command: str, word: str) -> tuple[int, str]:
    """Run a command at a terminal and answer its question."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        shlex.split(command),
        cwd=shop.folder,
        env=shop.environment,
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    os.close(slave)
    os.write(master, f"{word}\n".encode())
    try:
        text = process.communicate(timeout=60)[0]
    finally:
        process.kill()
        process.wait()
        os.close(master)
    return process.returncode, text


async def test_prune_removes_former_shards_of_a_queue_and_all_of_one_that_is_named_no_more(
    shop: Shop, broker: Broker
) -> None:
    plain = (shop.folder / "shop.py").read_text()

    def split(shards: int) -> None:
        declared = f'App("{shop.name}", queues=[Queue("{shop.name}-hot", shards={shards})])'
        sharded = plain.replace(f'App("{shop.name}")', declared).replace("import App,", "import App, Queue,")
        sharded = sharded.replace('.order")', '.order", shard_by="number")')
        (shop.folder / "shop.py").write_text(sharded.replace("max_attempts=1", f'queue="{shop.name}-hot"'))

    split(8)
    shown, applied = shop.run("amqpjobs topology show shop")[1], shop.run("amqpjobs topology apply shop")
    split(4)
    fewer = shop.run("amqpjobs topology apply shop")
    hot, prune = f"{shop.name}-hot", f"amqpjobs topology prune shop --queue {shop.name}-hot --yes"
    shards = [f"tests.shard.{hot}.{number:02}" for number in range(1, 8)]
    assert [await broker.exists(shard) for shard in shards] == 7 * [True]
    smaller = shop.run(prune)
    there = [await broker.exists(shard) for shard in shards]
    (shop.folder / "shop.py").write_text(plain)
    shop.run("amqpjobs topology apply shop")
    whole = shop.run(prune)

    assert f"bound to tests.slots.v1.8.{hot} by 8 keys, amqpjobs-slot-03 and others" in shown
    for code, text in (applied, fewer, smaller, whole):
        assert code == 0, text
    assert "from tests.slots" not in fewer[1]
    assert there == 3 * [True] + 4 * [False]
    left = [*shards, f"tests.queue.{hot}", f"tests.dead.{hot}", f"tests.crew.v1.{hot}"]
    assert [await broker.exists(queue) for queue in left] == len(left) * [False]
    for exchange in (f"tests.sharded.v1.{hot}", f"tests.slots.v1.4.{hot}", f"tests.unslotted.v1.{hot}"):
        with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity):
            async with broker.channel() as channel:
                await channel.exchange_declare(exchange, passive=True)
