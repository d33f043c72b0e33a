"""Whether the stories are told at full length: `pytest --full`, as `make chaos` does."""

import sys


def is_full() -> bool:
    """Known before any test is collected, so that constants can depend on it."""
    return "--full" in sys.argv
