"""Spans as we make them: what a job's have in common, and how an error is told on one.

Texts and exceptions are cut. A payload is on none of them; of a job's fields only those its class marks.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol
from urllib.parse import urlsplit

from opentelemetry.trace import Span, Status, StatusCode

from amqpjobs.clock import Clock
from amqpjobs.codec import RemoteError, clip, traceback_of, words_of
from amqpjobs.envelope import Envelope
from amqpjobs.events import Events
from amqpjobs.levels import Levels
from amqpjobs.registry import Registry
from amqpjobs.settings import Settings
from amqpjobs.telemetry import names
from amqpjobs.topology import Topology

#: What one attribute holds, and all of a span.
Value = str | bool | int | float
Attributes = dict[str, Value]


class Observed(Protocol):
    """What telemetry needs of an app."""

    @property
    def name(self) -> str: ...
    @property
    def events(self) -> Events: ...
    @property
    def levels(self) -> Levels: ...
    @property
    def registry(self) -> Registry: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def topology(self) -> Topology: ...
    @property
    def clock(self) -> Clock: ...


def operation(name: str, what: str, settings: Settings) -> Attributes:
    """What every span of ours tells. `name` is the system's word for it, `what` that of the conventions."""
    told: Attributes = {
        names.SYSTEM_NAME: names.SYSTEM,
        names.OPERATION_NAME: name,
        names.OPERATION_TYPE: what,
    }
    return told | _server(settings.url.get_secret_value())


def identity(envelope: Envelope) -> Attributes:
    """Which job it is about."""
    told: Attributes = {
        names.MESSAGE_ID: _short(envelope.job_id),
        names.CONVERSATION_ID: _short(envelope.correlation_id or envelope.job_id),
        names.JOB_ID: _short(envelope.job_id),
        names.JOB_KIND: _short(envelope.kind),
    }
    for name, text in (
        (names.JOB_PARENT, envelope.parent),
        (names.JOB_ROOT, envelope.root),
        (names.SCHEDULE, envelope.schedule),
    ):
        if text is not None:
            told[name] = _short(text)
    return told


def delay_of(envelope: Envelope) -> Attributes:
    """For how long it is to wait. Only its enqueuer knows that well: on the wire `enqueued_at` has whole seconds."""
    if envelope.run_at is None or envelope.enqueued_at is None:
        return {}
    return {names.JOB_DELAY: round((envelope.run_at - envelope.enqueued_at).total_seconds(), 3)}


def sent_to(envelope: Envelope, topology: Topology) -> Attributes:
    """The destination as its enqueuer knows it: delay levels on the way are none."""
    by_kind = topology.by_kind(envelope.kind, envelope.exchange)
    route = topology.to_queue(envelope.queue) if envelope.queue else by_kind
    return {names.DESTINATION: f"{route.exchange}:{route.key}", names.ROUTING_KEY: route.key}


def taken_from(envelope: Envelope, topology: Topology) -> Attributes:
    """Exchange, routing key and queue, in the conventions' form."""
    route, queue = topology.by_kind(_short(envelope.kind), envelope.exchange), topology.work_queue(envelope.queue)
    return {names.DESTINATION: f"{route.exchange}:{route.key}:{queue}", names.ROUTING_KEY: route.key}


def tell_error(span: Span, error: BaseException, kind: str | None = None) -> None:
    """The error as an event within bounds, and the span's status. `kind` is its class, where that is known better."""
    if not span.is_recording():
        return
    kind, words = kind or kind_of(error), _cut(words_of(error), names.LONGEST_WORDS)
    span.set_attribute(names.ERROR_TYPE, kind)
    span.set_status(Status(StatusCode.ERROR, words))
    told = {
        names.EXCEPTION_TYPE: kind,
        names.EXCEPTION_MESSAGE: words.removeprefix(f"{kind}: "),
        names.EXCEPTION_STACKTRACE: clip(traceback_of(error), names.LONGEST_TRACE),
    }
    span.add_event(names.EXCEPTION, told)


def kind_of(error: BaseException) -> str:
    """The class of an error, of one in another process too."""
    if isinstance(error, RemoteError):
        return _short(str(error).partition(":")[0])
    return type(error).__qualname__


def text(words: object) -> str:
    """Somebody's words, as long as they may be."""
    return _short(str(words))


def same(values: Sequence[Mapping[str, Value]]) -> Attributes:
    """What is the same in all of them."""
    first, *others = values
    return {name: value for name, value in first.items() if all(each.get(name) == value for each in others)}


@lru_cache(maxsize=8)
def _server(url: str) -> Attributes:
    if "," in url:  # of a cluster, nobody here knows which
        return {}
    place = urlsplit(url.strip())
    return {names.SERVER_ADDRESS: place.hostname or "", names.SERVER_PORT: place.port or _port(place.scheme)}


def _port(scheme: str) -> int:
    return 5671 if scheme == "amqps" else 5672


def _short(words: str) -> str:
    return _cut(words, names.LONGEST_TEXT)


def _cut(words: str, longest: int) -> str:
    return words if len(words) <= longest else words[: longest - 1] + "…"
