"""Takes `docs/email-trace.png`: the trace of a mail that fails twice, on the page of a real back end.

The back end is Arize Phoenix, which takes OTLP and comes with its page from the package index. A mail is posted to
`services.api` and sent by `services.email`, both under `opentelemetry-instrument`, with an embedded broker and a
mail server that is busy. From the project's folder, in an environment of its own, since Phoenix is large:

    python3 -m venv /tmp/pictures
    /tmp/pictures/bin/pip install --editable '.[demo,fastapi,otel]' arize-phoenix playwright
    /tmp/pictures/bin/playwright install --with-deps chromium       (or have a program `chromium` on the PATH)
    /tmp/pictures/bin/python -m docs.screenshots.email_trace
"""

import asyncio
import os
import shutil
import socket
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from playwright.async_api import Page, async_playwright

from amqpjobs.devbroker import Broker
from services.email.demo import BUSY, World, listening, say

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs/email-trace.png"
ANN = "ann@example.com"
PROJECT = "mails"
#: Seconds for anything that is waited for; Phoenix takes a while to start.
PATIENCE = 120.0
#: The trace's drawer is three quarters of the window. In it the tree of spans is so wide that their names are whole.
WINDOW = {"width": 1640, "height": 1070}
TREE = 560
#: The bars beside the spans would tell only of the time that the request took.
BARS = "Hide metrics in trace tree"


async def main() -> None:
    world = World()
    world.refuse(ANN, repeat(BUSY, 2))
    async with Broker(profile="4.3") as broker, listening(world) as smtp, phoenix() as back_end:
        service = exporting_to(back_end) | {
            "AMQPJOBS_URL": broker.url,
            "EMAIL_SMTP_URL": f"smtp://127.0.0.1:{smtp}",
            "EMAIL_SENDER": "jobs@example.com",
            "EMAIL_RETRY_DELAY": "1",
        }
        port = str(free_port())
        work, web = ("amqpjobs", "run", "services.email"), ("uvicorn", "services.api.app:api", "--port", port)
        async with instrumented("email", work, service), instrumented("api", web, service):
            await post(f"http://127.0.0.1:{port}/mails", {"to": ANN, "subject": "Hello Ann", "body": "How are you?"})
            trace = await eventually(lambda: whole_trace(back_end))
        await take(f"{back_end}/redirects/traces/{trace['trace_id']}")
    for span in trace["spans"]:
        say(f"{span['name']:50} {span['status_code']}")
    say(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size // 1024} kB")


async def whole_trace(back_end: str) -> Any:
    """As the back end's own API tells it, as soon as the third attempt is there."""
    traces = await got(f"{back_end}/v1/projects/{PROJECT}/traces?include_spans=true")
    for trace in traces["data"] if traces else ():
        if sum(span["name"].startswith("process ") for span in trace["spans"]) == 3:
            return trace
    return None


async def take(address: str) -> None:
    """The page of the trace, the second attempt chosen."""
    async with async_playwright() as playwright:
        # Debian's, where there is one; else playwright's. Containers let nobody but root make sandboxes.
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = await browser.new_page(viewport=WINDOW)
        await page.goto(address)
        attempts = page.locator("#trace-tree").get_by_text("process amqpjobs:email.send")
        await attempts.nth(2).wait_for(timeout=PATIENCE * 1000)
        await widen(page)
        await page.get_by_role("button", name=BARS).click()
        await attempts.nth(1).click()
        await page.get_by_text("amqpjobs.job.attempt").first.wait_for()
        await page.mouse.move(0, 0)
        await page.locator(".drawer").screenshot(path=PICTURE)
        await browser.close()


async def widen(page: Page) -> None:
    """Drag the edge of the tree of spans."""
    drawer = await page.locator(".drawer").bounding_box()
    edge = await page.locator("[aria-controls=trace-tree]").bounding_box()
    assert drawer is not None
    assert edge is not None
    middle = edge["y"] + edge["height"] / 2
    await page.mouse.move(edge["x"] + edge["width"] / 2, middle)
    await page.mouse.down()
    await page.mouse.move(drawer["x"] + TREE, middle, steps=8)
    await page.mouse.up()


def exporting_to(back_end: str) -> dict[str, str]:
    """As docs/traces.md says; Phoenix takes traces only."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": back_end,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_RESOURCE_ATTRIBUTES": f"openinference.project.name={PROJECT}",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }


@asynccontextmanager
async def phoenix() -> AsyncGenerator[str]:
    """Its address, as long as the block lasts; what it keeps goes with it."""
    port, grpc = free_port(), free_port()
    with TemporaryDirectory() as folder:
        environment = {
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": str(port),
            "PHOENIX_GRPC_PORT": str(grpc),
            "PHOENIX_WORKING_DIR": folder,
            "PHOENIX_TELEMETRY_ENABLED": "false",
        }
        async with running(("phoenix", "serve"), environment):
            address = f"http://127.0.0.1:{port}"
            await eventually(lambda: got(f"{address}/openapi.json"))
            yield address


@asynccontextmanager
async def instrumented(service: str, command: tuple[str, ...], environment: dict[str, str]) -> AsyncGenerator[None]:
    async with running(("opentelemetry-instrument", *command), environment | {"OTEL_SERVICE_NAME": service}):
        yield


@asynccontextmanager
async def running(command: tuple[str, ...], environment: dict[str, str]) -> AsyncGenerator[None]:
    """A program that lies beside this Python, until the block ends."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        "env", *command, cwd=ROOT, env=os.environ | environment | {"PATH": path}, stdout=DEVNULL, stderr=DEVNULL
    )
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(PATIENCE):
            await process.wait()


async def post(address: str, mail: dict[str, str]) -> None:
    """Until the service is up, and has a queue for it."""
    async with httpx.AsyncClient() as http:

        async def is_taken() -> bool:
            try:
                return (await http.post(address, json=mail)).status_code == 202
            except httpx.TransportError:
                return False

        await eventually(is_taken)


async def got(address: str) -> Any:
    """The JSON there; None as long as nobody answers well."""
    async with httpx.AsyncClient() as http:
        try:
            answer = await http.get(address)
        except httpx.TransportError:
            return None
        return answer.json() if answer.is_success else None


async def eventually(ask: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(PATIENCE):
        while True:
            if answer := await ask():
                return answer
            await asyncio.sleep(0.2)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


if __name__ == "__main__":
    asyncio.run(main())
