"""Whatever keeps a worker or a beat from its work, its endpoint says so, and says when it is over.

Real processes, asked over HTTP while brokers stop, consumers are cancelled, queues vanish, jobs cling and loops stand.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import MakeNode
from tests.support.apps import NAMESPACE
from tests.support.broker import PATIENCE, Broker, eventually, plain_client
from tests.support.faults import FaultyProxy, Way
from tests.support.probe import Probe
from tests.support.service import Service, lines_of, until
from tests.support.terminal import Shell, Terminal

TOKEN = "a-token-of-the-tests"
TICKING = """
from amqpjobs import App, Job, every

class Tick(Job[None], kind="{name}.tick"):
    pass

app = App("{name}")
app.schedule(every(86_400), job=Tick())
"""


@pytest.fixture
def probe() -> Probe:
    return Probe()


def run(service: Service, probe: Probe, options: str = "", **environment: str) -> Terminal:
    return service.type(f"amqpjobs run shop {options}", AMQPJOBS_HEALTH=probe.address, **environment)


async def typed(service: Service, probe: Probe, command: str, **environment: str) -> tuple[int, str]:
    """Exit code and output of a command that asks the same address."""
    with service.type(command, AMQPJOBS_HEALTH=probe.address, **environment) as terminal:
        return await asyncio.to_thread(terminal.end), terminal.text


async def test_a_worker_is_not_ready_while_its_broker_is_away(
    make_node: MakeNode, unique: Callable[[], str], tmp_path: Path, probe: Probe
) -> None:
    node = await asyncio.to_thread(make_node)
    async with plain_client(node.url) as broker:
        with run(Service(unique(), tmp_path, node.url, broker), probe) as worker:
            await probe.until_ready()

            await asyncio.to_thread(node.stop)
            said = await probe.until("/readyz", 503, "not connected to amqp://guest:***@", "reconnecting since")
            await probe.until_live()
            await asyncio.to_thread(node.start)

            await probe.until_ready()
            worker.signal(signal.SIGTERM)
            assert worker.end() == 0, worker.text
    assert "guest:guest" not in said


async def test_a_worker_is_not_ready_before_it_has_a_broker(service: Service, probe: Probe) -> None:
    async with FaultyProxy(service.environment["AMQPJOBS_URL"]).running() as proxy:
        await proxy.refuse()
        with run(service, probe, AMQPJOBS_URL=proxy.url):
            await probe.until("/readyz", 503, "starting\n", "not connected to", "Connection refused")
            await probe.until_live()

            await proxy.accept()

            await probe.until_ready()


async def test_a_worker_is_not_ready_while_a_cancelled_consumer_is_not_back(service: Service, probe: Probe) -> None:
    async with FaultyProxy(service.environment["AMQPJOBS_URL"]).running() as proxy:
        with run(service, probe, AMQPJOBS_URL=proxy.url):
            await probe.until_ready()

            await proxy.refuse()
            assert proxy.forge_cancel() == 1
            await probe.until("/readyz", 503, "not connected")
            await probe.until_live()
            await proxy.accept()

            await probe.until_ready()
            await until(lambda: proxy.consumers == 1)  # those of a connection that ends count until it has ended


async def test_a_worker_whose_queue_is_deleted_is_ready_again_when_it_has_made_it_anew(
    service: Service, probe: Probe
) -> None:
    async with FaultyProxy(service.environment["AMQPJOBS_URL"]).running() as proxy:
        with run(service, probe, AMQPJOBS_URL=proxy.url):
            await probe.until_ready()

            await proxy.refuse()
            await service.broker.delete_queue(service.queue)
            await probe.until("/readyz", 503, "not connected")
            await proxy.accept()

            await probe.until_ready()
            await service.until_consumed_by(1)


async def test_a_worker_is_not_ready_while_jobs_cling_to_all_of_its_slots(service: Service, probe: Probe) -> None:
    with run(service, probe, "-c 2", AMQPJOBS_TIMEOUT="1"):
        await probe.until_ready()
        await service.send(0, 1, do="cling")
        await service.until_noted("start", 0, 1)

        said = await probe.until("/readyz", 503, "all 2 slots of", "are stuck", "outlived")
        await probe.until_live()
        service.let_go()

        await probe.until_ready()
    assert service.queue.rpartition(".")[2] + ".task" in said


async def test_a_process_whose_event_loop_stands_still_is_not_live_and_not_ready(
    service: Service, probe: Probe
) -> None:
    with run(service, probe):
        await probe.until_ready()
        await service.send(0, do="hold")
        await service.until_noted("start", 0)

        await probe.until("/readyz", 503, "the event loop has not turned for")
        await probe.until("/livez", 503, "stalled\nthe event loop has not turned for")
        asked = await typed(service, probe, "amqpjobs status --live")
        service.let_go()

        await probe.until("/livez", 200)
        await probe.until_ready()
    assert asked[0] == 1
    assert "the event loop has not turned for" in asked[1]


async def test_a_draining_worker_is_live_and_not_ready_until_it_ends(service: Service, probe: Probe) -> None:
    with run(service, probe) as worker:
        await probe.until_ready()
        await service.send(0, do="wait")
        await service.until_noted("start", 0)

        worker.signal(signal.SIGTERM)
        await probe.until("/readyz", 503, "not ready\ndraining\n")
        await until(lambda: bool(lines_of(worker, "stopping")))
        await probe.until_live()
        asked = await typed(service, probe, "amqpjobs status")
        service.let_go()

        assert worker.end() == 0, worker.text
    assert asked == (1, "not ready\ndraining\n")
    assert (await typed(service, probe, "amqpjobs status"))[0] == 7


async def test_a_supervisor_tells_of_all_its_processes(service: Service, probe: Probe) -> None:
    with run(service, probe, "--processes 2 -c 1") as supervisor:
        await probe.until_ready()

        async def is_missed() -> bool:
            """Killed again each time, lest its successor is ready before anybody has asked."""
            [*_, first] = [each["pid"] for each in lines_of(supervisor, "process started") if each["worker"] == 1]
            with suppress(ProcessLookupError):
                os.kill(first, signal.SIGKILL)
            response = await probe.get("/readyz")
            return response.status_code == 503 and "process 1: " in response.text

        await until(lambda: bool(lines_of(supervisor, "process started")))
        await eventually(is_missed)
        await probe.until_live()
        await probe.until_ready()
        await service.send(0, do="hold")
        await service.until_noted("start", 0)
        await probe.until("/livez", 503, "stalled\nprocess ", "the event loop has not turned for")
        service.let_go()
        await probe.until_ready()
        await probe.until("/metrics", 200, 'worker="')
        supervisor.signal(signal.SIGTERM)

        assert supervisor.end() == 0, supervisor.text


async def test_a_reloaded_supervisor_is_ready(service: Service, probe: Probe) -> None:
    with run(service, probe, "--processes 2") as supervisor:
        await probe.until_ready()

        supervisor.signal(signal.SIGHUP)
        await until(lambda: bool(lines_of(supervisor, "all processes are replaced")), within=4 * PATIENCE)
        await probe.until_ready()
        supervisor.signal(signal.SIGTERM)

        assert supervisor.end() == 0, supervisor.text


async def test_what_a_worker_ran_is_in_its_metrics(service: Service, probe: Probe) -> None:
    with run(service, probe):
        await probe.until_ready()

        await service.send(0)
        await service.until_noted("end", 0)

        await probe.until("/metrics", 200, "amqpjobs_job_outcomes", 'amqpjobs_job_outcome="completed"')


async def test_beats_that_lead_or_wait_are_ready_and_one_that_is_cut_off_is_not(
    url: str, unique: Callable[[], str], tmp_path: Path, broker: Broker
) -> None:
    name, probes = unique(), [Probe(), Probe()]
    (tmp_path / "ticking.py").write_text(TICKING.replace("{name}", name))
    shell = Shell(tmp_path, AMQPJOBS_URL=url, AMQPJOBS_NAMESPACE=NAMESPACE, AMQPJOBS_LOG_FORMAT="json")
    async with FaultyProxy(url).running() as proxy:
        with shell.type(f"amqpjobs beat ticking --health {probes[0].address}", AMQPJOBS_URL=proxy.url) as leader:
            await until(lambda: bool(lines_of(leader, "the beat leads")), within=2 * PATIENCE)
            with shell.type("amqpjobs beat ticking", AMQPJOBS_HEALTH=probes[1].address) as other:
                for probe in probes:
                    await probe.until_ready()
                if lines_of(other, "the beat leads"):  # whoever stands still for some seconds is followed
                    await until(lambda: bool(lines_of(leader, "the beat leads no longer")))

                for way in Way:
                    proxy.stall(way)
                await probes[0].until("/readyz", 503, "not connected")
                await probes[0].until_live()
                await until(lambda: bool(lines_of(other, "the beat leads")), within=2 * PATIENCE)
                await probes[1].until_ready()
                proxy.resume()

                for probe in probes:
                    await probe.until_ready()
                other.signal(signal.SIGTERM)
                assert await asyncio.to_thread(other.end) == 0, other.text
            leader.signal(signal.SIGTERM)
            assert await asyncio.to_thread(leader.end) == 0, leader.text
    for queue in ("lease", "register", "control", "runs"):
        await broker.delete_queue(f"{NAMESPACE}.beat.{queue}.v1.{name}")


async def test_with_a_token_all_may_ask_and_reasons_are_for_those_who_know_it(service: Service, probe: Probe) -> None:
    _, _, port = probe.address.rpartition(":")
    knowing = Probe(TOKEN)
    knowing.address = probe.address
    environment = {"AMQPJOBS_HEALTH_TOKEN": TOKEN}
    with run(service, probe, f"--health 0.0.0.0:{port}", **environment) as worker:
        await knowing.until_ready()
        await service.send(0, do="wait")
        await service.until_noted("start", 0)
        worker.signal(signal.SIGTERM)
        await knowing.until("/readyz", 503, "draining")

        stranger = await probe.get("/readyz")
        refused = await probe.get("/metrics")
        shown = await typed(service, probe, f"amqpjobs status --health 0.0.0.0:{port}", **environment)
        bare = await typed(service, probe, "amqpjobs status --json")
        service.let_go()

        assert worker.end() == 0, worker.text
    assert (stranger.status_code, stranger.text) == (503, "not ready\n")
    assert refused.status_code == 401
    assert shown == (1, "not ready\ndraining\n")
    assert bare == (1, '{"status": "not ready", "reasons": []}\n')
    assert TOKEN not in worker.text


@pytest.mark.parametrize("command", ["amqpjobs run shop", "amqpjobs run shop --processes 2"])
async def test_a_port_that_is_taken_is_told_before_anything_is_done(
    command: str, service: Service, probe: Probe
) -> None:
    with run(service, probe):
        await probe.until_ready()

        code, text = await typed(service, probe, command)

    assert code == 2
    assert f"nobody can listen at {probe.address} (Address already in use)" in text
    assert "connected" not in text


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "example.org:80"])
async def test_an_address_beyond_this_machine_needs_a_token(address: str, service: Service, probe: Probe) -> None:
    code, text = await typed(service, probe, f"amqpjobs run shop --health {address}")

    assert code == 2
    assert "needs AMQPJOBS_HEALTH_TOKEN" in text


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("amqpjobs status", 7, "Nobody tells of health at 127.0.0.1:"),
        ("amqpjobs status --health nowhere", 2, "should look like 127.0.0.1:8080"),
        ("env -u AMQPJOBS_HEALTH amqpjobs status", 2, "Say where to ask"),
    ],
)
async def test_status_says_why_it_cannot_ask(
    command: str, code: int, words: str, service: Service, probe: Probe
) -> None:
    ended, text = await typed(service, probe, command)

    assert ended == code
    assert words in text
