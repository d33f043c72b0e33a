"""What works jobs off: slots, execution, settling."""

from amqpjobs.worker.worker import Worker

__all__ = ["Worker"]
