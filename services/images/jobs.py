"""The contract of the image service: what others enqueue, and what they get back."""

from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints

from amqpjobs import Job

#: A path below the service's folder, as it could stand in a URL: `holidays/beach.jpg`. No word of
#: it begins with a dot, so none is `..`. That links stay inside, too, only the service can tell.
Reference = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_~-][A-Za-z0-9._~-]*(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*$", max_length=500),
]


class Thumbnail(BaseModel):
    """A small JPEG, below the service's folder for thumbnails."""

    path: str
    width: int
    height: int
    #: In bytes.
    size: int


class MakeThumbnail(Job[Thumbnail], kind="images.thumbnail", max_attempts=3, timeout=30):
    """Make a thumbnail that fits a square of so many pixels."""

    image: Reference
    size: int = Field(default=256, ge=16, le=2048)
