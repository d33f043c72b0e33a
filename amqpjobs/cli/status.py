"""`amqpjobs status`: what a process says of its health, as an exit code.

For probes, which start it every few seconds: nothing of the service is imported, and little of ours.
"""

import asyncio

import click

from amqpjobs.cli.command import Command
from amqpjobs.clock import SystemClock
from amqpjobs.health.asking import Answer, ask, reachable
from amqpjobs.settings import Settings, load_settings, place_of

NOT_READY, NOBODY = 1, 7
#: Seconds for an answer.
WITHIN = 5.0


@click.command("status", cls=Command, short_help="Whether a worker or beat process is ready.")
@click.option("--health", metavar="ADDRESS", help="Where it tells its health, as 127.0.0.1:8080. [AMQPJOBS_HEALTH]")
@click.option("--live", is_flag=True, help="Only whether its event loop turns: if not, it must be restarted.")
@click.option("--json", "as_json", is_flag=True, help="For a machine to read.")
def command(health: str | None, live: bool, as_json: bool) -> int:
    """Whether a worker or beat process is ready, and if not, why: asked at its health endpoint.

    Exit code 0 when it is, 1 when it is not, 7 when nobody answers there. No service is imported.

    \b
      AMQPJOBS_HEALTH=127.0.0.1:8080 amqpjobs run services.email
      amqpjobs status --health 127.0.0.1:8080
      amqpjobs status --live                         for a liveness probe, with AMQPJOBS_HEALTH set
    """
    settings = load_settings()
    address = health or settings.health
    if address is None:
        raise click.UsageError("Say where to ask: --health 127.0.0.1:8080, or AMQPJOBS_HEALTH as the process has it.")
    try:
        place = place_of(address)
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="--health") from None
    try:
        answer = asyncio.run(_asked(place, settings, live=live, as_json=as_json))
    except TimeoutError:
        return _nobody(address, f"nothing came within {WITHIN:g} s")
    except (OSError, ValueError) as error:
        return _nobody(address, str(error))
    click.echo(_printable(answer.body.decode(errors="replace")), nl=False)
    return 0 if answer.status == 200 else NOT_READY


async def _asked(place: tuple[str, int], settings: Settings, *, live: bool, as_json: bool) -> Answer:
    host, port = place
    token = settings.health_token
    return await ask(
        reachable(host),
        port,
        "/livez" if live else "/readyz",
        token=None if token is None else token.get_secret_value(),
        within=WITHIN,
        clock=SystemClock(),
        accept="application/json" if as_json else "text/plain",
    )


def _nobody(address: str, why: str) -> int:
    click.echo(f"Nobody tells of health at {address}: {why}.", err=True)
    return NOBODY


def _printable(text: str) -> str:
    """Without terminal escapes: some of it comes from brokers."""
    return "".join(each if each.isprintable() or each == "\n" else "?" for each in text)
