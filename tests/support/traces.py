"""Spans as a test sees them: gathered in memory, sent to an OTLP sink as well, and written as a tree.

The sink is a small HTTP server that reads OTLP's protobuf. What it gets must be what is in memory, span by span;
it also gets the spans of other processes, and the names of their metrics.
"""

import re
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.support.broker import eventually

#: What every span of ours tells, checked for each and not written in trees.
ALWAYS = {"messaging.system": "rabbitmq"}
#: Longer texts than these are on no span.
LONGEST = {"exception.stacktrace": 8_100, "exception.message": 1_000}
#: Seconds that an exporter waits for the sink: what it gives up is lost, and a busy machine is no failure.
EXPORT_WITHIN = 60
_OURS = re.compile(r"^(amqpjobs|messaging)\.((job|batch|schedule)\.)?")

Values = Mapping[str, object]


@dataclass(frozen=True)
class Told:
    """A span, wherever it was read."""

    trace_id: int
    span_id: int
    parent_id: int
    name: str
    kind: str
    status: str
    description: str
    start: int
    attributes: Values
    links: Sequence[tuple[int, Values]]
    events: Sequence[tuple[str, Values]]
    #: The process it was made in, and what that calls itself, as far as its resource says so.
    pid: object = field(compare=False)
    service: object = field(compare=False)


class Traces:
    """The spans that have ended so far."""

    def __init__(self, provider: TracerProvider, memory: InMemorySpanExporter, sink: "Sink") -> None:
        self.provider = provider
        self._memory = memory
        self._sink = sink

    @property
    def endpoint(self) -> str:
        """Where other processes may send theirs."""
        return f"{self._sink.url}/v1/traces"

    @property
    def spans(self) -> list[Told]:
        """In the order of their starts, those of other processes among them."""
        here = {each.span_id: each for each in map(told_by_sdk, self._memory.get_finished_spans())}
        return sorted(({**self._sink.spans} | here).values(), key=lambda each: each.start)

    async def until(self, count: int, name: str = "") -> list[Told]:
        """Wait for so many spans whose name begins so."""

        async def are_there() -> bool:
            return len(self.named(name)) >= count

        await eventually(are_there)
        return self.named(name)

    def named(self, start: str) -> list[Told]:
        return [each for each in self.spans if each.name.startswith(start)]

    def tree(self, **names: str) -> str:
        """All spans, one a line, children indented. `names` stand for what is different in each run."""
        return Tree(self.spans, names).text

    def tree_of(self, spans: Sequence[Told], **names: str) -> str:
        """Only these, in this order."""
        return Tree(spans, names).text

    def check_sink(self) -> None:
        """Everything that is in memory has arrived, as it is there."""
        assert self.provider.force_flush()
        for span in map(told_by_sdk, self._memory.get_finished_spans()):
            assert self._sink.spans[span.span_id] == span

    def clear(self) -> None:
        self.provider.force_flush()
        self._memory.clear()
        self._sink.spans.clear()


@contextmanager
def traced(patch: pytest.MonkeyPatch) -> Generator[Traces]:
    """A tracer provider for the time of a block; afterwards there is none again."""
    memory = InMemorySpanExporter()
    with Sink() as sink:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(memory))
        provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(f"{sink.url}/v1/traces", timeout=EXPORT_WITHIN))
        )
        # It can be set once in a process; tests need one each.
        patch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
        traces = Traces(provider, memory, sink)
        try:
            yield traces
            traces.check_sink()
        finally:
            provider.shutdown()


class Sink:
    """An OTLP back end for traces and metrics, over HTTP: what `OTEL_EXPORTER_OTLP_ENDPOINT` may name."""

    def __init__(self) -> None:
        self.spans: dict[int, Told] = {}
        #: The metrics that came, by the service that sent them.
        self.metrics: dict[object, set[str]] = {}
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = sink.take(self.path, body)
                self.send_response(200 if answer is not None else 404)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer or b"")))
                self.end_headers()
                self.wfile.write(answer or b"")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class calls it so)
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def take(self, path: str, body: bytes) -> bytes | None:
        """The answer; None for what is not taken here."""
        match path:
            case "/v1/traces":
                self._take_spans(ExportTraceServiceRequest.FromString(body))
                return bytes(ExportTraceServiceResponse().SerializeToString())
            case "/v1/metrics":
                self._take_metrics(ExportMetricsServiceRequest.FromString(body))
                return bytes(ExportMetricsServiceResponse().SerializeToString())
            case _:
                return None

    def _take_spans(self, request: ExportTraceServiceRequest) -> None:
        for each in request.resource_spans:
            for scope in each.scope_spans:
                for span in scope.spans:
                    told = told_by_otlp(span, each.resource)
                    self.spans[told.span_id] = told

    def _take_metrics(self, request: ExportMetricsServiceRequest) -> None:
        for each in request.resource_metrics:
            names = self.metrics.setdefault(_values(each.resource.attributes).get("service.name"), set())
            names.update(metric.name for scope in each.scope_metrics for metric in scope.metrics)

    def __enter__(self) -> "Sink":
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Tree:
    """A text that is the same in each run: traces are letters, spans are numbers in them, by their start."""

    def __init__(self, spans: Sequence[Told], names: Mapping[str, str]) -> None:
        self._spans = spans
        traces = list(dict.fromkeys(each.trace_id for each in spans))
        self._labels = dict[int, str]()
        for letter, trace in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", traces, strict=False):
            for number, span in enumerate((each for each in spans if each.trace_id == trace), 1):
                self._labels[span.span_id] = f"{letter}{number}"
        jobs = dict.fromkeys(str(each.attributes.get("amqpjobs.job.id")) for each in spans)
        jobs.pop("None", None)
        self._names = {job: f"job-{n}" for n, job in enumerate(jobs, 1)} | {real: name for name, real in names.items()}

    @property
    def text(self) -> str:
        known = {each.span_id for each in self._spans}
        return "".join(self._lines([each for each in self._spans if each.parent_id not in known], ""))

    def _lines(self, spans: Iterable[Told], indent: str) -> Iterable[str]:
        for span in spans:
            assert span.name == "process" or not span.attributes or self._is_sound(span)
            yield indent + self._line(span) + "\n"
            yield from self._lines((each for each in self._spans if each.parent_id == span.span_id), indent + "  ")

    def _line(self, span: Told) -> str:
        parts = [self._labels[span.span_id], span.name, span.kind]
        parts += [span.status] if span.status != "UNSET" else []
        shown = {_OURS.sub("", name): value for name, value in span.attributes.items() if not _is_dull(name, span)}
        parts += [f"{name}={value}" for name, value in sorted(shown.items())]
        parts += [self._event(name, values) for name, values in span.events]
        parts += [f"-{values['amqpjobs.link.type']}->{self._labels.get(to, '?')}" for to, values in span.links]
        line = " ".join(parts)
        for real, name in sorted(self._names.items(), key=lambda each: -len(each[0])):
            line = line.replace(real, name)
        return line

    def _event(self, name: str, values: Values) -> str:
        for attribute, longest in LONGEST.items():
            assert len(str(values.get(attribute, ""))) <= longest
        if name == "exception":
            assert str(values["exception.type"]) in str(values["exception.stacktrace"])
            return f"!{values['exception.type']}({values['exception.message']})"
        told = ",".join(f"{each.rpartition('.')[2]}={value}" for each, value in values.items())
        return f"!{name.removeprefix('amqpjobs.')}({told})"

    def _is_sound(self, span: Told) -> bool:
        """What holds for each span of ours that is about messages, so that trees need not say it."""
        values = span.attributes
        if "messaging.system" not in values:
            return span.name.startswith("schedule ")
        assert values["messaging.system"] == "rabbitmq"
        assert values["server.address"] == "127.0.0.1"
        assert isinstance(values["server.port"], int)
        word, _, to = span.name.partition(" ")
        assert values["messaging.operation.name"] == word
        kinds = {"PRODUCER": "send", "CONSUMER": "process", "CLIENT": "settle"}
        assert values["messaging.operation.type"] == kinds[span.kind]
        assert to == values.get("messaging.destination.name", "")
        assert str(values.get("messaging.rabbitmq.destination.routing_key", "")) in to
        if "messaging.batch.message_count" not in values:
            job = values["amqpjobs.job.id"]
            assert values["messaging.message.id"] == values["messaging.message.conversation_id"] == job
            assert isinstance(values["amqpjobs.job.kind"], str)
        return True


def told_by_sdk(span: ReadableSpan) -> Told:
    assert span.context is not None
    return Told(
        trace_id=span.context.trace_id,
        span_id=span.context.span_id,
        parent_id=span.parent.span_id if span.parent else 0,
        name=span.name,
        kind=span.kind.name,
        status=span.status.status_code.name,
        description=span.status.description or "",
        start=span.start_time or 0,
        attributes=dict(span.attributes or {}),
        links=[(each.context.span_id, dict(each.attributes or {})) for each in span.links],
        events=[(each.name, dict(each.attributes or {})) for each in span.events],
        pid=span.resource.attributes.get("process.pid"),
        service=span.resource.attributes.get("service.name"),
    )


def told_by_otlp(span: trace_pb2.Span, resource: Resource) -> Told:
    made_by = _values(resource.attributes)
    return Told(
        trace_id=int.from_bytes(span.trace_id),
        span_id=int.from_bytes(span.span_id),
        parent_id=int.from_bytes(span.parent_span_id),
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        status=trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        description=span.status.message,
        start=span.start_time_unix_nano,
        attributes=_values(span.attributes),
        links=[(int.from_bytes(each.span_id), _values(each.attributes)) for each in span.links],
        events=[(each.name, _values(each.attributes)) for each in span.events],
        pid=made_by.get("process.pid"),
        service=made_by.get("service.name"),
    )


def _values(pairs: Iterable[KeyValue]) -> dict[str, object]:
    found = dict[str, object]()
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        found[pair.key] = cast("object", getattr(pair.value, kind)) if kind else None
    return found


def _is_dull(name: str, span: Told) -> bool:
    """Whether it is in each span of its sort, or said elsewhere in the line."""
    if name in ("amqpjobs.job.max_attempts", "messaging.rabbitmq.message.delivery_tag"):
        return True
    own = ("amqpjobs.job.id", "amqpjobs.batch.failed_count", "messaging.batch.message_count", "error.type")
    return name.startswith(("messaging.", "server.", "amqpjobs.job.kind", "amqpjobs.job.root")) and name not in own
