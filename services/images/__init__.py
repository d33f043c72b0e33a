"""A service that makes thumbnails, each in a process of its own.

    amqpjobs run services.images
    amqpjobs send services.images images.thumbnail image=holidays/beach.jpg size=320

Whoever enqueues imports `services.images.jobs` alone, and needs no Pillow.
"""
