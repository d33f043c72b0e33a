"""A probe starts `amqpjobs status` every few seconds: it loads neither the client library nor much of ours."""

import subprocess
import sys

SCRIPT = """
import sys
import amqpjobs.cli, amqpjobs.cli.status
heavy = {"aio_pika", "aiormq", "orjson", "opentelemetry", "rich.console", "amqpjobs.app", "amqpjobs.cli.common"}
print(*heavy & set(sys.modules))
"""


def test_asking_for_the_status_loads_nothing_heavy() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)

    assert ran.stdout.split() == []
