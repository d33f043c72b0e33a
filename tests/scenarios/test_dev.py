"""`amqpjobs dev` and `amqpjobs broker` as who writes a service meets them, on a machine without RabbitMQ."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from amqpjobs.cli import whereabouts
from amqpjobs.cli.whereabouts import Found, find_broker
from amqpjobs.clock import SystemClock
from amqpjobs.settings import load_settings
from tests.support.alone import Alone
from tests.support.broker import PATIENCE
from tests.support.service import is_alive, until
from tests.support.terminal import Shell, Terminal

ORDERS = """
from amqpjobs import Job

class Order(Job[None], kind="desk.order"):
    number: int
    note: str = ""
"""
SOURCE = """
import asyncio, os
from pathlib import Path
from amqpjobs import App
from orders import Order

app = App("desk")

@app.handler(Order, max_attempts=1)
async def order(job: Order) -> None:
    print("old code", job.number, os.getpid(), flush=True)
    while job.number and not Path("go").exists():
        await asyncio.sleep(0.02)
    print("ended", job.number, flush=True)
"""
SEND = "amqpjobs send orders desk.order"
WORKING = "working  queues=desk kinds=desk.order"


class Desk(Shell):
    """The service `desk`, in a folder and a network of its own."""

    def __init__(self, folder: Path, network: Alone) -> None:
        super().__init__(folder, AMQPJOBS_LOG_FORMAT="text")
        self._prefix = network.prefix
        self.source = folder / "desk.py"
        self.source.write_text(SOURCE)
        (folder / "orders.py").write_text(ORDERS)

    def type(self, command: str, **environment: str) -> Terminal:
        words = re.match(r"(?:[A-Z_]+=\S+ )*", command)
        assert words is not None
        return super().type(f"{words[0]}{self._prefix} {command[words.end() :]}", **environment)

    def send(self, number: int, command: str = SEND) -> None:
        code, text = self.run(f"{command} number={number}")
        assert code == 0, text


@pytest.fixture(scope="module")
def network() -> Iterator[Alone]:
    if sys.platform != "linux":
        pytest.skip("Only Linux has networks that a test can make for itself.")
    with Alone() as network:
        yield network


@pytest.fixture
def desk(tmp_path: Path, network: Alone) -> Desk:
    return Desk(tmp_path, network)


def stop(terminal: Terminal) -> int:
    """As Ctrl-C does; the exit code."""
    terminal.signal(signal.SIGINT)
    return terminal.end()


def test_without_a_broker_dev_brings_one_says_so_loudly_and_shows_how_to_enqueue(desk: Desk) -> None:
    with desk.type("amqpjobs dev desk") as dev:
        assert dev.shows(WORKING), dev.text
        shown = re.search(r"^ +(amqpjobs send .*)$", dev.text, re.MULTILINE)
        assert shown, dev.text
        code, sent = desk.run(shown[1].replace("number:=1", "number:=0"))
        assert dev.shows("ended 0"), dev.text
        ran = re.search(r"old code 0 (\d+)", dev.text)

        assert stop(dev) == 0, dev.text

    assert code == 0, sent
    assert shown[1] == "amqpjobs send desk desk.order number:=1"
    assert "this is the EMBEDDED BROKER" in dev.text
    assert "ALL JOBS IN IT ARE LOST" in dev.text
    assert "amqp://guest:guest@127.0.0.1:5672\n" in dev.text
    assert "App desk takes from desk" in dev.text
    assert str(desk.folder) in dev.text
    assert "Traceback" not in dev.text
    assert ran is not None
    assert not is_alive(int(ran[1]))


def test_new_code_takes_over_while_the_old_one_ends_its_job_and_broken_code_does_not(desk: Desk) -> None:
    with desk.type("amqpjobs dev desk") as dev:
        assert dev.shows(WORKING), dev.text
        desk.send(1)
        assert dev.shows("old code 1 "), dev.text

        desk.source.write_text(SOURCE.replace("old code", "new code"))
        assert dev.shows("desk.py changed: starting the new code"), dev.text
        assert dev.shows("stopping  running=1"), dev.text  # the old one
        desk.send(0)
        assert dev.shows("new code 0 "), dev.text
        assert "ended 1" not in dev.text
        (desk.folder / "go").touch()
        assert dev.shows("The new code works; what ran on the old one has ended."), dev.text
        assert "ended 1" in dev.text

        desk.source.write_text(SOURCE.replace("app = App(", "app = App(("))
        assert dev.shows("The new code does not start, and why is said above. The old one goes on."), dev.text
        desk.send(2)
        assert dev.shows("new code 2 "), dev.text

        assert stop(dev) == 0, dev.text
    assert 'desk.py", line 7' in dev.text
    assert "SyntaxError" in dev.text
    assert dev.text.count("old code") == 1
    assert "cut short" not in dev.text


def test_a_second_signal_cuts_short_what_runs(desk: Desk) -> None:
    with desk.type("amqpjobs dev desk --no-reload") as dev:
        assert dev.shows(WORKING), dev.text
        desk.send(1)
        assert dev.shows("old code 1 "), dev.text

        dev.signal(signal.SIGINT)
        assert dev.shows("stopping  running=1"), dev.text

        assert stop(dev) == 6, dev.text
    assert "Traceback" not in dev.text
    assert "Reload  when" not in dev.text


def test_a_configured_broker_that_is_dead_is_an_error_and_nothing_takes_its_place(desk: Desk) -> None:
    (desk.folder / "pyproject.toml").write_text('[tool.amqpjobs]\nurl = "amqp://localhost:5999/"\napps = ["desk"]\n')

    for dead in ({"AMQPJOBS_URL": "amqp://guest:guest@localhost:5672/"}, {}):
        code, text = desk.run("amqpjobs dev", **dead)

        assert code == 4, text
        assert "That is the configured one, and no other is tried" in text
        assert "EMBEDDED" not in text
        assert "Nobody said where the broker is" not in text


def test_run_never_brings_a_broker_but_says_who_does(desk: Desk) -> None:
    code, text = desk.run("amqpjobs run desk")

    assert code == 4, text
    assert "amqpjobs dev TARGET" in text


def test_a_broker_on_localhost_is_used_before_one_is_brought(desk: Desk) -> None:
    with desk.type("amqpjobs broker --profile 3.10") as broker:
        assert broker.shows("export AMQPJOBS_URL=amqp://guest:guest@127.0.0.1:5672"), broker.text
        with desk.type("amqpjobs dev desk") as dev:
            assert dev.shows(WORKING), dev.text
            assert stop(dev) == 0, dev.text
        desk.send(0)
        code, text = desk.run("amqpjobs run desk --burst")
        assert stop(broker) == 0, broker.text

    assert "RabbitMQ 3.10.8, the embedded broker of another" in dev.text
    assert "EMBEDDED" not in dev.text
    assert code == 0, text
    assert "ended 0" in text
    assert "Traceback" not in broker.text


async def test_a_real_rabbitmq_on_localhost_is_known_by_its_name(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whereabouts, "PROBE", PATIENCE)  # a busy one may take longer to answer

    found = await find_broker(load_settings(), SystemClock(), default=url)

    assert isinstance(found, Found)
    assert (found.url, found.is_configured) == (url, False)
    assert found.name.startswith("RabbitMQ ")


def test_a_broker_on_localhost_that_refuses_guest_is_an_error(desk: Desk) -> None:
    with desk.type("amqpjobs broker --user dev --password topsecret --json") as broker:
        assert broker.shows('{"url":'), broker.text
        code, text = desk.run("amqpjobs dev desk")
        own = desk.run("amqpjobs check desk", AMQPJOBS_URL="amqp://dev:topsecret@localhost/")
        taken = desk.run("amqpjobs broker")
        assert stop(broker) == 0

    assert code == 4, text
    assert "refused us" in text
    assert "the embedded broker does not take its place" in text
    assert json.loads(broker.text)["url"] == "amqp://dev:***@127.0.0.1:5672"
    assert own[0] == 0, own[1]
    assert taken[0] == 1
    assert "cannot listen on 127.0.0.1 port 5672: address already in use" in taken[1].lower()


def test_something_else_on_the_port_is_told_and_commands_say_where_the_broker_is(desk: Desk) -> None:
    program = "import socket; s = socket.create_server(('127.0.0.1', 5672)); print('listening', flush=True); s.accept()"
    program += "[0].sendall(b'SMTP?'); [s.accept()[0].sendall(b'HTTP/1.1 400 No\\r\\n\\r\\n') for _ in iter(int, 1)]"
    with desk.type(f'python -c "{program}"') as other:
        assert other.shows("listening"), other.text
        with desk.type("amqpjobs dev desk") as dev:
            assert dev.shows(WORKING), dev.text
            shown = re.search(r"^ +(AMQPJOBS_URL=\S+) amqpjobs send desk", dev.text, re.MULTILINE)
            assert shown, dev.text
            desk.send(0, f"{shown[1]} {SEND}")
            assert dev.shows("ended 0"), dev.text
            assert stop(dev) == 0, dev.text

    assert "not on port 5672, which something else has" in dev.text
    assert "EMBEDDED" in dev.text


def test_what_cannot_be_imported_at_first_ends_dev(desk: Desk) -> None:
    code, text = desk.run("amqpjobs dev dsek")

    assert code == 3, text
    assert text.count("There is no module 'dsek'") == 1


def test_without_watchfiles_dev_works_and_says_what_to_install(desk: Desk) -> None:
    (desk.folder / "watchfiles.py").write_text("raise ImportError('not here')\n")

    with desk.type("amqpjobs dev desk") as dev:
        assert dev.shows(WORKING), dev.text
        assert stop(dev) == 0, dev.text

    assert "Changes are not taken up" in dev.text
    assert "pip install 'amqpjobs[dev]'" in dev.text


def test_what_a_service_schedules_is_enqueued_too(desk: Desk) -> None:
    desk.source.write_text(
        SOURCE.replace("import App", "import App, every")
        + "\napp.schedule(every(1), job=Order(number=0), name='tick')\n"
    )

    with desk.type("amqpjobs dev desk") as dev:
        assert dev.shows("schedule tick: desk.order every 1 s"), dev.text
        assert dev.shows("completed  kind=desk.order job_id=tick@"), dev.text
        assert stop(dev) == 0, dev.text


async def test_no_worker_outlives_a_killed_dev(desk: Desk) -> None:
    with desk.type("amqpjobs dev desk") as dev:
        assert dev.shows(WORKING), dev.text
        desk.send(0)
        assert dev.shows("ended 0"), dev.text
        ran = re.search(r"old code 0 (\d+)", dev.text)
        assert ran

        dev.signal(signal.SIGKILL)

        dev.end()
        await until(lambda: not is_alive(int(ran[1])))


def test_a_broker_with_a_login_of_its_own_may_be_reached_by_others(desk: Desk) -> None:
    (desk.folder / "password").write_text("topsecret\n")
    command = "amqpjobs broker --host 0.0.0.0 --port 0 --user dev --password - < password"

    with desk.type(command) as broker:
        assert broker.shows(f"amqp://dev:***@{os.uname().nodename}:"), broker.text
        assert stop(broker) == 0, broker.text
    assert "topsecret" not in broker.text
