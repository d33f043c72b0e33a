"""Our own RabbitMQ nodes do what the other scenarios ask of them, and leave nothing behind."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import aio_pika
import psutil
import pytest

from tests.conftest import MakeNode
from tests.support.broker import PATIENCE
from tests.support.rabbitmq import Node, NodeError, find_program, processes_of

START_AND_WAIT = """
from tests.support.rabbitmq import Node
node = Node()
node.start()
print(node.folder, flush=True)
input()
"""


async def test_a_confirmed_message_survives_a_restart_and_a_kill(make_node: MakeNode) -> None:
    node = await asyncio.to_thread(make_node)
    await publish(node, b"before the restart")

    # First the restart: a quorum queue whose node is killed right after its declaration was seen to have no
    # leader afterwards, on 3.10 for good.
    await asyncio.to_thread(node.restart)
    await publish(node, b"before the kill")
    await asyncio.to_thread(node.kill)
    assert not node.is_running
    await asyncio.to_thread(node.start)

    assert await take(node, 2) == [b"before the restart", b"before the kill"]


def test_a_node_tells_its_version_and_takes_configuration(make_node: MakeNode) -> None:
    node = make_node(conf="heartbeat = 7", advanced="[{rabbit, [{consumer_timeout, 12345}]}].")

    assert node.ctl("eval", "rabbit_misc:version().").strip() == f'"{node.version}"'
    assert node.ctl("eval", "application:get_env(rabbit, heartbeat).").strip() == "{ok,7}"
    assert node.ctl("eval", "application:get_env(rabbit, consumer_timeout).").strip() == "{ok,12345}"
    with pytest.raises(NodeError, match="no_such_command"):
        node.ctl("no_such_command")


def test_a_frozen_node_can_be_thawed_and_stopped(make_node: MakeNode) -> None:
    node = make_node()
    broker = next(process for process in processes_of(node.folder) if process.name().startswith("beam"))

    node.freeze()
    assert broker.status() == psutil.STATUS_STOPPED
    node.thaw()

    assert node.ctl("list_queues") == ""
    node.freeze()
    node.stop()
    assert not broker.is_running()


def test_a_node_that_cannot_start_shows_its_log() -> None:
    with (
        pytest.raises(NodeError, match=r"instead of starting(.|\n)*no\.such\.setting"),
        Node(conf="no.such.setting = 1"),
    ):
        pass


def test_a_closed_node_leaves_no_process_and_no_folder() -> None:
    with Node() as node:
        assert processes_of(node.folder)

    assert not processes_of(node.folder)
    assert not node.folder.exists()
    node.close()


def test_a_node_ends_with_its_test_run_even_if_that_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", START_AND_WAIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        folder = Path(run.stdout.readline().strip())
        assert processes_of(folder)
        (guard,) = guards_of(folder)

        run.send_signal(signal.SIGKILL)

    guard.wait(timeout=2 * PATIENCE)
    assert not processes_of(folder)
    assert not folder.exists()


def test_without_rabbitmq_the_error_says_what_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tests.support.rabbitmq.PACKAGED", tmp_path)

    with pytest.raises(NodeError, match="make rabbitmq"):
        find_program("rabbitmq-server")


async def publish(node: Node, body: bytes) -> None:
    """Confirmed by a durable quorum queue, and so flushed to disk."""
    async with await aio_pika.connect(node.url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("kept", durable=True, arguments={"x-queue-type": "quorum"})
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, "kept")


async def take(node: Node, count: int) -> list[bytes]:
    bodies: list[bytes] = []
    async with await aio_pika.connect(node.url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue("kept")
        async with queue.iterator(timeout=PATIENCE) as messages:
            async for message in messages:
                bodies.append(message.body)
                await message.ack()
                if len(bodies) == count:
                    break
    return bodies


def guards_of(folder: Path) -> list[psutil.Process]:
    processes = psutil.process_iter(["cmdline"])
    return [process for process in processes if (process.info["cmdline"] or [])[-1:] == [str(folder)]]
