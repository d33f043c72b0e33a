"""What `amqpjobs run --processes` is: a supervisor of processes that run the same command without it."""

import sys

from pydantic import SecretStr

from amqpjobs.cli.common import IMPORT, TOPOLOGY, UNCLEAN, USAGE, run_async
from amqpjobs.cli.health import secret_of
from amqpjobs.clock import SystemClock
from amqpjobs.events import Events
from amqpjobs.health.crew import Crew
from amqpjobs.health.endpoint import serving
from amqpjobs.health.pulse import Pulse
from amqpjobs.logs import log_events, set_up_logging
from amqpjobs.settings import Settings
from amqpjobs.worker.supervisor import Supervisor, interpreter


def supervise(count: int, settings: Settings, grace: float, health: str | None) -> int:
    """Have processes work that get the same arguments as we; the exit code. No service is imported here."""
    set_up_logging(settings)
    events = Events()
    log_events(events)
    supervisor = Supervisor(
        _command_of,
        count=count,
        clock=SystemClock(),
        events=events,
        grace=grace,
        hopeless=frozenset({USAGE, IMPORT, TOPOLOGY}),
        unclean=UNCLEAN,
    )
    return run_async(run_supervisor(supervisor, health, settings.health_token))


def _command_of(number: int, fd: int) -> list[str]:
    return [*interpreter(), "run", "--supervised", str(fd), str(number), *sys.argv[2:]]


async def run_supervisor(supervisor: Supervisor, address: str | None, token: SecretStr | None) -> int:
    """Run it, and tell how its processes are if there is an address for that."""
    if address is None:
        return await supervisor.run()
    clock, secret = SystemClock(), secret_of(token)
    pulse = Pulse(clock, lambda: None)
    crew = Crew(supervisor, pulse, secret, clock)
    async with serving(crew, pulse, address=address, token=secret, clock=clock):
        return await supervisor.run()
