"""Prometheus' own tool, and what our metrics are called there."""

import shutil
import subprocess
from pathlib import Path

#: All our metrics, and their types.
METRICS = {
    "amqpjobs_beat_leading": "gauge",
    "amqpjobs_connection_reconnects_total": "counter",
    "amqpjobs_job_active": "gauge",
    "amqpjobs_job_attempts": "histogram",
    "amqpjobs_job_outcomes_total": "counter",
    "amqpjobs_job_wait_duration_seconds": "histogram",
    "amqpjobs_publish_unconfirmed": "gauge",
    "amqpjobs_tick_lag_seconds": "histogram",
    "amqpjobs_tick_outcomes_total": "counter",
    "amqpjobs_worker_busy": "gauge",
    "amqpjobs_worker_capacity": "gauge",
    "messaging_client_consumed_messages_total": "counter",
    "messaging_client_operation_duration_seconds": "histogram",
    "messaging_client_sent_messages_total": "counter",
    "messaging_process_duration_seconds": "histogram",
}


def promtool(*arguments: str | Path, text: bytes = b"") -> str:
    """What it says when all is well; an AssertionError with what it says when it is not, or is not there."""
    tool = shutil.which("promtool")
    assert tool, "promtool is not installed. On Debian and Ubuntu: sudo make rabbitmq; else install Prometheus."
    ended = subprocess.run([tool, *arguments], input=text, capture_output=True, check=False)
    said = (ended.stdout + ended.stderr).decode()
    assert ended.returncode == 0, said
    return said
