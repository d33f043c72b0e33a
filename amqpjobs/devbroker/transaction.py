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


#: A message, whether it is mandatory, and the names of its queues.
Publishing = tuple[Message, bool, tuple[str, ...]]


class Transaction:
    """Bounded by the memory that the whole broker may use."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
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
        self._settlements.append((how, loans))

    def take(self) -> tuple[list[Publishing], list[tuple[Settlement, list[Loan]]]]:
        """Publications and settlements so far; it starts anew."""
        taken = self._publications, self._settlements
        self._publications, self._settlements, self._size = [], [], 0
        return taken
