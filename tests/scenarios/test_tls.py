"""amqps:// is verified: with the right CA it works, without it is refused."""

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amqpjobs import BrokerUnavailableError, EnqueueTimeoutError, Worker
from amqpjobs.amqp.connection import open_session
from tests.conftest import MakeNode
from tests.support.apps import NAMESPACE, Bench, record
from tests.support.broker import PATIENCE, Broker, eventually
from tests.support.rabbitmq import free_ports


@pytest.fixture
def folder() -> Iterator[Path]:
    """In /tmp itself, which a broker in a chroot sees, too."""
    made = Path(tempfile.mkdtemp(prefix="amqpjobs-tls-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


async def test_a_broker_with_a_ca_of_its_own_needs_that_ca(
    make_node: MakeNode, folder: Path, unique: Callable[[], str]
) -> None:
    await asyncio.to_thread(make_certificates, folder)
    (port,) = free_ports(1)
    conf = "\n".join(
        [
            f"listeners.ssl.1 = 127.0.0.1:{port}",
            f"ssl_options.cacertfile = {folder}/ca.pem",
            f"ssl_options.certfile = {folder}/server.pem",
            f"ssl_options.keyfile = {folder}/server.key",
        ]
    )
    await asyncio.to_thread(make_node, conf=conf)
    bench = Bench(f"amqps://guest:guest@127.0.0.1:{port}/", unique, Broker.__new__(Broker))
    app, kind = bench.app(settings=bench.settings(tls_cafile=folder / "ca.pem")), bench.kind()
    trusting_nobody = bench.app()
    ran = record(app, kind)

    async def is_told() -> bool:
        with pytest.raises(EnqueueTimeoutError) as caught:  # of an attempt to connect that was over by then
            await trusting_nobody.enqueue(kind(n=2), deadline=2)
        return "certificate verify failed" in str(caught.value).lower()

    async with Worker(app):
        handle = await app.enqueue(kind(n=1))
        await ran.until(1)
        await eventually(is_told)
        with pytest.raises(BrokerUnavailableError, match=r"(?i)certificate verify failed"):
            await open_session(bench.url, bench.settings(connect_timeout=PATIENCE), "test")
    await trusting_nobody.close()

    assert [run.envelope.job_id for run in ran] == [handle.job_id]
    assert app.settings.namespace == NAMESPACE


def make_certificates(folder: Path) -> None:
    """A CA, and a server certificate of it for 127.0.0.1."""
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-ca -keyout ca.key -out ca.pem",
        "req -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    (folder / "server.key").chmod(0o644)
