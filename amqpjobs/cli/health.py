"""What `run` and `beat` share about their health endpoint."""

import click
from pydantic import SecretStr

from amqpjobs.clock import SystemClock
from amqpjobs.health.asking import HERE
from amqpjobs.health.crew import Crew
from amqpjobs.health.endpoint import HealthEndpoint, serving
from amqpjobs.health.pulse import Pulse
from amqpjobs.worker.shift import Shift
from amqpjobs.worker.supervised import Supervised
from amqpjobs.worker.supervisor import Supervisor

health_option = click.option(
    "--health",
    metavar="ADDRESS",
    help="Tell at /livez, /readyz and /metrics how this process is, as at 127.0.0.1:8080; with --processes the "
    "supervisor tells it of all. [AMQPJOBS_HEALTH]",
)


async def run_shift(shift: Shift, address: str | None, token: SecretStr | None, link: Supervised | None = None) -> int:
    """Run it, and tell how it is if there is an address for that; who is supervised tells its supervisor's endpoint."""
    if address is None:
        return await shift.run()
    own = address if link is None else f"{HERE}:0"
    async with HealthEndpoint(shift, address=own, token=_secret(token)) as endpoint:
        if link is not None:
            link.say_port(endpoint.port)
        return await shift.run()


async def run_supervisor(supervisor: Supervisor, address: str | None, token: SecretStr | None) -> int:
    """Run it, and tell how its processes are if there is an address for that."""
    if address is None:
        return await supervisor.run()
    clock, secret = SystemClock(), _secret(token)
    pulse = Pulse(clock, lambda: None)
    crew = Crew(supervisor, pulse, secret, clock)
    async with serving(crew, pulse, address=address, token=secret, clock=clock):
        return await supervisor.run()


def _secret(token: SecretStr | None) -> str | None:
    return None if token is None else token.get_secret_value()
