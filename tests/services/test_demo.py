"""`make demo` tells its three stories, whatever the settings of whoever types it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.terminal import PATIENCE

ROOT = Path(__file__).parents[2]
#: It types eight commands one after the other, and has a patience of its own for each.
WITHIN = 8 * PATIENCE


def test_the_demo_tells_what_becomes_of_three_mails() -> None:
    misleading = {"AMQPJOBS_URL": "amqp://localhost:1/", "AMQPJOBS_LOG_FORMAT": "text", "EMAIL_RETRY_DELAY": "600"}
    command = [sys.executable, "-m", "services.email.demo"]

    demo = subprocess.run(
        command, cwd=ROOT, env=os.environ | misleading, capture_output=True, text=True, timeout=WITHIN
    )

    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert demo.stderr == ""
    assert lines_with(demo.stdout, "inbox", "worker") == [
        "ready, takes from queue email",
        "To: ann@example.com  Subject: Hello Ann",
        "attempt 1: sent",
        "attempt 1: failed (451 4.7.1 Busy, please come back later). Next try in",
        "attempt 2: failed (451 4.7.1 Busy, please come back later). Next try in",
        "To: bob@example.com  Subject: Hello Bob",
        "attempt 3: sent",
        "attempt 1: refused for good (550 5.1.1 Nobody of that name lives here). It is a dead letter now",
        "To: eve@example.com  Subject: Hello Eve",
        "attempt 1: sent",
    ]
    assert "$ amqpjobs dead ls services.email\n" in demo.stdout
    assert "not_retryable  PermanentError" in demo.stdout
    assert "1 requeued of 1 in dead letters of email" in demo.stdout


def lines_with(text: str, *speakers: str) -> list[str]:
    """What these said, without the seconds of a wait."""
    said = [line.strip().partition(" ") for line in text.splitlines()]
    return [
        words.strip().partition(" in ")[0] + (" in" if " in " in words else "")
        for who, _, words in said
        if who in speakers
    ]
