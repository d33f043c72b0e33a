"""Publisher confirms of one channel: collected, and sent as few frames as may be."""

from collections.abc import Callable

from amqpjobs.devbroker.wire import confirmation, refusal


class Confirms:
    """Numbers of messages since confirm.select. Every message is known to be taken or refused at once."""

    def __init__(self) -> None:
        self._count = 0
        self._taken: list[int] = []
        self._refused: list[int] = []

    def add(self, is_taken: bool) -> bool:
        """The next message. Whether it is the first since the last were sent."""
        is_first = not self._taken and not self._refused
        self._count += 1
        (self._taken if is_taken else self._refused).append(self._count)
        return is_first

    def taken(self, channel: int) -> bytes:
        """The frames that are due."""
        if not self._refused:
            if not self._taken:
                return b""
            last, is_one = self._taken[-1], len(self._taken) == 1
            self._taken.clear()
            return confirmation(channel, last, not is_one)
        confirmed, denied, self._taken, self._refused = self._taken, self._refused, [], []
        return b"".join(
            (*_frames(confirmed, denied, channel, confirmation), *_frames(denied, confirmed, channel, refusal))
        )


def _frames(
    numbers: list[int], others: list[int], channel: int, write: Callable[[int, int, bool], bytes]
) -> list[bytes]:
    """One frame for those before the first of the others, and one for each of the rest."""
    first = min(others, default=None)
    together = [number for number in numbers if first is None or number < first]
    frames = [write(channel, together[-1], True)] if together else []
    return frames + [write(channel, number, False) for number in numbers[len(together) :]]
