"""Make a small image of a large one. What cannot succeed later either is a BadImageError."""

import os
import warnings
from pathlib import Path

from PIL import Image, ImageOps

#: The readers that are tried; Pillow has many more, and each one is a parser that strangers can feed.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF")


class BadImageError(Exception):
    """No image, too large a one, or one outside of the folder."""


def inside(folder: Path, reference: str) -> Path:
    """The file a reference means. Raises BadImageError when it, or what it links to, lies elsewhere."""
    file = (folder / reference).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise BadImageError(f"{reference} is not inside the folder of images.")
    return file


def make_thumbnail(source: Path, target: Path, *, size: int, max_pixels: int) -> tuple[int, int]:
    """Write a JPEG to `target`; its width and height. A second run writes the same file again."""
    small = _shrunk(source, size, max_pixels)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Readers see the old file or the new one, and never half of it.
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    small.save(part, "JPEG", quality=85)
    part.replace(target)
    return small.size


def _shrunk(source: Path, size: int, max_pixels: int) -> Image.Image:
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            # Else an image of up to twice the limit is only warned of. Its header tells; nothing is unpacked.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as image:
                image.thumbnail((size, size))
                return ImageOps.exif_transpose(image).convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise BadImageError(f"{source.name} is refused: {error}") from error
    except OSError as error:
        if error.errno is not None:  # the disk's trouble, or a file that may come yet
            raise
        raise BadImageError(f"{source.name} cannot be read as an image: {error}") from error
