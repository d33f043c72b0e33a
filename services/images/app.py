"""The image service: it makes thumbnails, in as many processes as there are CPUs.

A process of its own, because decoding is work for a whole CPU, and because a decoder that
hangs or crashes on a hostile file then costs that one job one attempt.
"""

from amqpjobs import App, exponential
from services.images.jobs import MakeThumbnail, Thumbnail
from services.images.settings import ImagesSettings
from services.images.thumbnail import BadImageError, inside, make_thumbnail

settings = ImagesSettings()

app = App("images", retry=exponential(2).on(BadImageError, None))


@app.handler(MakeThumbnail, run_in="process")
def thumbnail(job: MakeThumbnail) -> Thumbnail:
    source = inside(settings.folder, job.image)
    path = f"{job.image}.{job.size}.jpg"
    target = inside(settings.thumbnails, path)
    width, height = make_thumbnail(source, target, size=job.size, max_pixels=settings.max_pixels)
    return Thumbnail(path=path, width=width, height=height, size=target.stat().st_size)
