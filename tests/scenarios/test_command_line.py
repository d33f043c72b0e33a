"""The command line as its users meet it: what it prints, and how it ends."""

import json
import os
import pty
import signal
import subprocess
from contextlib import suppress

from amqpjobs.cli import COMMANDS
from tests.support.broker import Broker
from tests.support.shop import Shop


def test_a_worker_runs_what_is_sent_and_stops_cleanly(shop: Shop) -> None:
    with shop.type("amqpjobs run shop") as worker:
        assert worker.shows('"message":"working"')
        sent = shop.run(f"amqpjobs send shop {shop.name}.order number=0 --json")
        assert worker.shows('"message":"completed"'), worker.text

        worker.signal(signal.SIGTERM)

        assert worker.end() == 0
    job_id = json.loads(sent[1])["job_id"]
    lines = [json.loads(line) for line in worker.text.splitlines()]
    completed = next(line for line in lines if line["message"] == "completed")
    assert completed["job_id"] == job_id
    assert completed["kind"] == f"{shop.name}.order"
    assert completed["attempt"] == 1
    assert lines[-1]["message"] == "stopped"


def test_a_second_signal_cuts_short_what_runs_and_says_so_by_its_exit_code(shop: Shop) -> None:
    with shop.type("amqpjobs run shop") as worker:
        assert worker.shows('"message":"working"')
        shop.run(f"amqpjobs send shop {shop.name}.order number=600")
        assert worker.shows("ordering 600")

        worker.signal(signal.SIGINT)
        assert worker.shows('"message":"stopping"')
        worker.signal(signal.SIGINT)

        assert worker.end() == 6
    with shop.type("amqpjobs run shop", AMQPJOBS_GRACE="0") as second:
        assert second.shows('ordering 600 … "attempt":1'), second.text
        second.signal(signal.SIGTERM)
        assert second.end() == 6


def test_what_comes_from_the_wire_is_shown_without_terminal_escapes(shop: Shop) -> None:
    with shop.type("amqpjobs run shop", AMQPJOBS_LOG_FORMAT="text") as worker:
        assert worker.shows("working")
        shop.run(f"amqpjobs send shop {shop.name}.order number=-1")
        assert worker.shows("dead-lettered … attempts_exhausted"), worker.text
        worker.signal(signal.SIGTERM)
        worker.end()

    assert "\x1b" not in worker.text
    assert "\nforged line" not in worker.text
    assert "shop.py" in worker.text  # the handler's traceback
    assert "execution.py" not in worker.text  # and not ours


def test_on_a_terminal_logs_are_for_a_person(shop: Shop) -> None:
    master, slave = pty.openpty()
    worker = subprocess.Popen(
        ["amqpjobs", "run", "shop"], cwd=shop.folder, env=shop.environment, stdout=slave, stderr=slave, text=True
    )
    os.close(slave)
    try:
        raw = b""
        while b"working" not in raw:
            raw += os.read(master, 65536)
        worker.send_signal(signal.SIGINT)
        assert worker.wait(60) == 0
        with suppress(OSError):  # its end, in Linux's words
            while rest := os.read(master, 65536):  # a line may come in pieces
                raw += rest
        shown = raw.decode()
    finally:
        worker.kill()
        worker.wait()
        os.close(master)

    assert not shown.lstrip("\x1b[0m").startswith("{")
    assert f"queues={shop.name}" in shown


def test_send_refuses_what_does_not_fit_the_job_class(shop: Shop) -> None:
    kind = f"{shop.name}.order"
    refused = {
        f"amqpjobs send shop {kind} number=abc": (1, "number: Input should be a valid integer"),
        f"amqpjobs send shop {kind} nmber=1": (2, "Did you mean 'number'?"),
        f"amqpjobs send shop {kind}x number=1": (2, f"Did you mean '{kind}'?"),
        f"amqpjobs send shop {kind} --data '{{'": (2, "--data is no JSON"),
        f"amqpjobs send shop {kind} --data '[]'": (2, "must be a JSON object"),
        f"amqpjobs send shop {kind} 'number:=x'": (2, "takes JSON"),
        f"amqpjobs send shop {kind}": (1, "number: Field required"),
    }

    for command, (code, words) in refused.items():
        ended = shop.run(command)
        assert ended[0] == code, (command, ended)
        assert words in ended[1], (command, ended)


def test_send_says_that_nobody_is_bound_and_parks_when_asked_to(shop: Shop) -> None:
    command = f"amqpjobs send shop {shop.name}.order number=0"

    unroutable, parked = shop.run(command), shop.run(f"{command} --park")

    assert unroutable[0] == 1
    assert "amqpjobs topology apply" in unroutable[1]
    assert parked[0] == 0
    assert "parked" in parked[1]
    with shop.type("amqpjobs run shop") as worker:
        assert worker.shows('"message":"completed"'), worker.text


def test_targets_that_cannot_be_imported_are_told_apart(shop: Shop) -> None:
    (shop.folder / "broken.py").write_text("import nowhere_at_all\n")
    (shop.folder / "empty.py").write_text("")
    (shop.folder / "twice.py").write_text(
        "from shop import app, Order\n@app.handler(Order)\nasync def again(job: Order) -> int: return 1\n"
    )
    (shop.folder / "slow.py").write_text(
        "from amqpjobs import App, Job\napp = App('slow')\nclass Slow(Job[None], kind='slow', timeout=9000): ...\n"
        "@app.handler(Slow)\nasync def wait(job: Slow) -> None: ...\n"
    )
    refused = {
        "amqpjobs check slow": "consumer_timeout=9060",
        "amqpjobs run slow": "consumer_timeout=9060",
        "amqpjobs check nosuch": "There is no module 'nosuch'",
        "amqpjobs check broken": "nowhere_at_all",
        "amqpjobs check empty": "empty:app is missing",
        "amqpjobs check shop:Order": "no App",
        "amqpjobs check twice": "is handled by shop.order",
    }

    for command, words in refused.items():
        code, text = shop.run(command)
        assert code == 3, (command, text)
        assert words in text, (command, text)


def test_without_a_target_the_projects_own_apps_are_taken(shop: Shop) -> None:
    none = shop.run("amqpjobs check --no-broker")
    (shop.folder / "pyproject.toml").write_text('[tool.amqpjobs]\napps = ["shop"]\n')

    found = shop.run("amqpjobs check --no-broker --json")

    assert none[0] == 2
    assert "[tool.amqpjobs]" in none[1]
    assert found[0] == 0
    assert json.loads(found[1])[0]["handlers"][0]["kind"] == f"{shop.name}.order"


def test_check_tells_which_handlers_take_batches(shop: Shop) -> None:
    lines = [
        "from amqpjobs import App, Batch, Job",
        "class Row(Job[None], kind='row'): pass",
        "app = App('rows')",
        "@app.handler(list[Row], batch=Batch(size=100, seconds=0.5))",
        "async def save_rows(jobs: list[Row]) -> None: pass",
    ]
    (shop.folder / "rows.py").write_text("\n".join(lines))

    shown = shop.run("amqpjobs check rows --no-broker")
    found = shop.run("amqpjobs check rows shop --no-broker --json")

    assert "event loop, up to 100 at once within 0.5 s" in shown[1]
    batches = [handler["batch"] for app in json.loads(found[1]) for handler in app["handlers"]]
    assert batches == [{"size": 100, "seconds": 0.5}, None]


def test_check_declares_nothing_and_apply_declares_all(shop: Shop) -> None:
    before = shop.run("amqpjobs check shop")
    applied = shop.run("amqpjobs topology apply shop")
    after = shop.run("amqpjobs check shop")

    assert f"not there yet, made by the first start: tests.queue.{shop.name}" in before[1]
    assert applied[0] == 0
    assert f"bound {shop.name}.order to queue {shop.name}" in applied[1]
    assert "all exchanges and queues are there" in after[1]


async def test_a_queue_that_does_not_fit_is_exit_code_5(shop: Shop, broker: Broker) -> None:
    await broker.declare_queue(f"tests.queue.{shop.name}", {"x-queue-type": "classic"})

    for command in ("amqpjobs check shop", "amqpjobs run shop", "amqpjobs topology apply shop"):
        code, text = shop.run(command)
        assert code == 5, text
        # Which of the arguments that differ is named first is the broker's choice.
        assert f"Queue 'tests.queue.{shop.name}' exists with x-" in text
        assert "give this one another name" in text


def test_a_refused_login_is_exit_code_4_and_shows_no_password(shop: Shop, url: str) -> None:
    wrong = url.replace("guest:guest", "guest:topsecret")

    for command in ("amqpjobs check shop", "amqpjobs run shop", "amqpjobs topology apply shop"):
        code, text = shop.run(command, AMQPJOBS_URL=wrong)
        assert code == 4, text
        assert "refused us" in text
        assert "topsecret" not in text


def test_with_no_broker_at_the_default_address_it_says_how_to_get_one(shop: Shop) -> None:
    del shop.environment["AMQPJOBS_URL"]
    # In a network of its own nothing listens on 5672, whatever this machine runs.
    alone = "unshare --net --map-root-user"

    for command in ("amqpjobs run shop", f"amqpjobs send shop {shop.name}.order number=1 --deadline 1"):
        code, text = shop.run(f"{alone} {command}")
        assert code == 4, text
        assert "apt-get install rabbitmq-server" in text
        assert "amqpjobs dev TARGET" in text
        assert "AMQPJOBS_URL=amqp://user:password@host:5672/vhost" in text


def test_a_wrong_setting_is_named(shop: Shop) -> None:
    code, text = shop.run("amqpjobs run shop", AMQPJOBS_CONCURRENCY="many")

    assert code == 2
    assert "AMQPJOBS_CONCURRENCY" in text


def test_every_command_explains_itself_with_an_example(shop: Shop) -> None:
    commands = [*COMMANDS, "topology apply"]

    for command in commands:
        code, text = shop.run(f"amqpjobs {command} --help")
        assert code == 0
        is_group = command in ("topology", "contracts", "dead", "schedule")
        words = {"broker": "--port 0", "status": "--health"}.get(command, "s")
        assert is_group or f"amqpjobs {command} {words}" in text, text
    listed = shop.run("amqpjobs --help")[1]
    for command in COMMANDS:
        assert command in listed
