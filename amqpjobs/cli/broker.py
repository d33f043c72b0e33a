"""`amqpjobs broker`: the embedded broker alone."""

import asyncio
import ipaddress
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import click
from rich.text import Text

from amqpjobs.cli.command import Command
from amqpjobs.cli.common import run_async
from amqpjobs.cli.console import out
from amqpjobs.codec import dumps
from amqpjobs.devbroker import Broker
from amqpjobs.logs import set_up_logging
from amqpjobs.settings import host_name, load_settings, masked

PROFILES = ("3.10", "4.0", "4.3")
#: What most people will meet.
PROFILE = "4.3"
HOST, PORT = "127.0.0.1", 5672
_GUEST = "guest"


@dataclass(frozen=True, kw_only=True, slots=True)
class Listening:
    """Where a broker listens, and for whom."""

    profile: str
    host: str
    port: int
    user: str
    password: str


def _host(ctx: click.Context, param: click.Parameter, value: str) -> str:
    # The name may mean two addresses, and a free port of one need not be free on the other.
    return HOST if value == "localhost" else value


@click.command("broker", cls=Command, short_help="A broker in memory, for development.")
@click.option("--host", default=HOST, show_default=True, callback=_host, help="The address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="The port; 0: any free one."
)
@click.option(
    "--profile",
    type=click.Choice(PROFILES),
    default=PROFILE,
    show_default=True,
    help="The RabbitMQ version to behave like.",
)
@click.option("--user", default=_GUEST, show_default=True, help="Who may connect; there is no other user.")
@click.option("--password", help="That user's; - reads it from standard input. [default: guest, for guest]")
@click.option("--json", "as_json", is_flag=True, help="Print where it listens as JSON, once it does.")
def command(host: str, port: int, profile: str, user: str, password: str | None, as_json: bool) -> None:
    """Run a broker that behaves like RabbitMQ, for development, until SIGTERM or SIGINT (Ctrl-C).

    It keeps everything in memory: what is in it is lost when it ends. Any AMQP 0-9-1 client can use it; there
    is no TLS and no management page. `amqpjobs dev` brings one along by itself; this one is for several
    services and terminals.

    It listens on this machine only. Another address needs a --user and --password of your own.

    \b
      amqpjobs broker
      amqpjobs broker --port 0 --profile 3.10
      amqpjobs broker --host 0.0.0.0 --user dev --password - < password.txt
    """
    listening = Listening(profile=profile, host=host, port=port, user=user, password=_password(user, password))
    _check(listening)
    set_up_logging(load_settings())
    run_async(_serve(listening, as_json=as_json))


@asynccontextmanager
async def embedded(listening: Listening) -> AsyncGenerator[Broker]:
    """The broker, as long as the block lasts. Raises OSError when it cannot listen there."""
    async with Broker(
        profile=listening.profile,
        host=listening.host,
        port=listening.port,
        user=listening.user,
        password=listening.password,
    ) as broker:
        yield broker


def _password(user: str, given: str | None) -> str:
    if given is None:
        if user != _GUEST:
            raise click.UsageError(f"--user {user} needs a --password.")
        return _GUEST
    password = sys.stdin.readline().rstrip("\n") if given == "-" else given
    if not password:
        raise click.UsageError("The password is empty.")
    return password


def _check(listening: Listening) -> None:
    """Whoever reaches it may run jobs."""
    if _is_loopback(listening.host) or _GUEST not in (listening.user, listening.password):
        return
    raise click.UsageError(
        f"{listening.host} can be reached from other machines, and everybody knows guest's password. "
        "Give a --user and a --password of your own, or listen on 127.0.0.1."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _serve(listening: Listening, *, as_json: bool) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    try:
        async with embedded(listening) as broker:
            _tell(broker, listening, as_json=as_json)
            await stopping.wait()
    except OSError as error:
        why = str(error.strerror or error).rpartition(": ")[2]
        raise click.ClickException(
            f"The broker cannot listen on {listening.host} port {listening.port}: {why}. If "
            "another broker is there, `amqpjobs` finds it by AMQPJOBS_URL; --port 0 takes any free port."
        ) from None


def _tell(broker: Broker, listening: Listening, *, as_json: bool) -> None:
    url = shown_url(broker, listening)
    if as_json:
        out.print(dumps({"url": url, "profile": listening.profile}).decode(), markup=False)
        return
    out.print(
        Text.assemble(
            ("The embedded broker", "bold"),
            f" behaves like RabbitMQ {listening.profile}, at {url}\n",
            ("All in it is in memory only, and lost when it ends (Ctrl-C).", "yellow"),
        )
    )
    out.print(f"\nFor other terminals:\n  export AMQPJOBS_URL={url}", markup=False)


def shown_url(broker: Broker, listening: Listening) -> str:
    """As others may reach it; every password but guest's is masked."""
    url = broker.url if listening.password == _GUEST else masked(broker.url)
    return url.replace("@0.0.0.0:", f"@{host_name()}:").replace("@[::]:", f"@{host_name()}:")
