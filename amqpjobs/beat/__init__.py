"""When jobs are due, and who enqueues them then."""

from amqpjobs.beat.beat import Beat

__all__ = ["Beat"]
