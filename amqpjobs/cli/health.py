"""What `run` and `beat` share about their health endpoint."""

import click
from pydantic import SecretStr

from amqpjobs.worker.shift import Shift
from amqpjobs.worker.supervised import Supervised

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
    # A server, and metrics: most processes start without.
    from amqpjobs.health.asking import HERE
    from amqpjobs.health.endpoint import HealthEndpoint

    own = address if link is None else f"{HERE}:0"
    async with HealthEndpoint(shift, address=own, token=secret_of(token)) as endpoint:
        if link is not None:
            link.say_port(endpoint.port)
        return await shift.run()


def secret_of(token: SecretStr | None) -> str | None:
    """The token as it is compared."""
    return None if token is None else token.get_secret_value()
