"""The health of the process itself, from what is in it."""

import asyncio
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Protocol

from amqpjobs.clock import Clock
from amqpjobs.health.asked import Asked
from amqpjobs.health.messages import Response, told
from amqpjobs.health.pulse import Pulse
from amqpjobs.health.report import Report, liveness, readiness


class Subject(Protocol):
    """A worker, a beat, or several. Both are called in its event loop."""

    def look(self) -> None:
        """Notice what can only be seen over time; called about once a second."""
        ...

    def troubles(self) -> Sequence[str]:
        """Why it is not ready."""
        ...


class Exposed(Protocol):
    """The metrics of this process."""

    @property
    def content_type(self) -> str: ...
    def text(self) -> bytes: ...


class Own:
    """Made in the event loop that it tells of."""

    def __init__(self, subjects: Sequence[Subject], pulse: Pulse, exposed: Exposed | str, clock: Clock) -> None:
        """`exposed` may be why there are no metrics."""
        self._subjects = subjects
        self._pulse = pulse
        self._exposed = exposed
        self._troubles = Asked(asyncio.get_running_loop(), self._found, clock)

    async def live(self) -> Report:
        return liveness([self._pulse.stalled] if self._pulse.is_stalled else [])

    async def ready(self) -> Report:
        try:
            return readiness(await self._troubles.answer())
        except TimeoutError:
            return readiness([self._pulse.stalled])

    async def metrics(self) -> Response:
        if isinstance(self._exposed, str):
            return told(HTTPStatus.NOT_FOUND, self._exposed)
        # In a thread, since it may be megabytes.
        return Response(HTTPStatus.OK, await asyncio.to_thread(self._exposed.text), self._exposed.content_type)

    def _found(self) -> list[str]:
        return [trouble for each in self._subjects for trouble in each.troubles()]


def looking(subjects: Sequence[Subject]) -> Callable[[], None]:
    """Have all of them look."""

    def look() -> None:
        for each in subjects:
            each.look()

    return look
