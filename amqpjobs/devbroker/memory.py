"""How much the broker holds, and who waits until that is less.

As in RabbitMQ, publishers are held up by not reading from their sockets while too much is held; consumers
go on, and make room.
"""

from collections.abc import Callable


class Memory:
    """Bytes of all messages in all queues, lent ones too; a message counts in each queue it is in."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._waiting: dict[Callable[[], None], None] = {}

    @property
    def is_short(self) -> bool:
        return self.held > self.limit

    def add(self, size: int) -> None:
        self.held += size

    def free(self, size: int) -> None:
        self.held -= size
        if self._waiting and not self.is_short:
            waiting, self._waiting = self._waiting, {}
            for go_on in waiting:
                go_on()

    def wait(self, go_on: Callable[[], None]) -> None:
        """Have this called once when there is room again."""
        self._waiting[go_on] = None

    def give_up(self, go_on: Callable[[], None]) -> None:
        """Not any more."""
        self._waiting.pop(go_on, None)
