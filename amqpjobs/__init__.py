"""Typed jobs on RabbitMQ, and nothing beside it.

Names are loaded when they are first used, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amqpjobs.app import App
    from amqpjobs.batch import Batch
    from amqpjobs.beat.beat import Beat
    from amqpjobs.beat.cron import cron
    from amqpjobs.beat.every import at, every
    from amqpjobs.beat.refined import any_of
    from amqpjobs.beat.schedule import Schedule
    from amqpjobs.beat.schedules import ScheduleChange, Schedules
    from amqpjobs.beat.status import ScheduleOverview, ScheduleStatus
    from amqpjobs.blocking import BlockingClient
    from amqpjobs.blocking_buffer import BlockingBuffer
    from amqpjobs.buffer import Buffer
    from amqpjobs.context import BatchContext, JobContext, current_context
    from amqpjobs.errors import (
        AccessRefusedError,
        AmqpJobsError,
        BrokerError,
        BrokerUnavailableError,
        BufferFullError,
        DecodeError,
        DefinitionError,
        DuplicateKindError,
        EnqueueError,
        EnqueueManyError,
        EnqueueTimeoutError,
        ExpositionError,
        FlushError,
        HandlerMismatchError,
        InvalidArgumentsError,
        JobCancelledError,
        JobFailedError,
        ProcessDiedError,
        RefusedError,
        ResultError,
        ResultTimeoutError,
        ScheduleError,
        SettingsError,
        TooLargeError,
        TopologyMismatchError,
        UnconfirmedError,
        UnknownKindError,
        UnroutableError,
    )
    from amqpjobs.handle import BlockingHandle, BufferedJob, JobHandle
    from amqpjobs.health.endpoint import HealthEndpoint
    from amqpjobs.job import Job, Traceable, upgrade
    from amqpjobs.outcome import Cancel, Retry, Snooze
    from amqpjobs.retry import RetryPolicy, decide, delays, exponential, fibonacci, fixed, linear
    from amqpjobs.settings import Settings
    from amqpjobs.telemetry.log_ids import TraceIds
    from amqpjobs.telemetry.prometheus import Exposition, exposition
    from amqpjobs.topology import Queue
    from amqpjobs.worker import Worker

_HOMES = {
    "app": ["App"],
    "batch": ["Batch"],
    "beat.beat": ["Beat"],
    "beat.cron": ["cron"],
    "beat.every": ["at", "every"],
    "beat.refined": ["any_of"],
    "beat.schedule": ["Schedule"],
    "beat.schedules": ["ScheduleChange", "Schedules"],
    "beat.status": ["ScheduleOverview", "ScheduleStatus"],
    "blocking": ["BlockingClient"],
    "blocking_buffer": ["BlockingBuffer"],
    "buffer": ["Buffer"],
    "context": ["BatchContext", "JobContext", "current_context"],
    "errors": [
        "AccessRefusedError",
        "AmqpJobsError",
        "BrokerError",
        "BrokerUnavailableError",
        "BufferFullError",
        "DecodeError",
        "DefinitionError",
        "DuplicateKindError",
        "EnqueueError",
        "EnqueueManyError",
        "EnqueueTimeoutError",
        "ExpositionError",
        "FlushError",
        "HandlerMismatchError",
        "InvalidArgumentsError",
        "JobCancelledError",
        "JobFailedError",
        "ProcessDiedError",
        "RefusedError",
        "ResultError",
        "ResultTimeoutError",
        "ScheduleError",
        "SettingsError",
        "TooLargeError",
        "TopologyMismatchError",
        "UnconfirmedError",
        "UnknownKindError",
        "UnroutableError",
    ],
    "handle": ["BlockingHandle", "BufferedJob", "JobHandle"],
    "health.endpoint": ["HealthEndpoint"],
    "job": ["Job", "Traceable", "upgrade"],
    "outcome": ["Cancel", "Retry", "Snooze"],
    "retry": ["RetryPolicy", "decide", "delays", "exponential", "fibonacci", "fixed", "linear"],
    "settings": ["Settings"],
    "telemetry.log_ids": ["TraceIds"],
    "telemetry.prometheus": ["Exposition", "exposition"],
    "topology": ["Queue"],
    "worker": ["Worker"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022  (by topic)
    "App",
    "Batch",
    "BatchContext",
    "Beat",
    "BlockingBuffer",
    "BlockingClient",
    "BlockingHandle",
    "Buffer",
    "BufferedJob",
    "Exposition",
    "HealthEndpoint",
    "Job",
    "JobContext",
    "JobHandle",
    "Queue",
    "Settings",
    "TraceIds",
    "Traceable",
    "Worker",
    "current_context",
    "exposition",
    "upgrade",
    "Cancel",
    "Retry",
    "Snooze",
    "RetryPolicy",
    "decide",
    "delays",
    "exponential",
    "fibonacci",
    "fixed",
    "linear",
    "Schedule",
    "ScheduleChange",
    "ScheduleOverview",
    "ScheduleStatus",
    "Schedules",
    "any_of",
    "at",
    "cron",
    "every",
    "AccessRefusedError",
    "AmqpJobsError",
    "BrokerError",
    "BrokerUnavailableError",
    "BufferFullError",
    "DecodeError",
    "DefinitionError",
    "DuplicateKindError",
    "EnqueueError",
    "EnqueueManyError",
    "EnqueueTimeoutError",
    "ExpositionError",
    "FlushError",
    "HandlerMismatchError",
    "InvalidArgumentsError",
    "JobCancelledError",
    "JobFailedError",
    "ProcessDiedError",
    "RefusedError",
    "ResultError",
    "ResultTimeoutError",
    "ScheduleError",
    "SettingsError",
    "TooLargeError",
    "TopologyMismatchError",
    "UnconfirmedError",
    "UnknownKindError",
    "UnroutableError",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
