"""tx: what a channel published and settled since its last commit."""

from enum import Enum

from amqpjobs.devbroker.errors import Code, RefusedError
from amqpjobs.devbroker.ledger import Loan
from amqpjobs.devbroker.memory import Memory
from amqpjobs.devbroker.message import Message


class Settlement(Enum):
    """What a client says of a delivery."""

    ACK = "ack"
    #: Back into the queue, unstarted.
    NACK = "nack"
    #: Back into the queue, failed.
    REJECT = "reject"
    #: Away with it: it is dead-lettered, as unstarted or as failed.
    DISCARD = "discard"
    DISCARD_FAILED = "discard_failed"


_ALIKE = ({Settlement.NACK, Settlement.REJECT}, {Settlement.DISCARD, Settlement.DISCARD_FAILED})
#: A message, whether it is mandatory, and the names of its queues.
Publishing = tuple[Message, bool, tuple[str, ...]]


class Transaction:
    """Bounded by the memory that the whole broker may use."""

    def __init__(self, memory: Memory, *, are_returns_alike: bool) -> None:
        """With `are_returns_alike` no difference is made between what was not started and what failed."""
        self._memory = memory
        self._are_returns_alike = are_returns_alike
        self._publications: list[Publishing] = []
        self._settlements: list[tuple[Settlement, list[Loan]]] = []
        self._size = 0

    def publish(self, message: Message, is_mandatory: bool, names: tuple[str, ...]) -> None:
        """`names` are the queues that it is meant for, by the bindings of this moment."""
        if self._size + message.size > self._memory.limit:
            raise RefusedError(Code.RESOURCE_ERROR, f"transaction is larger than {self._memory.limit} bytes")
        self._size += message.size
        self._publications.append((message, is_mandatory, names))

    def settle(self, how: Settlement, loans: list[Loan]) -> None:
        """Like RabbitMQ: what is said of several deliveries, one after the other, is said once, of all of them."""
        if self._settlements and self._is_same(how, self._settlements[-1][0]):
            together = self._settlements[-1][1]
            together.extend(loans)
            together.sort(key=lambda loan: loan.tag)
        else:
            self._settlements.append((how, list(loans)))

    def _is_same(self, how: Settlement, other: Settlement) -> bool:
        return how is other or (self._are_returns_alike and {how, other} in _ALIKE)

    def take(self) -> tuple[list[Publishing], list[tuple[Settlement, list[Loan]]]]:
        """Publications and settlements so far; it starts anew."""
        taken = self._publications, self._settlements
        self._publications, self._settlements, self._size = [], [], 0
        return taken
