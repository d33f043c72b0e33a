"""What our spans, attributes, events and links are called. `docs/traces.md` promises these names.

Those that begin with `messaging.` are of OpenTelemetry's semantic conventions for RabbitMQ (1.44), as are
`error.type`, `exception.*` and `server.*`; ours begin with `amqpjobs.`. All are of bounded size.
"""

from enum import StrEnum

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
SYSTEM = "rabbitmq"

SYSTEM_NAME = "messaging.system"
OPERATION_NAME = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
DESTINATION = "messaging.destination.name"
ROUTING_KEY = "messaging.rabbitmq.destination.routing_key"
DELIVERY_TAG = "messaging.rabbitmq.message.delivery_tag"
MESSAGE_ID = "messaging.message.id"
CONVERSATION_ID = "messaging.message.conversation_id"
MESSAGE_COUNT = "messaging.batch.message_count"
SERVER_ADDRESS, SERVER_PORT = "server.address", "server.port"
ERROR_TYPE = "error.type"
EXCEPTION = "exception"
EXCEPTION_TYPE, EXCEPTION_MESSAGE, EXCEPTION_STACKTRACE = (
    "exception.type",
    "exception.message",
    "exception.stacktrace",
)

JOB_ID = "amqpjobs.job.id"
JOB_KIND = "amqpjobs.job.kind"
JOB_ATTEMPT = "amqpjobs.job.attempt"
JOB_MAX_ATTEMPTS = "amqpjobs.job.max_attempts"
JOB_OUTCOME = "amqpjobs.job.outcome"
JOB_DEAD_REASON = "amqpjobs.job.dead_reason"
JOB_PARENT = "amqpjobs.job.parent"
JOB_ROOT = "amqpjobs.job.root"
#: Seconds between the enqueue and `run_at`.
JOB_DELAY = "amqpjobs.job.delay"
JOB_REQUEUES = "amqpjobs.job.requeues"
#: Before the name of a field that is marked as traceable.
JOB_FIELD = "amqpjobs.job.field."
SCHEDULE = "amqpjobs.schedule.name"
TICK_OUTCOME = "amqpjobs.tick.outcome"
APP = "amqpjobs.app.name"
CONNECTION_ROLE = "amqpjobs.connection.role"
#: Jobs of an `enqueue_many` that were not confirmed.
FAILED_COUNT = "amqpjobs.batch.failed_count"
#: Which `LinkType` a link is.
LINK_TYPE = "amqpjobs.link.type"

#: Events of a run, and what they tell.
TIMED_OUT = "amqpjobs.timeout"
RETRYING = "amqpjobs.retry"
SNOOZED = "amqpjobs.snooze"
CANCELLED = "amqpjobs.cancel"
DEAD = "amqpjobs.dead"
RETURNED = "amqpjobs.return"
EVENT_DELAY, EVENT_REASON = "amqpjobs.delay", "amqpjobs.reason"

#: Characters of a text, of an exception's words and of its stack trace.
LONGEST_TEXT, LONGEST_WORDS, LONGEST_TRACE = 256, 1_000, 8_000


class LinkType(StrEnum):
    """What a link leads to."""

    #: The span the job was enqueued in.
    ENQUEUE = "enqueue"
    #: The run before this one: a failed or snoozed attempt, also before a requeue.
    PREVIOUS = "previous_attempt"
    #: The schedule whose tick this is.
    SCHEDULE = "schedule"
    #: An attempt that shares this call of a batch handler.
    MEMBER = "batch_member"


class TickOutcome(StrEnum):
    """What became of a tick, or of those that were left out together."""

    PUBLISHED = "published"
    #: It could not be published, and is tried again.
    FAILED = "failed"
    #: Left out by its misfire policy.
    SKIPPED = "skipped"
    #: Left out by its overlap policy.
    OVERLAPPED = "overlapped"
    #: Not published again: a copy of it had been started.
    FOUND = "found"
    #: A copy that a worker did not run, because another one was started.
    DROPPED = "dropped"
