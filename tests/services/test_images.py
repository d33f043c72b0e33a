"""The image service with real parts: RabbitMQ, files, and its own processes."""

import asyncio
import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import AsyncGenerator
from pathlib import Path

import aio_pika
import pytest
from PIL import Image
from pydantic import ValidationError

from services.images.jobs import MakeThumbnail
from services.images.thumbnail import BadImageError, inside, make_thumbnail
from tests.support.broker import PATIENCE, Broker, plain_client
from tests.support.terminal import Terminal

ROOT = Path(__file__).parents[2]
QUEUE, DEAD_QUEUE = "amqpjobs.queue.images", "amqpjobs.dead.images"
PIXELS = 1_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


@pytest.fixture
async def broker(url: str) -> AsyncGenerator[Broker]:
    async with plain_client(url) as client:
        yield client
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for queue in (QUEUE, DEAD_QUEUE):
            await channel.queue_delete(queue)


def picture(file: Path, size: tuple[int, int] = (800, 600)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "teal").save(file)
    return file


def bomb(file: Path) -> Path:
    """A PNG of some hundred bytes that claims 60,000 × 60,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack("!I", len(content)) + name + content + struct.pack("!I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack("!IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
    return file


# The contract


@pytest.mark.parametrize("reference", ["beach.jpg", "holidays/2026/beach-1_a~.jpeg", "a.b/c"])
def test_a_path_below_the_folder_is_a_reference(reference: str) -> None:
    assert MakeThumbnail(image=reference).image == reference


@pytest.mark.parametrize(
    "reference",
    ["", "/etc/passwd", "../x.jpg", "a/../../x", "a//b", ".hidden", "a/./b", "a\\b", "a b", "a%2e", "C:x", "x\n", "a/"],
)
def test_anything_else_is_refused_when_it_is_enqueued(reference: str) -> None:
    with pytest.raises(ValidationError):
        MakeThumbnail(image=reference)


# The work


def test_a_thumbnail_fits_its_square_and_keeps_its_shape(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "beach.jpg"

    size = make_thumbnail(picture(folder / "beach.png"), target, size=200, max_pixels=PIXELS)

    assert size == (200, 150)
    with Image.open(target) as made:
        assert (made.format, made.size) == ("JPEG", (200, 150))
    assert [file.name for file in target.parent.iterdir()] == ["beach.jpg"]


def test_an_image_that_lies_on_its_side_is_set_upright(folder: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (400, 200), "teal").save(folder / "turned.jpg", exif=exif)

    size = make_thumbnail(folder / "turned.jpg", tmp_path / "out.jpg", size=100, max_pixels=PIXELS)

    assert size == (50, 100)


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match="3600000000 pixels"):
        make_thumbnail(bomb(folder / "bomb.png"), tmp_path / "out.jpg", size=100, max_pixels=PIXELS)


def test_an_image_just_over_the_limit_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match="limit of 479999 pixels"):
        make_thumbnail(picture(folder / "beach.png"), tmp_path / "out.jpg", size=100, max_pixels=479_999)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_refused(folder: Path, tmp_path: Path, content: bytes) -> None:
    file = folder / "odd.png"
    file.write_bytes(content)

    with pytest.raises(BadImageError):
        make_thumbnail(file, tmp_path / "out.jpg", size=100, max_pixels=PIXELS)


def test_an_image_that_is_cut_off_is_refused(folder: Path, tmp_path: Path) -> None:
    whole = picture(folder / "whole.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(BadImageError):
        make_thumbnail(folder / "half.jpg", tmp_path / "out.jpg", size=100, max_pixels=PIXELS)


def test_an_image_that_is_not_there_may_come_yet(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        make_thumbnail(folder / "later.png", tmp_path / "out.jpg", size=100, max_pixels=PIXELS)


def test_a_link_out_of_the_folder_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "out.png").symlink_to(picture(tmp_path / "secret.png"))
    (folder / "in.png").symlink_to(picture(folder / "open.png"))

    with pytest.raises(BadImageError, match="not inside"):
        inside(folder, "out.png")
    assert inside(folder, "in.png") == folder / "open.png"


# The service


async def test_the_service_makes_thumbnails_in_processes_and_buries_bombs(
    url: str, tmp_path: Path, folder: Path, broker: Broker
) -> None:
    picture(folder / "holidays" / "beach.png")
    bomb(folder / "bomb.png")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("AMQPJOBS_", "IMAGES_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    environment = clean | {"PATH": path, "AMQPJOBS_URL": url, "IMAGES_FOLDER": str(folder)}
    environment |= {"IMAGES_THUMBNAILS": str(tmp_path / "thumbnails"), "AMQPJOBS_LOG_FORMAT": "json"}
    environment |= {"AMQPJOBS_ENQUEUE_TIMEOUT": str(PATIENCE)}

    def send(image: str) -> None:
        command = ["amqpjobs", "send", "services.images", "images.thumbnail", f"image={image}", "size=200"]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)

    with Terminal("amqpjobs run services.images", ROOT, environment) as worker:
        assert await asyncio.to_thread(worker.shows, '"working"'), worker.text
        await asyncio.to_thread(send, "holidays/beach.png")
        await asyncio.to_thread(send, "bomb.png")
        [letter] = await broker.take(DEAD_QUEUE, 1, within=2 * PATIENCE)  # a process starts for it
        assert await asyncio.to_thread(worker.shows, '"completed"'), worker.text
        worker.signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.end) == 0

    with Image.open(tmp_path / "thumbnails" / "holidays" / "beach.png.200.jpg") as made:
        assert made.size == (200, 150)
    assert json.loads(letter.body)["image"] == "bomb.png"
    assert letter.text("amqpjobs-dead-reason") == "not_retryable"
    assert letter.text("amqpjobs-dead-error").startswith("BadImageError: bomb.png is refused")


def test_check_shows_that_it_runs_in_a_process() -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    ran = subprocess.run(
        ["amqpjobs", "check", "services.images", "--no-broker", "--json"],
        cwd=ROOT,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )

    assert json.loads(ran.stdout)[0]["handlers"][0]["runs_in"] == "process"
