"""Whether an event loop turns: it leaves the time once a second, and any thread can see how long ago that was."""

import logging
from collections.abc import Callable

from amqpjobs.clock import Clock

_log = logging.getLogger(__name__)

#: Seconds between two beats.
EVERY = 1.0
#: Seconds without one after which the loop counts as stalled.
STALLED_AFTER = 5.0


class Pulse:
    """Of the loop that runs `beat`. `look` is called with each beat."""

    def __init__(self, clock: Clock, look: Callable[[], object]) -> None:
        self._clock = clock
        self._look = look
        self._at = clock.monotonic()

    async def beat(self) -> None:
        """Until cancelled."""
        while True:
            self._at = self._clock.monotonic()
            try:
                self._look()
            except Exception:  # a bug must not look like a loop that stands still
                _log.exception("The state of the process could not be looked at")
            await self._clock.sleep(EVERY)

    @property
    def is_stalled(self) -> bool:
        return self._silence > STALLED_AFTER

    @property
    def stalled(self) -> str:
        """The sentence about it."""
        return f"the event loop has not turned for {self._silence:.1f} s"

    @property
    def _silence(self) -> float:
        return self._clock.monotonic() - self._at
