"""The ids of the current trace and span in log lines."""

import logging

from opentelemetry import trace

from amqpjobs.telemetry.attempts import last_attempt


class TraceIds(logging.Filter):
    """Gives log lines `trace_id` and `span_id`, in hexadecimal.

    They are those of the current span, or of the attempt whose end the line tells. Lines that have
    ids, or come from where no span is, stay as they are; all pass. For a handler of your own:
    `handler.addFilter(TraceIds())`.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "trace_id"):
            span = trace.get_current_span().get_span_context()
            if not span.is_valid:
                span = last_attempt(getattr(record, "job_id", None), getattr(record, "attempt", None)) or span
            if span.is_valid:
                record.trace_id = trace.format_trace_id(span.trace_id)
                record.span_id = trace.format_span_id(span.span_id)
        return True
