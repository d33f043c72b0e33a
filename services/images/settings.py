"""What the image service is told by its environment: IMAGES_FOLDER, IMAGES_THUMBNAILS …"""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ImagesSettings(BaseSettings):
    """All settings of the service."""

    model_config = SettingsConfigDict(env_prefix="IMAGES_", env_ignore_empty=True, frozen=True)

    #: Where the images are. Nothing outside of it is read.
    folder: Path = Path("images")
    #: Where thumbnails go; made when the first one is written.
    thumbnails: Path = Path("thumbnails")
    #: Larger images are refused before they are unpacked: a few bytes can claim to be gigabytes.
    max_pixels: int = Field(default=50_000_000, ge=1)
