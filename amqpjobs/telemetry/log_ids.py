"""The ids of the current trace and span in log lines."""

import logging

from opentelemetry import trace

from amqpjobs.telemetry.attempts import last_attempt


class TraceIds(logging.Filter):
    """Gives each line `trace_id` and `span_id`, in hexadecimal: of the current span, or of the attempt just ended.

    For a handler: `handler.addFilter(TraceIds())`. Lines that have ids, or come from where no span is, stay as
    they are; it lets pass all.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "trace_id"):
            span = trace.get_current_span().get_span_context()
            span = span if span.is_valid else last_attempt() or span
            if span.is_valid:
                record.trace_id = trace.format_trace_id(span.trace_id)
                record.span_id = trace.format_span_id(span.span_id)
        return True
